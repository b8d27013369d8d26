"""S4D and S4, alone and as layers: there also by Fourier transforms of whole rows.

That is the papers' form (Gu et al. 2022, arXiv 2111.00396 and 2206.11893), which is no
implementation of the operations: the rounding of later tokens reaches earlier outputs.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_lm.bench.case import Case, normal
from hybrid_lm.kernels.diagonal_scan import s4d_scan
from hybrid_lm.kernels.long_conv.circular import circular
from hybrid_lm.kernels.s4 import discretise, kernel, s4
from hybrid_lm.kernels.time_invariant import finish
from hybrid_lm.layers import gated_linear_unit
from hybrid_lm.mixers.s4 import hippo_legs

_FINE = 128  # tokens of the fine powers of a row's taps


def s4d_case(batch: int, length: int, width: int, pairs: int, *, layer: bool = False) -> Case:
    """Of B, L, D and N / 2; ``layer``: with what the mixer does after it."""

    def run(
        u_BLD,
        log_rate_DN,
        frequency_DN,
        c_real_DN,
        c_imag_DN,
        *rest,
        implementation,
        projects=layer,
    ):
        log_decay_DN = jax.lax.complex(-jnp.exp(log_rate_DN - 4), frequency_DN)
        # A layer's outputs are of the size of 1, where GELU and gate are neither 0 nor linear.
        c_DN = jax.lax.complex(c_real_DN, c_imag_DN) / (64 if layer else 1)

        def scan(**how):
            if implementation == "fft":
                taps_LD = _taps(log_decay_DN, c_DN, u_BLD.shape[1])
                return _by_fft(u_BLD, taps_LD, **how)
            return s4d_scan(u_BLD, log_decay_DN, c_DN, implementation=implementation, **how)[0]

        return _layer(scan, projects, *rest) if layer else scan().astype(u_BLD.dtype)

    def operands(scale):
        (u_BLD,) = normal((batch, length // scale, width))
        return u_BLD, *normal(*[(width, pairs)] * 4, dtype=jnp.float32), *_after(layer, width)

    # A complex product, a real sum, and the real part of a product, per state.
    return _case(run, operands, 11 * pairs, batch * length * width, layer and width)


def s4_case(batch: int, length: int, width: int, pairs: int, *, layer: bool = False) -> Case:
    """As `s4d_case`."""
    legs = [jnp.asarray(v_N, jnp.complex64) for v_N in hippo_legs(2 * pairs)]

    def run(u_BLD, log_step_D, c_real_DN, c_imag_DN, *rest, implementation, projects=layer):
        a_DN, p_DN, b_DN = (jnp.broadcast_to(v_N, (width, pairs)) for v_N in legs)
        c_DN, step_D = jax.lax.complex(c_real_DN, c_imag_DN), jnp.exp(log_step_D / 2 - 5)

        def scan(**how):
            if implementation == "fft":
                taps_LD = kernel(a_DN, p_DN, b_DN, c_DN, step_D, u_BLD.shape[1])
                return _by_fft(u_BLD, taps_LD, **how)
            system = discretise(a_DN, p_DN, b_DN, c_DN, step_D)
            return s4(u_BLD, system, implementation=implementation, **how)[0]

        return _layer(scan, projects, *rest) if layer else scan().astype(u_BLD.dtype)

    def operands(scale):
        (u_BLD,) = normal((batch, length // scale, width))
        shapes = (width,), (width, pairs), (width, pairs)
        return u_BLD, *normal(*shapes, dtype=jnp.float32), *_after(layer, width)

    # S4D's, and a product of a row and one of a column with the states.
    return _case(run, operands, 22 * pairs, batch * length * width, layer and width)


def _case(run, operands, flops, channels, projected):
    flops = (flops + 4.0 * projected) * channels
    if not projected:
        return Case(run, operands, ("pallas", "xla"), flops)
    # The projections round to bf16 several times in a row, and are the same in all forms.
    return Case(run, operands, ("pallas", "xla", "fft"), flops, partial(run, projects=False))


def _after(layer, width):
    """Skip and projections."""
    return normal((width,), (width, width), (width, width), dtype=jnp.float32) if layer else ()


def _layer(scan, projects, skip_D, out_ED, gate_ED):
    y_BLD = scan(skip_D=skip_D, gelu=True)
    if not projects:
        return y_BLD
    out, gate = (nnx.Param(weight_ED / len(weight_ED) ** 0.5) for weight_ED in (out_ED, gate_ED))
    return gated_linear_unit(y_BLD, out, gate)


def _taps(log_decay_DN, c_DN, length):
    """``2 Re(c exp(log_decay)^t)`` for t < L, [L, D]: never [L, D, N]."""

    def powers(count, step):
        tokens = step * jnp.arange(count, dtype=jnp.float32)
        return jnp.exp(tokens[:, None, None] * log_decay_DN)

    fine, coarse = c_DN * powers(_FINE, 1), powers(length // _FINE, _FINE)
    real, imag = (
        jnp.einsum("adn,bdn->abd", part(coarse), part(fine), precision="highest")
        for part in (jnp.real, jnp.imag)
    )
    return 2 * (real - imag).reshape(length, -1)


def _by_fft(u_BLD, taps_LD, skip_D, gelu):
    length = u_BLD.shape[1]
    u_BDL = u_BLD.astype(jnp.float32).swapaxes(1, 2)
    y_BDL: jax.Array = circular(u_BDL, taps_LD.T[None], 2 * length)
    return finish(y_BDL[..., :length].swapaxes(1, 2), u_BLD, skip_D, gelu=gelu)
