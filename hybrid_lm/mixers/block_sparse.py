"""What softmax attention to some of the blocks of a document shares, however they are chosen."""

from dataclasses import dataclass

import numpy as np

from hybrid_lm.mixers.attention import Attention
from hybrid_lm.mixers.base import MixerConfig


@dataclass(frozen=True)
class BlockSparse(MixerConfig):
    """Attention that reads the latest blocks of a document and a bounded number of earlier ones."""

    heads: int = 8
    """Query heads."""
    kv_heads: int | None = None
    """Key/value heads, each with blocks of its own; must divide heads. None: as many as heads."""
    head_dim: int | None = None
    """Dimension of a head. None: width / heads."""
    block_size: int = 64
    """Tokens of a block, counted from the start of the document."""
    local_blocks: int = 2
    """Latest blocks that are always seen, the token's own included."""
    rope_theta: float | None = 10_000.0
    """Base of the rotary position embedding. None: no positions (NoPE)."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head."""

    def attention(self) -> Attention:
        """Full attention with the same parameters."""
        names = ("heads", "kv_heads", "head_dim", "rope_theta", "qk_norm")
        return Attention(**{name: getattr(self, name) for name in names})

    def is_subquadratic(self) -> bool:
        # The keys a token reads are bounded; the state, all keys and values, is not.
        return False

    def latest(self, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Of each place: how many blocks there are before the latest, and tokens in the latest."""
        place = np.arange(length)
        earlier = np.maximum(place // self.block_size - self.local_blocks + 1, 0)
        return earlier, place - earlier * self.block_size + 1

    def flops_for(self, width: int, keys: float) -> float:
        """FLOPs per token if it sees so many keys on average."""
        full = self.attention()
        per_key = 4 * self.heads * full.resolved(width)[1]
        return full.flops_per_token(width, 1) + per_key * (keys - 1)
