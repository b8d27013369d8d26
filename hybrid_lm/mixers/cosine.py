"""Cosine attention: cosine similarities without a softmax, or relu features cosine re-weighted."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.layers import param, unit
from hybrid_lm.mixers.base import Context, MixerConfig, State, register
from hybrid_lm.mixers.kernelized import KernelizedMixer

_EPSILON = 1e-6  # keeps the normaliser away from 0 when relu finds no key


@register("cosine")
@dataclass(frozen=True)
class Cosine(MixerConfig):
    """``y_i = sum_{j <= i} cos(q_i, k_j) v_j / (j + 1)^sigmoid(m)``, m learned per head.

    Cottention (Mongaras et al. 2024, arXiv 2409.18747): no normaliser, which similarities of both
    signs could bring to 0, but a power of the number of tokens: of those up to key j where
    causal, as in the authors' code, and of the whole document where not.

    With ``reweight``, cosFormer (Qin et al. 2022, arXiv 2202.08791, section 3):
    ``w_ij = (relu(q_i) . relu(k_j)) cos(pi / 2 (i - j) / M)``, ``y_i = sum w_ij v_j / sum w_ij``,
    by features ``relu(x_i) cos(pi i / 2 M)`` and ``relu(x_i) sin(pi i / 2 M)``. Places beyond M
    count as M, so that weights are never negative.
    """

    heads: int = 8
    """Heads; must divide the width."""
    reweight: bool = False
    """cosFormer in place of cosine similarities."""
    max_length: int = 65_536
    """M, the length of documents over which cosFormer's weights fall to 0."""
    chunk_size: int = 128
    """Tokens that one matrix product handles."""
    causal: bool = True
    """False: a token sees its whole document; there is no state."""

    def build(self, width: int, rngs: nnx.Rngs) -> "CosineMixer":
        return CosineMixer(self, width, rngs)

    def is_causal(self) -> bool:
        return self.causal

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        head_dim = width // self.heads
        # Multiply-adds of the write and of the read-out per entry of the state.
        entries = 2 * width * (head_dim + 1) if self.reweight else width * head_dim
        return 8 * width * width + (4 if self.causal else 8) * entries


class CosineMixer(KernelizedMixer):
    """State: ``kv`` [B, H, K, P], with ``reweight`` [B, H, 2 K, P + 1]; ``segment`` [B]."""

    def __init__(self, config: Cosine, width: int, rngs: nnx.Rngs):
        super().__init__(
            config.key,
            width,
            rngs,
            heads=config.heads,
            chunk_size=config.chunk_size,
            causal=config.causal,
        )
        self.config = config
        if not config.reweight:
            half = nnx.initializers.constant(0.5)
            self.exponent = param(rngs, (self.heads,), ("heads",), half, decay=False)

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        q_BLHK, k_BLHK, v_BLHP = self.projected(x_BLD)
        if self.config.reweight:
            q_BLHN, k_BLHN = (self._reweighted(a, ctx.positions_BL) for a in (q_BLHK, k_BLHK))
            y_BLHP, state = self.means(q_BLHN, k_BLHN, v_BLHP, ctx, state, floor=_EPSILON)
        else:
            wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
            log_count_BL1 = jnp.log(self._counts_BL(ctx, state).astype(wide))[..., None]
            scale_BLH = jnp.exp(-jax.nn.sigmoid(self.exponent[...]) * log_count_BL1)
            v_BLHP = (v_BLHP * scale_BLH[..., None]).astype(x_BLD.dtype)
            y_BLHP, state = self.sums(unit(q_BLHK), unit(k_BLHK), v_BLHP, ctx, state)
        return self.output(y_BLHP.astype(x_BLD.dtype)), state

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        if self.config.reweight:
            return self.zero_state(batch, dtype, 2 * self.head_dim, self.head_dim + 1)
        return self.zero_state(batch, dtype, self.head_dim, self.head_dim)

    def _counts_BL(self, ctx: Context, state: State | None) -> jax.Array:
        """Tokens of the document up to this one, or all that the row has where not causal."""
        resets_BL = self.resets_BL(ctx, state)
        if self.causal:
            return ctx.positions_BL + 1
        length = ctx.positions_BL.shape[1]
        if resets_BL is None:
            return jnp.full_like(ctx.positions_BL, length)
        place_1L = jnp.arange(length)[None]
        start_BL = jax.lax.cummax(jnp.where(resets_BL, place_1L, 0), axis=1)
        return ctx.ends_BL() - start_BL + 1

    def _reweighted(self, x_BLHK: jax.Array, positions_BL: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x_BLHK.dtype, jnp.float32)
        place_BL = jnp.minimum(positions_BL, self.config.max_length).astype(wide)
        angle_BL11 = (place_BL * (math.pi / 2 / self.config.max_length))[..., None, None]
        x_BLHK = jax.nn.relu(x_BLHK)
        parts = [x_BLHK * jnp.cos(angle_BL11), x_BLHK * jnp.sin(angle_BL11)]
        return jnp.concatenate(parts, axis=-1).astype(x_BLHK.dtype)
