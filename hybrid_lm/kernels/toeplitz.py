"""Matrices that are constant along their diagonals."""

import jax
import jax.numpy as jnp


def toeplitz(circle_ZD: jax.Array) -> jax.Array:
    """[j, i, D]: ``circle[(i - j) mod 2C]`` for i, j < C, where the circle has 2C entries.

    A reshaped copy: the gradient of an index is slow.
    """
    entries, width = circle_ZD.shape
    size = entries // 2
    rows = jnp.broadcast_to(circle_ZD, (size, entries, width)).reshape(-1, width)
    return rows[: size * (entries - 1)].reshape(size, entries - 1, width)[:, :size]


def lower_toeplitz(kernel_CD: jax.Array) -> jax.Array:
    """[j, i, D]: ``kernel[i - j]``, 0 where i < j."""
    return toeplitz(jnp.concatenate([kernel_CD, jnp.zeros_like(kernel_CD)]))


def product_by_run(across_CCD: jax.Array, u_BnCD: jax.Array, run_BnC: jax.Array) -> jax.Array:
    """``y_i = sum_j across[j, i] u_j`` over the j of the same run as i: [B, n, C, D].

    One token after the other, for the product over all pairs would not fit the memory.
    """
    seen_jBni = jnp.moveaxis(run_BnC[..., None] == run_BnC[..., None, :], 2, 0)

    def add_token(y_BnCD, token):
        across_CD, seen_BnC, u_BnD = token
        seen_BnCD = jnp.where(seen_BnC[..., None], across_CD * u_BnD[:, :, None], 0.0)
        return y_BnCD + seen_BnCD, None

    tokens = (across_CCD, seen_jBni, jnp.moveaxis(u_BnCD, 2, 0))
    return jax.lax.scan(add_token, jnp.zeros_like(u_BnCD), tokens, unroll=4)[0]
