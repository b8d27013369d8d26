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
