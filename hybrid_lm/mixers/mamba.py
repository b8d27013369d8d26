"""Mamba: a selective state space with a gate and a short convolution."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.causal_conv import causal_conv
from hybrid_lm.kernels.diagonal_scan import selective_scan
from hybrid_lm.layers import fan_in, param, project, symmetric_uniform
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, register
from hybrid_lm.mixers.steps import step_bias


@register("mamba")
@dataclass(frozen=True)
class Mamba(MixerConfig):
    """``h_t = exp(d_t A) h_{t-1} + d_t B_t u_t``, ``y_t = (C_t . h_t + D u_t) * silu(z_t)``.

    ``u = silu(conv(x))`` with E = expand * width channels, ``d = softplus(.)``; d, B and C are
    projections of u. Gu & Dao 2023 (arXiv 2312.00752), sections 3.2 to 3.6.
    """

    state_size: int = 16
    """N, states per channel."""
    expand: int = 2
    """E / width."""
    conv_width: int = 4
    """Taps of the causal convolution."""
    step_rank: int | None = None
    """Rank of the projection to step sizes. None: width / 16, rounded up."""
    chunk_size: int = 32
    """Tokens a chunk of the XLA scan takes one by one."""

    def build(self, width: int, rngs: nnx.Rngs) -> "MambaMixer":
        return MambaMixer(self, width, rngs)

    def resolved_step_rank(self, width: int) -> int:
        """Rank of the projection to step sizes for a model width."""
        return self.step_rank or math.ceil(width / 16)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        inner, rank = self.expand * width, self.resolved_step_rank(width)
        projections = 3 * width + self.conv_width + 2 * rank + 2 * self.state_size
        # Per state: exponent, exp, two products of the write, multiply-add, read-out.
        return 2 * inner * projections + 8 * inner * self.state_size


class MambaMixer(nnx.Module):
    """State: ``conv`` [B, W - 1, E] inputs, ``ssm`` [B, E, N] in float32, ``segment`` [B]."""

    def __init__(self, config: Mamba, width: int, rngs: nnx.Rngs):
        self.config = config
        self.inner = inner = config.expand * width
        self.rank = rank = config.resolved_step_rank(width)
        states, taps = config.state_size, config.conv_width
        by_taps = symmetric_uniform(taps**-0.5)
        by_rank = symmetric_uniform(rank**-0.5)
        into, by_inner = ("embed", "inner"), ("inner",)
        self.x = param(rngs, (width, inner), into, fan_in(width))
        self.z = param(rngs, (width, inner), into, fan_in(width))
        self.conv = param(rngs, (taps, inner), (None, "inner"), by_taps)
        self.conv_bias = param(rngs, (inner,), by_inner, by_taps, decay=False)
        self.select = param(rngs, (inner, rank + 2 * states), ("inner", None), fan_in(inner))
        self.step = param(rngs, (rank, inner), (None, "inner"), by_rank, decay=False)
        self.step_bias = param(rngs, (inner,), by_inner, step_bias, decay=False)
        self.log_a = param(rngs, (inner, states), ("inner", None), _s4d_real, decay=False)
        self.skip = param(rngs, (inner,), by_inner, nnx.initializers.ones, decay=False)
        self.out = param(rngs, (inner, width), ("inner", "embed"), fan_in(inner))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        resets_BL = ctx.resets_BL(None if state is None else state["segment"])
        u_BLE = project("bld,de->ble", x_BLD, self.x)
        u_BLE, conv = causal_conv(
            u_BLE,
            self.conv[...],
            self.conv_bias[...],
            resets_BL,
            None if state is None else state["conv"],
            silu=True,
            implementation=ctx.implementation.causal_conv,
        )
        select = project("ble,er->blr", u_BLE, self.select)
        step_BLR, b_BLN, c_BLN = jnp.split(
            select, [self.rank, self.rank + self.config.state_size], axis=-1
        )
        y_BLE, ssm = selective_scan(
            u_BLE,
            project("blr,re->ble", step_BLR, self.step),
            -jnp.exp(self.log_a[...]),
            b_BLN,
            c_BLN,
            resets_BL,
            None if state is None else state["ssm"],
            step_bias_E=self.step_bias[...],
            skip_E=self.skip[...],
            gate_BLE=project("bld,de->ble", x_BLD, self.z),
            out_dtype=x_BLD.dtype,
            chunk_size=self.config.chunk_size,
            implementation=ctx.implementation.selective_scan,
        )
        y_BLD = project("ble,ed->bld", y_BLE, self.out)
        return y_BLD, {"conv": conv, "ssm": ssm, "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        wide = jnp.promote_types(dtype, jnp.float32)
        return {
            "conv": jnp.zeros((batch, self.config.conv_width - 1, self.inner), dtype),
            "ssm": jnp.zeros((batch, self.inner, self.config.state_size), wide),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }


def _s4d_real(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """S4D-Real: A_n = -(n + 1), stored as log(-A) (arXiv 2312.00752, section 3.6)."""
    del key
    return jnp.broadcast_to(jnp.log(jnp.arange(1, shape[1] + 1, dtype=dtype)), shape)
