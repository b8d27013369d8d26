"""A diagonal plus low-rank state space per channel, continuous and discretised."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class System(NamedTuple):
    """``h <- decay h - down 2 Re(across . h) + b u``, ``y = 2 Re(c . h)``; complex [D, N / 2]."""

    decay_DN: jax.Array
    down_DN: jax.Array
    across_DN: jax.Array
    b_DN: jax.Array
    c_DN: jax.Array

    def step(self, h_DN: jax.Array) -> jax.Array:
        """``A h``, in O(N)."""
        return self.decay_DN * h_DN - self.down_DN * twice_real(self.across_DN, h_DN)[..., None]


def twice_real(row_DN: jax.Array, h_DN: jax.Array) -> jax.Array:
    """``2 Re(row . h)`` over the last dimension: a product of whole vectors by their first half."""
    return 2 * jnp.sum(row_DN.real * h_DN.real - row_DN.imag * h_DN.imag, axis=-1)


def discretise(
    a_DN: jax.Array, p_DN: jax.Array, b_DN: jax.Array, c_DN: jax.Array, step_D: jax.Array
) -> System:
    """The bilinear discretisation of ``diag(a) - p p^*`` by Woodbury's identity.

    ``A_bar = (I - d/2 A)^-1 (I + d/2 A)``, ``B_bar = (I - d/2 A)^-1 d B``: appendix C.2 of Gu et
    al. 2022 (arXiv 2111.00396), with the two low-rank factors of A_bar joined.
    """
    half_D1 = step_D[:, None] / 2
    inverse_DN = 1 / (1 - half_D1 * a_DN)  # of the diagonal part
    down_DN = half_D1 * inverse_DN * p_DN
    share_D1 = 1 / (1 + twice_real(p_DN.conj(), down_DN))[:, None]
    across_DN = 2 * share_D1 * inverse_DN * p_DN.conj()
    solved_DN = 2 * half_D1 * inverse_DN * b_DN
    low_rank_DN = down_DN * share_D1 * twice_real(p_DN.conj(), solved_DN)[:, None]
    decay_DN = (1 + half_D1 * a_DN) * inverse_DN
    return System(decay_DN, down_DN, across_DN, solved_DN - low_rank_DN, c_DN)


def dense(system: System) -> jax.Array:
    """A as a real matrix on [Re h; Im h]: [D, N, N]."""
    pairs = system.decay_DN.shape[-1]
    basis_MN = jnp.concatenate([jnp.eye(pairs), 1j * jnp.eye(pairs)]).astype(system.decay_DN.dtype)
    columns_MDN = jax.vmap(lambda h_N: system.step(jnp.broadcast_to(h_N, system.decay_DN.shape)))(
        basis_MN
    )
    columns_MDM = jnp.concatenate([columns_MDN.real, columns_MDN.imag], axis=-1)
    return jnp.moveaxis(columns_MDM, 0, -1)
