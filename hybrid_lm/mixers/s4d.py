"""S4D: a diagonal state space per channel, the same at every token."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.diagonal_scan import s4d_scan
from hybrid_lm.layers import fan_in, gated_linear_unit, param
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, register
from hybrid_lm.mixers.steps import log_uniform_steps


@register("s4d")
@dataclass(frozen=True)
class S4D(MixerConfig):
    """``h' = A h + B u``, ``y = 2 Re(C h) + D u``, discretised with step d (zero-order hold).

    A is diagonal and complex, one state space per channel; then GELU and a gated linear unit mix
    the channels. Gu et al. 2022 (arXiv 2206.11893), equations 2 to 4 and section 4.
    """

    state_size: int = 64
    """N; half as many complex conjugate pairs are stored."""
    initial: Literal["legs", "lin", "inv"] = "legs"
    """Start of A: HiPPO-LegS's diagonal part, S4D-Lin or S4D-Inv."""
    chunk_size: int = 32
    """Tokens whose outputs one Toeplitz matrix per channel gives."""

    def build(self, width: int, rngs: nnx.Rngs) -> "S4DMixer":
        if self.state_size < 2 or self.state_size % 2:
            raise UserError(f"s4d: state_size {self.state_size} must be even and at least 2")
        return S4DMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        # Per complex state: complex product and real addition (7), real part of a product (4).
        return 11 * width * self.state_size / 2 + 4 * width * width


class S4DMixer(nnx.Module):
    """State: ``ssm`` [B, D, N / 2] in complex64; ``segment`` [B]."""

    def __init__(self, config: S4D, width: int, rngs: nnx.Rngs):
        self.config = config
        self.width = width
        pairs = config.state_size // 2
        a_N = initial_a(config.initial, config.state_size)

        def constant(values_N):
            return lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(values_N, dtype), shape)

        def log_steps(key, shape, dtype):
            return jnp.log(log_uniform_steps(key, shape)).astype(dtype)

        by_state = ("inner", None)
        normal = nnx.initializers.normal(0.5**0.5)
        shape = (width, pairs)
        self.log_step = param(rngs, (width,), ("inner",), log_steps, decay=False)
        self.log_minus_a_real = param(
            rngs, shape, by_state, constant(np.log(-np.real(a_N))), decay=False
        )
        self.a_imag = param(rngs, shape, by_state, constant(np.imag(a_N)), decay=False)
        self.c_real = param(rngs, shape, by_state, normal, decay=False)
        self.c_imag = param(rngs, shape, by_state, normal, decay=False)
        self.skip = param(rngs, (width,), ("inner",), nnx.initializers.ones, decay=False)
        self.out = param(rngs, (width, width), ("inner", "embed"), fan_in(width))
        self.gate = param(rngs, (width, width), ("inner", "embed"), fan_in(width))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        a_DN = jax.lax.complex(-jnp.exp(self.log_minus_a_real[...]), self.a_imag[...])
        log_decay_DN = jnp.exp(self.log_step[...])[:, None] * a_DN
        b_DN = jnp.expm1(log_decay_DN) / a_DN
        y_BLD, ssm = s4d_scan(
            x_BLD,
            log_decay_DN,
            jax.lax.complex(self.c_real[...], self.c_imag[...]) * b_DN,
            ctx.resets_BL(None if state is None else state["segment"]),
            None if state is None else state["ssm"],
            skip_D=self.skip[...],
            gelu=True,
            chunk_size=self.config.chunk_size,
            implementation=ctx.implementation.s4d_scan,
        )
        y_BLD = gated_linear_unit(y_BLD, self.out, self.gate)
        return y_BLD, {"ssm": ssm, "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        shape = (batch, self.width, self.config.state_size // 2)
        return {
            "ssm": jnp.zeros(shape, jnp.promote_types(dtype, jnp.complex64)),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }


def initial_a(initial: str, state_size: int) -> np.ndarray:
    """The N/2 complex eigenvalues A starts from, one of each conjugate pair.

    ``lin``: -1/2 + i pi n. ``inv``: -1/2 + i N/pi (N/(2n+1) - 1). ``legs``: eigenvalues of the
    normal part of HiPPO-LegS. Gu et al. 2022 (arXiv 2206.11893), equations 7 to 9.
    """
    pairs = np.arange(state_size // 2)
    if initial == "lin":
        return -0.5 + 1j * np.pi * pairs
    if initial == "inv":
        return -0.5 + 1j * state_size / np.pi * (state_size / (2 * pairs + 1) - 1)
    # LegS plus its rank-1 correction is -1/2 I + S with S skew-symmetric.
    root = np.sqrt(2 * np.arange(state_size) + 1)
    lower = np.tril(np.outer(root, root), -1)
    skew = (lower.T - lower) / 2
    frequencies = np.linalg.eigvalsh(-1j * skew)
    return -0.5 + 1j * np.sort(frequencies[frequencies > 0])
