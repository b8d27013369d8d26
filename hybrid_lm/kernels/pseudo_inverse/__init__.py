"""Moore-Penrose inverse of many small matrices by a few products each.

Equation 15 of Xiong et al. 2021 (arXiv 2102.03902), with rows and columns of A summing to 1 at
most: ``Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4`` from ``A^T / (|A|_1 |A|_inf)``.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.pseudo_inverse import gpu, reference, xla


def pseudo_inverse(
    a: jax.Array, iterations: int, *, exact: bool = True, implementation: str | None = None
) -> jax.Array:
    """Z after ``iterations`` for matrices [..., M, M] in at least float32.

    Args:
        a: the matrices.
        iterations: steps towards the inverse.
        exact: whether they are worth more than TF32 products.
        implementation: see `Implementation`.
    """
    obstacles = {"pallas": gpu.obstacle(a, exact), "xla": None, "reference": None}
    chosen = choose("pseudo_inverse", implementation, obstacles)
    # |A|_1 is the largest sum of a column.
    norms = jnp.abs(a).sum(-1).max(-1) * jnp.abs(a).sum(-2).max(-1)
    start = jnp.swapaxes(a, -1, -2) / jnp.where(norms > 0, norms, 1)[..., None, None]
    if chosen == "reference":
        return reference.iterate(a, start, iterations)
    if chosen == "pallas":
        return gpu.iterate(a, start, iterations)
    return xla.iterate(a, start, iterations)
