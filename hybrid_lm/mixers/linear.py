"""Linear attention with a positive feature map."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.ssd import ssd
from hybrid_lm.layers import fan_in, param, project
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, register

_EPSILON = 1e-6  # keeps the normaliser away from 0 when the relu map finds no key


@register("linear")
@dataclass(frozen=True)
class Linear(MixerConfig):
    """``y_i = sum_{j <= i} (f(q_i) . f(k_j)) v_j / sum_{j <= i} f(q_i) . f(k_j)``.

    Katharopoulos et al. 2020 (arXiv 2006.16236), equations 9 to 12: a recurrence on
    ``S = sum f(k) v^T`` and ``z = sum f(k)``, run in chunks with an associative scan over them.
    """

    heads: int = 8
    """Heads; must divide the width."""
    feature_map: Literal["elu1", "relu"] = "elu1"
    """f(x): elu(x) + 1, or max(x, 0)."""
    chunk_size: int = 128
    """Tokens that one matrix product handles."""

    def build(self, width: int, rngs: nnx.Rngs) -> "LinearMixer":
        if width % self.heads:
            raise UserError(f"linear: heads {self.heads} does not divide width {width}")
        return LinearMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        head_dim = width // self.heads
        return 8 * width * width + 4 * self.heads * head_dim * (head_dim + 1)


class LinearMixer(nnx.Module):
    """State: ``kv`` [B, H, K, P + 1], at least float32 (last column: z); ``segment`` [B]."""

    def __init__(self, config: Linear, width: int, rngs: nnx.Rngs):
        self.config = config
        self.head_dim = width // config.heads
        shape, axes = (width, config.heads, self.head_dim), ("embed", "heads", None)
        self.q = param(rngs, shape, axes, fan_in(width))
        self.k = param(rngs, shape, axes, fan_in(width))
        self.v = param(rngs, shape, axes, fan_in(width))
        self.out = param(rngs, (*shape[1:], width), ("heads", None, "embed"), fan_in(width))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        q_BLHK = self._features(project("bld,dhk->blhk", x_BLD, self.q))
        k_BLHK = self._features(project("bld,dhk->blhk", x_BLD, self.k))
        v_BLHP = project("bld,dhp->blhp", x_BLD, self.v)
        v1_BLHP = jnp.concatenate([v_BLHP, jnp.ones_like(v_BLHP[..., :1])], axis=-1)
        y1_BLHP, kv = ssd(
            q_BLHK,
            k_BLHK,
            v1_BLHP,
            resets_BL=ctx.resets_BL(None if state is None else state["segment"]),
            initial_state_BHNP=None if state is None else state["kv"],
            chunk_size=self.config.chunk_size,
            implementation=ctx.implementation.ssd,
        )
        y_BLHP = (y1_BLHP[..., :-1] / (y1_BLHP[..., -1:] + _EPSILON)).astype(x_BLD.dtype)
        y_BLD = project("blhp,hpd->bld", y_BLHP, self.out)
        return y_BLD, {"kv": kv, "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        shape = (batch, self.config.heads, self.head_dim, self.head_dim + 1)
        return {
            "kv": jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }

    def _features(self, x_BLHK: jax.Array) -> jax.Array:
        if self.config.feature_map == "relu":
            return jax.nn.relu(x_BLHK)
        # elu(x) + 1, which is exp(x) for x < 0: adding 1 there would lose what is small.
        return jnp.where(x_BLHK > 0, x_BLHK + 1, jnp.exp(jnp.where(x_BLHK > 0, 0, x_BLHK)))
