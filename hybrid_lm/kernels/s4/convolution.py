"""The convolution that a state space is, at once for a whole row."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.long_conv.circular import circular
from hybrid_lm.kernels.precision import einsum_f32, matrix_power
from hybrid_lm.kernels.s4.system import dense, discretise


def kernel(
    a_DN: jax.Array,
    p_DN: jax.Array,
    b_DN: jax.Array,
    c_DN: jax.Array,
    step_D: jax.Array,
    length: int,
) -> jax.Array:
    """``K_i = C A_bar^i B_bar`` for i < length: [L, D].

    The generating function of the truncated kernel at the roots of unity, where it is a Cauchy
    kernel corrected by Woodbury's identity, and its inverse Fourier transform. Algorithm 1 of Gu et
    al. 2022 (arXiv 2111.00396).
    """
    system = discretise(a_DN, p_DN, b_DN, c_DN, step_D)
    across_DMM = matrix_power(dense(system), length)
    whole_DM = jnp.concatenate([c_DN.real, -c_DN.imag], axis=-1)
    row_DM = whole_DM - einsum_f32("dl,dlm->dm", whole_DM, across_DMM)  # C (I - A_bar^L)
    pairs = c_DN.shape[-1]
    truncated_DN = jax.lax.complex(row_DM[:, :pairs], -row_DM[:, pairs:])

    turn_Z = -2 * jnp.pi * jnp.arange(length // 2 + 1).astype(step_D.dtype) / length
    z_Z = jax.lax.complex(jnp.cos(turn_Z), jnp.sin(turn_Z))

    # One pair after the other: all at once would be [L, D, N].
    @jax.checkpoint
    def add_pair(sums, pair):
        a_D, p_D, b_D, c_D = pair

        def cauchy(a_D, x_D, y_D):
            node_ZD = (1 - z_Z)[:, None] - step_D / 2 * (1 + z_Z)[:, None] * a_D
            return step_D * x_D * y_D / node_ZD

        def both(x_D, y_D):
            return cauchy(a_D, x_D, y_D) + cauchy(a_D.conj(), x_D.conj(), y_D.conj())

        q_D = p_D.conj()
        terms = both(c_D, b_D), both(c_D, p_D), both(q_D, b_D), both(q_D, p_D)
        return jax.tree.map(jnp.add, sums, terms), None

    zero_ZD = jnp.zeros((*z_Z.shape, *step_D.shape), c_DN.dtype)
    by_pair = jax.tree.map(jnp.transpose, (a_DN, p_DN, b_DN, truncated_DN))
    (cb_ZD, cp_ZD, qb_ZD, qp_ZD), _ = jax.lax.scan(add_pair, (zero_ZD,) * 4, by_pair)
    half_Z1 = (1 + z_Z)[:, None] / 2
    return jnp.fft.irfft(cb_ZD - half_Z1 * cp_ZD * qb_ZD / (1 + half_Z1 * qp_ZD), length, axis=0)


def two_sided(u_BLD: jax.Array, forward_LD: jax.Array, backward_LD: jax.Array) -> jax.Array:
    """``y_t = sum_{j <= t} forward_{t-j} u_j + sum_{j > t} backward_{j-t-1} u_j``, by FFT."""
    circle_DZ = jnp.concatenate([forward_LD, backward_LD[::-1]]).T
    length = u_BLD.shape[1]
    y_BDZ: jax.Array = circular(jnp.swapaxes(u_BLD, 1, 2), circle_DZ[None], 2 * length)
    return jnp.swapaxes(y_BDZ[..., :length], 1, 2)
