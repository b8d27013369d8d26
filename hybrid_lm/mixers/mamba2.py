"""Mamba-2: state-space duality with scalar decays per head."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels import precision
from hybrid_lm.kernels.causal_conv import causal_conv
from hybrid_lm.kernels.gated_norm import gated_norm
from hybrid_lm.kernels.remat import keep
from hybrid_lm.kernels.ssd import ssd
from hybrid_lm.layers import RMSNorm, fan_in, param, project, symmetric_uniform
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, register
from hybrid_lm.mixers.steps import step_bias


@register("mamba2")
@dataclass(frozen=True)
class Mamba2(MixerConfig):
    """``S_t = exp(d_t a) S_{t-1} + B_t (d_t x_t)^T``, ``y_t = S_t^T C_t + D x_t``, per head.

    x, B and C pass a short convolution and silu, ``d = softplus(.)``; the output is
    ``out(norm(y * silu(z)))``. Dao & Gu 2024 (arXiv 2405.21060), sections 6 and 7.
    """

    state_size: int = 128
    """N, rows of a head's state."""
    head_dim: int = 64
    """P, columns of a head's state; must divide expand * width."""
    groups: int = 1
    """Sets of B and C; must divide the heads."""
    expand: int = 2
    """Inner channels / width."""
    conv_width: int = 4
    """Taps of the causal convolution."""
    chunk_size: int = 128
    """Tokens that one matrix product handles."""

    def build(self, width: int, rngs: nnx.Rngs) -> "Mamba2Mixer":
        return Mamba2Mixer(self, width, rngs)

    def heads(self, width: int) -> int:
        """Heads for a model width."""
        inner = self.expand * width
        if inner % self.head_dim:
            raise UserError(
                f"mamba2: head_dim {self.head_dim} does not divide expand * width = {inner}"
            )
        heads = inner // self.head_dim
        if heads % self.groups:
            raise UserError(f"mamba2: groups {self.groups} does not divide {heads} heads")
        return heads

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        inner, select = self.expand * width, 2 * self.groups * self.state_size
        projections = width * (3 * inner + select + self.heads(width))
        # Per entry of the state: decay, multiply-add of the write, multiply-add of the read-out.
        recurrence = 5 * inner * self.state_size
        return 2 * projections + 2 * self.conv_width * (inner + select) + recurrence


class Mamba2Mixer(nnx.Module):
    """State: ``conv_x`` [B, W - 1, E] and ``conv_bc`` [B, W - 1, 2 G N] inputs, ``ssm``
    [B, H, N, P] in float32, ``segment`` [B].
    """

    def __init__(self, config: Mamba2, width: int, rngs: nnx.Rngs):
        self.config = config
        self.heads = heads = config.heads(width)
        self.inner = inner = config.expand * width
        self.select = select = 2 * config.groups * config.state_size
        by_taps = symmetric_uniform(config.conv_width**-0.5)
        taps = config.conv_width
        self.x = param(rngs, (width, inner), ("embed", "inner"), fan_in(width))
        self.z = param(rngs, (width, inner), ("embed", "inner"), fan_in(width))
        self.bc = param(rngs, (width, select), ("embed", None), fan_in(width))
        self.step = param(rngs, (width, heads), ("embed", "heads"), fan_in(width))
        self.step_bias = param(rngs, (heads,), ("heads",), step_bias, decay=False)
        self.conv_x = param(rngs, (taps, inner), (None, "inner"), by_taps)
        self.conv_x_bias = param(rngs, (inner,), ("inner",), by_taps, decay=False)
        self.conv_bc = param(rngs, (taps, select), (None, None), by_taps)
        self.conv_bc_bias = param(rngs, (select,), (None,), by_taps, decay=False)
        self.log_a = param(rngs, (heads,), ("heads",), _log_a, decay=False)
        self.skip = param(rngs, (heads,), ("heads",), nnx.initializers.ones, decay=False)
        self.norm = RMSNorm(inner, "inner", rngs)
        self.out = param(rngs, (inner, width), ("inner", "embed"), fan_in(inner))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        config, (batch, length, _) = self.config, x_BLD.shape
        resets_BL = ctx.resets_BL(None if state is None else state["segment"])

        def conv(name: str, inputs: jax.Array, parts: tuple[int, ...] | None = None) -> Any:
            weight, bias = getattr(self, name), getattr(self, f"{name}_bias")
            return causal_conv(
                inputs,
                weight[...],
                bias[...],
                resets_BL,
                None if state is None else state[name],
                silu=True,
                parts=parts,
                implementation=ctx.implementation.causal_conv,
            )

        # A product takes in one addition to its result, but not to a sum of products, which is what
        # the cotangents of x would be: those of all but the first join it as one array.
        joined_BLD = jax.lax.optimization_barrier(x_BLD)
        x_BLE, conv_x = conv("conv_x", project("bld,de->ble", x_BLD, self.x))
        # One product: that of the few steps alone would still read and write all of x and dx.
        narrow_DS = jnp.concatenate([self.bc[...], self.step[...]], axis=1)
        narrow_BLS = precision.project("bld,ds->bls", joined_BLD, narrow_DS)
        narrow: Any = _with_last(narrow_BLS, self.select)
        narrow_BLS, step_BLH = narrow
        bc, conv_bc = conv("conv_bc", narrow_BLS, (self.select // 2,) * 2)
        shape = (batch, length, config.groups, config.state_size)
        b_BLGN, c_BLGN = (keep(a_BLS).reshape(shape) for a_BLS in bc)
        wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
        step_BLH = jax.nn.softplus(step_BLH.astype(wide) + self.step_bias[...])
        x_BLHP = x_BLE.reshape(batch, length, self.heads, config.head_dim)
        y_BLHP, ssm = ssd(
            c_BLGN,
            b_BLGN,
            x_BLHP,
            -step_BLH * jnp.exp(self.log_a[...]),
            resets_BL,
            None if state is None else state["ssm"],
            strength_BLH=step_BLH,
            skip_H=self.skip[...],
            chunk_size=config.chunk_size,
            implementation=ctx.implementation.ssd,
        )
        y_BLD = gated_norm(
            y_BLHP.astype(x_BLD.dtype).reshape(batch, length, self.inner),
            project("bld,de->ble", joined_BLD, self.z),
            self.norm.scale[...],
            self.out[...],
            implementation=ctx.implementation.gated_norm,
        )
        convs = {"conv_x": conv_x, "conv_bc": conv_bc}
        return y_BLD, convs | {"ssm": ssm, "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        config = self.config
        past = config.conv_width - 1
        state_shape = (batch, self.heads, config.state_size, config.head_dim)
        return {
            "conv_x": jnp.zeros((batch, past, self.inner), dtype),
            "conv_bc": jnp.zeros((batch, past, self.select), dtype),
            "ssm": jnp.zeros(state_shape, jnp.promote_types(dtype, jnp.float32)),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _with_last(x_BLS: jax.Array, first: int) -> tuple[jax.Array, jax.Array]:
    """x, of which nobody reads the columns from ``first`` on, and those columns.

    So one array takes both cotangents; their sum would be a pass over it.
    """
    return x_BLS, x_BLS[..., first:]


def _with_last_forward(x_BLS, first):
    return _with_last(x_BLS, first), None


def _with_last_backward(first, _, cotangents):
    dx_BLS, dlast_BLR = cotangents
    return (dx_BLS.at[..., first:].set(dlast_BLR),)


_with_last.defvjp(_with_last_forward, _with_last_backward)


def _log_a(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
    """-A uniform in [1, 16], stored as its log (the reference initialisation)."""
    return jnp.log(jax.random.uniform(key, shape, dtype, 1.0, 16.0))
