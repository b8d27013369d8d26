"""Gated DeltaNet: the delta rule with a decay, as in Qwen3-Next."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_lm.layers import fan_in, param, project
from hybrid_lm.mixers.base import register
from hybrid_lm.mixers.delta import Delta, DeltaMixer
from hybrid_lm.mixers.steps import step_bias


@register("gated_delta")
@dataclass(frozen=True)
class GatedDelta(Delta):
    """``S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T``, per head.

    q, k and v as in `Delta`; ``a = exp(-A softplus(. + bias))``, ``b = sigmoid(.)``; the output is
    ``out(norm(S_t^T q_t) * silu(z))``. Yang et al. 2024 (arXiv 2412.06464), sections 3.1 to 3.4.
    """

    expand: int = 2
    """Value channels of a head / its key channels."""

    def build(self, width: int, rngs: nnx.Rngs) -> "GatedDeltaMixer":
        return GatedDeltaMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        inner = self.expand * width
        projections = width * (2 * width + 3 * inner + 2 * self.heads)
        convolution = self.conv_width * (2 * width + inner)
        # Per entry of the state: decay, multiply-adds of what is found, the write, the read-out.
        recurrence = 7 * inner * (width // self.heads)
        return 2 * projections + 2 * convolution + recurrence


class GatedDeltaMixer(DeltaMixer):
    """State: that of `DeltaMixer`."""

    def __init__(self, config: GatedDelta, width: int, rngs: nnx.Rngs):
        super().__init__(config, width, rngs, expand=config.expand)
        heads = config.heads
        self.step = param(rngs, (width, heads), ("embed", "heads"), fan_in(width))
        self.step_bias = param(rngs, (heads,), ("heads",), step_bias, decay=False)
        self.log_a = param(rngs, (heads,), ("heads",), _log_a, decay=False)
        shape = (width, heads, self.value_dim)
        self.z = param(rngs, shape, ("embed", "heads", None), fan_in(width))

    def log_decay_BLH(self, x_BLD: jax.Array) -> jax.Array:
        wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
        step_BLH = project("bld,dh->blh", x_BLD, self.step).astype(wide)
        return -jax.nn.softplus(step_BLH + self.step_bias[...]) * jnp.exp(self.log_a[...])

    def gated(self, y_BLHP: jax.Array, x_BLD: jax.Array) -> jax.Array:
        return y_BLHP * jax.nn.silu(project("bld,dhp->blhp", x_BLD, self.z))


def _log_a(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """A uniform in [0.01, 16], stored as its log (the reference initialisation, but for 0)."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 0.01, 16.0))
