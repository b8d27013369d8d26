"""S4: a state space per channel whose matrix is normal plus low rank."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.s4 import discretise, kernel, s4, two_sided
from hybrid_lm.kernels.time_invariant import finish
from hybrid_lm.layers import fan_in, gated_linear_unit, param
from hybrid_lm.mixers.base import CONTINUES, NO_STATE, Context, MixerConfig, State, register
from hybrid_lm.mixers.steps import log_uniform_steps


@register("s4")
@dataclass(frozen=True)
class S4(MixerConfig):
    """``h' = (diag(a) - p p^*) h + B u``, ``y = 2 Re(C h) + D u``, bilinear with step d.

    Starts as HiPPO-LegS in the basis of its normal part, one state space per channel; then GELU
    and a gated linear unit mix the channels. Gu et al. 2022 (arXiv 2111.00396), theorem 1 and
    appendix C. Its convolution is cut in chunks that hand their state on, for a Fourier transform
    of the row would let later tokens into the last bits of earlier outputs.
    """

    state_size: int = 64
    """N; half as many complex conjugate pairs are stored."""
    chunk_size: int = 128
    """Tokens that one convolution handles."""
    causal: bool = True
    """Whether nothing later is seen. False: two kernels, one for each direction; rows of one
    document by FFT, packed ones by two passes in chunks."""

    def build(self, width: int, rngs: nnx.Rngs) -> "S4Mixer":
        if self.state_size < 2 or self.state_size % 2:
            raise UserError(f"s4: state_size {self.state_size} must be even and at least 2")
        return S4Mixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        # Per complex state of a step: two complex products with reals added (12), their sums and
        # the read-out (10).
        scan = 22 * width * self.state_size / 2
        if not self.causal:
            # Three real transforms of twice the length for one product of spectra.
            scan = width * (3 * 5 * math.log2(2 * length) + 6)
        return scan + 4 * width * width

    def is_causal(self) -> bool:
        return self.causal


class S4Mixer(nnx.Module):
    """State: ``ssm`` [B, D, N / 2] in complex64, ``segment`` [B]; none if not causal."""

    def __init__(self, config: S4, width: int, rngs: nnx.Rngs):
        self.config = config
        self.width = width
        shape = (width, config.state_size // 2)

        def log_steps(key, shape, dtype):
            return jnp.log(log_uniform_steps(key, shape)).astype(dtype)

        def vector(init):
            return param(rngs, shape, ("inner", None), init, decay=False)

        def constant(values_N):
            return lambda key, shape, dtype: jnp.broadcast_to(jnp.asarray(values_N, dtype), shape)

        a_N, p_N, b_N = hippo_legs(config.state_size)
        normal = nnx.initializers.normal(0.5**0.5)
        self.log_step = param(rngs, (width,), ("inner",), log_steps, decay=False)
        self.log_minus_a_real = vector(constant(np.log(-np.real(a_N))))
        self.a_imag = vector(constant(np.imag(a_N)))
        self.p_real, self.p_imag = vector(constant(np.real(p_N))), vector(constant(np.imag(p_N)))
        self.b_real, self.b_imag = vector(constant(np.real(b_N))), vector(constant(np.imag(b_N)))
        self.c_real, self.c_imag = vector(normal), vector(normal)
        if not config.causal:
            self.back_real, self.back_imag = vector(normal), vector(normal)
        self.skip = param(rngs, (width,), ("inner",), nnx.initializers.ones, decay=False)
        self.out = param(rngs, (width, width), ("inner", "embed"), fan_in(width))
        self.gate = param(rngs, (width, width), ("inner", "embed"), fan_in(width))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        def vector(name):
            return jax.lax.complex(
                getattr(self, f"{name}_real")[...], getattr(self, f"{name}_imag")[...]
            )

        a_DN = jax.lax.complex(-jnp.exp(self.log_minus_a_real[...]), self.a_imag[...])
        step_D = jnp.exp(self.log_step[...])
        system = a_DN, vector("p"), vector("b")

        def scan(c, x_BLD, resets_BL, h_BDN=None, **finish):
            return s4(
                x_BLD,
                discretise(*system, vector(c), step_D),
                resets_BL,
                h_BDN,
                chunk_size=self.config.chunk_size,
                implementation=ctx.implementation.s4,
                **finish,
            )

        if self.config.causal:
            resets_BL = ctx.resets_BL(None if state is None else state["segment"])
            h_BDN = None if state is None else state["ssm"]
            y_BLD, ssm = scan("c", x_BLD, resets_BL, h_BDN, skip_D=self.skip[...], gelu=True)
            next_state = {"ssm": ssm, "segment": ctx.last_segment_B()}
        elif state is None:
            starts_BL, next_state = ctx.resets_BL(None), ()
            if starts_BL is None:
                length = x_BLD.shape[1]
                kernels = (kernel(*system, vector(c), step_D, length) for c in ("c", "back"))
                y_BLD = two_sided(x_BLD.astype(step_D.dtype), *kernels)
            else:
                # The other way round a document starts where it ends, which is before a start.
                ends_BL = jnp.roll(starts_BL, -1, axis=1)
                later_BLD, _ = scan("back", x_BLD[:, ::-1], ends_BL[:, ::-1])
                later_BLD = jnp.roll(later_BLD[:, ::-1], -1, axis=1)
                y_BLD, _ = scan("c", x_BLD, starts_BL)
                y_BLD += jnp.where(ends_BL[..., None], 0, later_BLD)
        else:
            raise UserError(NO_STATE)
        if not self.config.causal:
            y_BLD = finish(y_BLD, x_BLD, self.skip[...], gelu=True)
        return gated_linear_unit(y_BLD, self.out, self.gate), next_state

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        if not self.config.causal:
            return ()
        shape = (batch, self.width, self.config.state_size // 2)
        return {
            "ssm": jnp.zeros(shape, jnp.promote_types(dtype, jnp.complex64)),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }


def hippo_legs(state_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """a, p and B of HiPPO-LegS, ``A = V (diag(a) - p p^*) V^*``, one of each conjugate pair.

    Equation 2 and appendix C.1 of Gu et al. 2022 (arXiv 2111.00396): A + P P^T is -1/2 I plus a
    skew-symmetric matrix, for ``P_n = sqrt(n + 1/2)``.
    """
    root_N = np.sqrt(2 * np.arange(state_size) + 1)
    lower_NN = np.tril(np.outer(root_N, root_N), -1)
    frequencies_N, v_NN = np.linalg.eigh(-1j * (lower_NN.T - lower_NN) / 2)
    half = frequencies_N > 0
    to_basis_NN = v_NN[:, half].conj().T
    return (
        -0.5 + 1j * frequencies_N[half],
        to_basis_NN @ (root_N / 2**0.5),
        to_basis_NN @ root_N,
    )
