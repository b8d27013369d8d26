"""Gated DeltaNet: the delta rule with a decay, as in Qwen3-Next."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.delta_rule import delta_rule
from hybrid_lm.layers import RMSNorm, fan_in, param, project
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, per_head, register
from hybrid_lm.mixers.delta import DeltaInputs
from hybrid_lm.mixers.steps import step_bias


@register("gated_delta")
@dataclass(frozen=True)
class GatedDelta(MixerConfig):
    """``S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T``, per head.

    q, k and v as in `Delta`; ``a = exp(-A softplus(. + bias))``, ``b = sigmoid(.)``; the output is
    ``out(norm(S_t^T q_t) * silu(z))``. Yang et al. 2024 (arXiv 2412.06464), sections 3.1 to 3.4.
    """

    heads: int = 8
    """Heads; must divide the width."""
    expand: int = 2
    """Value channels of a head / its key channels."""
    conv_width: int = 4
    """Taps of the causal convolutions."""
    chunk_size: int = 64
    """Tokens that one matrix product handles."""

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


class GatedDeltaMixer(nnx.Module):
    """State: ``conv`` [B, W - 1, H (2 K + P)] inputs, ``kv`` [B, H, K, P], at least float32,
    ``segment`` [B].
    """

    def __init__(self, config: GatedDelta, width: int, rngs: nnx.Rngs):
        self.config = config
        heads = config.heads
        self.key_dim = key_dim = per_head(config.key, heads, width)
        self.value_dim = value_dim = config.expand * key_dim
        self.inputs = DeltaInputs(width, heads, key_dim, value_dim, config.conv_width, rngs=rngs)
        by_heads = (width, heads), ("embed", "heads"), fan_in(width)
        self.beta = param(rngs, *by_heads)
        self.step = param(rngs, *by_heads)
        self.step_bias = param(rngs, (heads,), ("heads",), step_bias, decay=False)
        self.log_a = param(rngs, (heads,), ("heads",), _log_a, decay=False)
        shape = (width, heads, value_dim)
        self.z = param(rngs, shape, ("embed", "heads", None), fan_in(width))
        self.norm = RMSNorm(value_dim, None, rngs)
        shape = (heads, value_dim, width)
        self.out = param(rngs, shape, ("heads", None, "embed"), fan_in(heads * value_dim))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        resets_BL = ctx.resets_BL(None if state is None else state["segment"])
        past = None if state is None else state["conv"]
        (q_BLHK, k_BLHK, v_BLHP), conv = self.inputs(x_BLD, resets_BL, past)
        wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
        step_BLH = project("bld,dh->blh", x_BLD, self.step).astype(wide)
        step_BLH = jax.nn.softplus(step_BLH + self.step_bias[...])
        y_BLHP, kv = delta_rule(
            q_BLHK,
            k_BLHK,
            v_BLHP,
            jax.nn.sigmoid(project("bld,dh->blh", x_BLD, self.beta).astype(wide)),
            -step_BLH * jnp.exp(self.log_a[...]),
            resets_BL,
            None if state is None else state["kv"],
            chunk_size=self.config.chunk_size,
            implementation=ctx.implementation.delta_rule,
        )
        y_BLHP = self.norm(y_BLHP).astype(x_BLD.dtype)
        y_BLHP *= jax.nn.silu(project("bld,dhp->blhp", x_BLD, self.z))
        y_BLD = project("blhp,hpd->bld", y_BLHP, self.out)
        return y_BLD, {"conv": conv, "kv": kv, "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        shape = (batch, self.config.heads, self.key_dim, self.value_dim)
        return {
            "conv": self.inputs.initial_state(batch, dtype),
            "kv": jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }


def _log_a(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """A uniform in [0.01, 16], stored as its log (the reference initialisation, but for 0)."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 0.01, 16.0))
