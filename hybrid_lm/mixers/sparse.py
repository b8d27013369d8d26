"""Sparse attention on fixed subsets: recent, strided, first and random blocks."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.block_attention import Tiles, block_attention
from hybrid_lm.mixers.attention import AttentionMixer
from hybrid_lm.mixers.base import Context, MixerConfig, State, register
from hybrid_lm.mixers.block_sparse import BlockSparse


@register("sparse")
@dataclass(frozen=True)
class Sparse(BlockSparse):
    """Softmax attention of a token of block j of its document to a fixed set of blocks:

    - the latest: ``j - local_blocks + 1 .. j`` (up to the token itself);
    - dilated: ``j - t stride`` for t = 1 .. strided_blocks;
    - the first ``global_blocks`` of the document;
    - ``random_blocks`` drawn once per block and key/value head among the earlier ones.

    Local and random blocks: BigBird (Zaheer et al. 2020, arXiv 2007.14062, section 2); dilated and
    global ones: Longformer (Beltagy et al. 2020, arXiv 2004.05150, section 3.1); stride: Sparse
    Transformer (Child et al. 2019, arXiv 1904.10509, section 4.2). In a causal model all tokens may
    look at the global ones, which look at nothing later.
    """

    may_be_zero = ("seed", "strided_blocks", "global_blocks", "random_blocks")

    stride: int = 4
    """Distance in blocks between the dilated ones."""
    strided_blocks: int = 2
    """Dilated blocks seen."""
    global_blocks: int = 1
    """First blocks of the document, seen by all."""
    random_blocks: int = 2
    """Random earlier blocks seen (fewer where two draws agree)."""
    seed: int = 0
    """Of the random blocks."""

    def build(self, width: int, rngs: nnx.Rngs) -> "SparseMixer":
        if self.strided_blocks + self.global_blocks + self.random_blocks == 0:
            raise UserError("sparse: no block but the latest is seen; attention with a window is")
        return SparseMixer(self, width, rngs)

    def earlier_blocks(self, count: int, groups: int) -> np.ndarray:
        """[count, G, M] block numbers, all different, that blocks 0 .. count - 1 see before the
        latest; -1 is none. More blocks do not change the first ones.
        """
        j = np.arange(count)[:, None, None]
        strided = j - self.stride * np.arange(1, self.strided_blocks + 1)
        first = np.arange(self.global_blocks)
        draws = np.random.default_rng(self.seed).random((count, groups, self.random_blocks))
        earlier = np.maximum(j - self.local_blocks + 1, 0)
        shape = (count, groups, -1)
        sets = (
            np.broadcast_to(strided, (count, groups, self.strided_blocks)),
            np.broadcast_to(first, (count, groups, self.global_blocks)),
            (draws * earlier).astype(int).reshape(shape),
        )
        blocks = np.concatenate(sets, axis=-1)
        again = np.tril(blocks[..., :, None] == blocks[..., None, :], k=-1).any(-1)
        return np.where(again | (blocks >= earlier), -1, np.maximum(blocks, -1)).astype(np.int32)

    def flops_per_token(self, width: int, length: int) -> float:
        _, latest = self.latest(length)
        number = np.arange(length) // self.block_size
        blocks = self.earlier_blocks(number[-1] + 1, self.attention().resolved(width)[0])
        seen = (blocks >= 0).sum(-1).mean(-1)[number]
        return self.flops_for(width, float(np.mean(latest + seen * self.block_size)))

    def limit(self, length: int) -> tuple[MixerConfig, MixerConfig]:
        blocks = -(-length // self.block_size)
        return dataclasses.replace(self, local_blocks=blocks), self.attention()


class SparseMixer(AttentionMixer):
    """State: that of attention without a window, for any block may be seen again."""

    def __init__(self, config: Sparse, width: int, rngs: nnx.Rngs):
        super().__init__(config.attention(), width, rngs)
        self.pattern = config

    def _attend(
        self,
        q_BLHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        starts_BL: jax.Array | None,
        ctx: Context,
        state: State | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        pattern, (batch, length), keys = self.pattern, q_BLHK.shape[:2], k_BSGK.shape[1]
        if keys <= pattern.block_size:  # One block holds all.
            return super()._attend(q_BLHK, k_BSGK, v_BSGK, starts_BL, ctx, state)
        tiles = Tiles.of(starts_BL, batch, length, keys, pattern.block_size)
        blocks_JGM = pattern.earlier_blocks(keys // pattern.block_size + 1, self.kv_heads)
        y_BLHK = block_attention(
            q_BLHK,
            k_BSGK,
            v_BSGK,
            tiles,
            jnp.asarray(blocks_JGM)[tiles.number_BT],
            local_blocks=pattern.local_blocks,
            implementation=ctx.implementation.block_attention,
        )
        return y_BLHK, {}
