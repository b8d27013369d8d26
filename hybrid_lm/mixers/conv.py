"""Gated short convolution."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.causal_conv import causal_conv
from hybrid_lm.layers import fan_in, param, project, symmetric_uniform
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, register


@register("conv")
@dataclass(frozen=True)
class Conv(MixerConfig):
    """``B, C, u = in(x)``, ``y = out(C * conv(B * u))``: a depthwise convolution between two gates.

    The short-range operator of LFM2 (Liquid AI 2025, arXiv 2511.23404, section 2); H3 (Fu et al.
    2022, arXiv 2212.14052, section 3) gates the same shift by the token before it.
    """

    conv_width: int = 3
    """Taps of the causal convolution."""

    def build(self, width: int, rngs: nnx.Rngs) -> "ConvMixer":
        return ConvMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        return 8 * width * width + 2 * (self.conv_width + 1) * width


class ConvMixer(nnx.Module):
    """State: ``past`` [B, W - 1, D], the last gated inputs; ``segment`` [B]."""

    def __init__(self, config: Conv, width: int, rngs: nnx.Rngs):
        self.config = config
        self.width = width
        shape, taps = (width, 3, width), config.conv_width
        self.inputs = param(rngs, shape, ("embed", None, "inner"), fan_in(width))
        by_taps = symmetric_uniform(taps**-0.5)
        self.conv = param(rngs, (taps, width), (None, "inner"), by_taps)
        self.out = param(rngs, (width, width), ("inner", "embed"), fan_in(width))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        bcu_BL3D = project("bld,dne->blne", x_BLD, self.inputs)
        b_BLD, c_BLD, u_BLD = (bcu_BL3D[:, :, part] for part in range(3))
        y_BLD, past = causal_conv(
            b_BLD * u_BLD,
            self.conv[...],
            None,
            ctx.resets_BL(None if state is None else state["segment"]),
            None if state is None else state["past"],
            implementation=ctx.implementation.causal_conv,
        )
        y_BLD = project("ble,ed->bld", c_BLD * y_BLD, self.out)
        return y_BLD, {"past": past, "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        return {
            "past": jnp.zeros((batch, self.config.conv_width - 1, self.width), dtype),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }
