"""The iteration in terms of ``E = I - A Z``: ``Z <- Z + Z (E + E^2 + E^3 / 4)``.

The same polynomial, but what is rounded shrinks with E.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32


def iterate(a, start, iterations: int) -> jax.Array:
    """Z after ``iterations`` from ``start``."""
    eye = jnp.eye(a.shape[-1], dtype=a.dtype)

    def times(x, y):
        return einsum_f32("...lm,...mn->...ln", x, y)

    def step(z, _):
        e = eye - times(a, z)
        return z + times(z, e + times(e, e + times(e, e) / 4)), None

    return jax.lax.scan(step, start, length=iterations)[0]
