"""Attention by locality-sensitive hashing, without a look at what follows."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.bucket_attention import Rings, Shape, bucket_attention
from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.kernels.rotary.xla import rotate
from hybrid_lm.layers import unit
from hybrid_lm.mixers.attention import Attention
from hybrid_lm.mixers.base import (
    CONTINUES,
    NO_STATE,
    Context,
    MixerConfig,
    State,
    per_head,
    register,
)
from hybrid_lm.mixers.heads import HeadsMixer

_EPSILON = 1e-12  # keeps the unit length of a key from a division by 0


@register("reformer")
@dataclass(frozen=True)
class Reformer(MixerConfig):
    """Softmax attention of a token to the ``bucket_window`` tokens before it in its hash bucket.

    Reformer (Kitaev et al. 2020, arXiv 2001.04451). In each round the bucket of a token is
    ``argmax [q R; -q R]`` for a random R of its head (section 2, "Locality sensitive hashing").
    Keys are queries of unit length, and a token sees itself only where it sees no other
    ("Shared-QK attention"). Rounds are merged by their normalisers ("Multi-round LSH attention";
    here a key that is seen in several rounds counts as often).

    The paper sorts all tokens by bucket and cuts the result into chunks. What a token finds in its
    chunk then depends on how many later tokens fall into other buckets: that tells of the future.
    Here its window counts back from itself, inside its own bucket.
    """

    heads: int = 8
    """Heads; must divide the width."""
    rounds: int = 2
    """Hashes per head."""
    buckets: int = 32
    """Buckets of a hash: 1 or an even number."""
    bucket_window: int = 64
    """Latest earlier tokens of its bucket that a token sees in each round."""
    share_qk: bool = True
    """Keys are the queries at unit length. Else they have a projection of their own and a token
    always sees itself; the bucket of a token is that of its query still."""
    rope_theta: float | None = 10_000.0
    """Base of the rotary position embedding, after hashing. None: no positions (NoPE)."""
    seed: int = 0
    """Of the random R."""
    chunk_size: int = 32
    """Queries that one matrix product handles."""
    causal: bool = True
    """Else a token sees the nearest bucket_window / 2 tokens of its bucket on both sides."""

    def build(self, width: int, rngs: nnx.Rngs) -> "ReformerMixer":
        if self.rope_theta is not None and per_head(self.key, self.heads, width) % 2:
            raise UserError("reformer: rotary positions need an even width / heads")
        if self.buckets > 1 and self.buckets % 2:
            raise UserError(f"reformer: buckets {self.buckets} must be 1 or an even number")
        if not self.causal and self.bucket_window % 2:
            raise UserError(
                f"reformer: bucket_window {self.bucket_window} must be even to see both sides"
            )
        return ReformerMixer(self, width, rngs)

    def is_causal(self) -> bool:
        return self.causal

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        projections = 2 * width * width * (3 if self.share_qk else 4)
        hashes = 2 * width * self.rounds * (self.buckets // 2)
        # A chunk is multiplied with the chunks that its windows reach into.
        return (
            projections + hashes + 4 * width * self.rounds * (self.bucket_window + self.chunk_size)
        )

    def limit(self, length: int) -> tuple[MixerConfig, MixerConfig]:
        at = dataclasses.replace(
            self, buckets=1, bucket_window=length, share_qk=False, chunk_size=8, causal=True
        )
        return at, Attention(heads=self.heads, rope_theta=self.rope_theta, qk_norm=False)


class ReformerMixer(HeadsMixer):
    """State: ``k``, ``v`` [B, H, rounds, buckets, bucket_window, K], the latest tokens of each
    bucket of the document, right-aligned; ``count`` [B, H, rounds, buckets], how many there are;
    ``segment`` [B].
    """

    def __init__(self, config: Reformer, width: int, rngs: nnx.Rngs):
        super().__init__(config.key, width, rngs, heads=config.heads, share_qk=config.share_qk)
        self.config = config

    @property
    def _shape(self) -> Shape:
        config = self.config
        return Shape(config.buckets, config.bucket_window, not config.share_qk, config.causal)

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        config = self.config
        if not config.causal and state is not None:
            raise UserError(NO_STATE)
        q_BLHK, k_BLHK, v_BLHP = self.projected(x_BLD)
        bucket_BLHR = self._buckets(q_BLHK)
        if config.share_qk:
            k_BLHK = unit(k_BLHK, epsilon=_EPSILON)
        if config.rope_theta is not None:
            q_BLHK = rotate(q_BLHK, ctx.positions_BL, config.rope_theta)
            k_BLHK = rotate(k_BLHK, ctx.positions_BL, config.rope_theta)
        y_BLHP, rings = bucket_attention(
            q_BLHK,
            k_BLHK,
            v_BLHP,
            bucket_BLHR,
            ctx.resets_BL(None if state is None else state["segment"]),
            None if state is None else Rings(state["k"], state["v"], state["count"]),
            shape=self._shape,
            max_segments=ctx.max_segments,
            chunk_size=config.chunk_size,
            implementation=ctx.implementation.bucket_attention,
        )
        y_BLD = self.output(y_BLHP)
        if rings is None:
            return y_BLD, ()
        k, v = (x.astype(ctx.dtype) for x in rings[:2])
        return y_BLD, {"k": k, "v": v, "count": rings[2], "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        config = self.config
        if not config.causal:
            return ()
        sizes = (batch, config.heads, config.rounds)
        k, v, count = Rings.empty(sizes, self._shape, self.head_dim, self.head_dim, dtype)
        segment = jnp.full((batch,), CONTINUES, jnp.int32)
        return {"k": k, "v": v, "count": count, "segment": segment}

    def _buckets(self, q_BLHK: jax.Array) -> jax.Array:
        """int32 bucket of each query in each round."""
        config = self.config
        if config.buckets == 1:
            return jnp.zeros((*q_BLHK.shape[:3], config.rounds), jnp.int32)
        shape = (config.heads, config.rounds, self.head_dim, config.buckets // 2)
        wide_BLHK = jax.lax.stop_gradient(q_BLHK)
        wide_BLHK = wide_BLHK.astype(jnp.promote_types(q_BLHK.dtype, jnp.float32))
        rotation = np.random.default_rng(config.seed).normal(size=shape)
        turned = einsum_f32("blhk,hrkn->blhrn", wide_BLHK, jnp.asarray(rotation, wide_BLHK.dtype))
        return jnp.argmax(jnp.concatenate([turned, -turned], axis=-1), axis=-1).astype(jnp.int32)
