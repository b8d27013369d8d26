"""What a chunk of tokens does in S4, from parameters alone, by powers of the diagonal part.

Of ``A = diag(l) - d w^T``, with the numbers ``m_i = w diag(l)^i d``, one power series has all that
the low-rank part adds, ``t(z) = 1 / (1 + z m(z))``: by Woodbury's identity for ``1 / (1 - z A)``,

    A^i d = sum_{k<=i} t_{i-k} l^k d       A^i b = l^i b - sum_{k<i} (w A^k b) l^{i-1-k} d
    w A^i b = sum_{k<=i} t_{i-k} w l^k b   A^C = diag(l)^C - sum_{k<C} (A^k d) (w l^{C-1-k})

and c A^i from the other side. No power of a matrix, no step per token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.kernels.s4.system import System
from hybrid_lm.kernels.toeplitz import lower_toeplitz

_SIDE = 8


class Chunk(NamedTuple):
    """Real, on states [Re h; Im h] of M numbers.

    ``taps_DC``: C A^i B; ``reach_DCM``: A^i B; ``read_DCM``: C A^(i+1); ``across_DMM``: A^C
    (from, to).
    """

    taps_DC: jax.Array
    reach_DCM: jax.Array
    read_DCM: jax.Array
    across_DMM: jax.Array


def chunk(system: System, size: int, *, exact: bool = True) -> Chunk:
    """Of ``size`` tokens; products of matrices not ``exact``: see `einsum_f32`."""
    l_DN, d_DN, w_DN, b_DN, c_DN = system
    powers_DCN = powers(l_DN, size)
    pairs = jnp.stack([_row(x * y) for x in (w_DN, c_DN) for y in (d_DN, b_DN)], axis=1)
    scalars = einsum_f32("dqm,dim->dqi", pairs, _column(powers_DCN))
    m_DC, w_b_DC, c_d_DC, c_b_DC = jnp.moveaxis(scalars, 1, 0)  # w l^i d, w l^i b, ...

    t_DCC = toeplitz(reciprocal(_later(m_DC).at[:, 0].add(1.0)))

    def combine(toeplitz_DCi, x_DCM):
        return einsum_f32("dji,djm->dim", toeplitz_DCi, x_DCM, exact=exact)

    w_a_b_DC, c_a_d_DC = multiply(t_DCC, w_b_DC), multiply(t_DCC, c_d_DC)  # w A^i b, c A^i d
    by_c_a_d_DCC = toeplitz(c_a_d_DC)
    taps_DC = c_b_DC - _later(multiply(by_c_a_d_DCC, w_b_DC))

    d_DCM = _column(powers_DCN * d_DN[:, None])
    w_DCM = _row(powers_DCN * w_DN[:, None])
    both_DCi = jnp.concatenate([toeplitz(_later(w_a_b_DC)), t_DCC], axis=2)
    of_b_DCM, a_d_DCM = jnp.split(combine(both_DCi, d_DCM), 2, axis=1)
    reach_DCM = _column(powers_DCN * b_DN[:, None]) - of_b_DCM
    read_DCM = _row(powers_DCN * (c_DN * l_DN)[:, None]) - combine(by_c_a_d_DCC, w_DCM)
    low_rank_DMM = einsum_f32("dim,dil->dml", w_DCM[:, ::-1], a_d_DCM, exact=exact)
    across_DMM = _diagonal(powers_DCN[:, -1] * l_DN) - low_rank_DMM
    return Chunk(taps_DC, reach_DCM, read_DCM, across_DMM)


def _row(x):
    """``2 Re(x . h)`` as a product with [Re h; Im h]."""
    return 2 * jnp.concatenate([x.real, -x.imag], axis=-1)


def _column(x):
    return jnp.concatenate([x.real, x.imag], axis=-1)


def _diagonal(x_DN):
    """``h -> x h`` as a matrix (from, to)."""
    eye_NN = jnp.eye(x_DN.shape[1], dtype=x_DN.real.dtype)
    real_DNN, imag_DNN = x_DN.real[:, None] * eye_NN, x_DN.imag[:, None] * eye_NN
    return jnp.block([[real_DNN, imag_DNN], [-imag_DNN, real_DNN]])


def powers(x_DN: jax.Array, count: int) -> jax.Array:
    """``x^i`` for i < count, [D, count, N]; by a few products each, so that few roundings add."""

    def first(x_DN, count):
        found = [jnp.ones_like(x_DN), x_DN]
        while len(found) <= count:
            found.append(found[len(found) // 2] * found[(len(found) + 1) // 2])
        return jnp.stack(found[:count], axis=1), found[count]

    side = min(_SIDE, count)
    fine_DiN, next_DN = first(x_DN, side)
    coarse_DjN, _ = first(next_DN, -(-count // side))
    powers_DjiN = coarse_DjN[:, :, None] * fine_DiN[:, None]
    return powers_DjiN.reshape(x_DN.shape[0], -1, x_DN.shape[1])[:, :count]


def _later(x_DC):
    """``z x(z)``."""
    return jnp.pad(x_DC, ((0, 0), (1, 0)))[:, :-1]


def toeplitz(x_DC: jax.Array) -> jax.Array:
    """[D, j, i]: ``x_{i-j}``, 0 where i < j: multiplies power series by x(z)."""
    return jax.vmap(lambda x_C: lower_toeplitz(x_C[:, None])[..., 0])(x_DC)


def multiply(x_DCC: jax.Array, y_DC: jax.Array) -> jax.Array:
    """``x(z) y(z)`` of power series, the first of them as `toeplitz`."""
    return jnp.sum(x_DCC * y_DC[:, :, None], axis=1)


@jax.custom_vjp
def reciprocal(x_DC: jax.Array) -> jax.Array:
    """``1 / x(z)`` of power series with ``x_0 = 1``, by Newton's method."""
    known, length = 1, x_DC.shape[1]
    t_DC = jnp.ones_like(x_DC[:, :1])
    while known < length:
        size = min(2 * known, length)
        t_DC = jnp.pad(t_DC, ((0, 0), (0, size - known)))
        t_DCC = toeplitz(t_DC)
        t_DC = 2 * t_DC - multiply(t_DCC, multiply(t_DCC, x_DC[:, :size]))
        known = size
    return t_DC


def _reciprocal_forward(x_DC):
    t_DC = reciprocal(x_DC)
    return t_DC, t_DC


def _reciprocal_backward(t_DC, cotangent_DC):
    # dt(z) = -t(z) dx(z) t(z).
    t_DCC = toeplitz(t_DC)
    for _ in range(2):
        cotangent_DC = jnp.sum(t_DCC * cotangent_DC[:, None], axis=2)
    return (-cotangent_DC,)


reciprocal.defvjp(_reciprocal_forward, _reciprocal_backward)
