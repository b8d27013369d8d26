"""The residual stream and the normalised branch that leaves it: ``(x, rms_norm(x) scale)``.

Zhang & Sennrich 2019 (arXiv 1910.07467). Both in one operation, so that the gradients of both can
be added up in one pass over memory.
"""

import jax

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.residual_norm import gpu, xla


def residual_norm(
    x_BLD: jax.Array,
    scale_D: jax.Array,
    *,
    epsilon: float = 1e-6,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``x`` itself, and ``x / sqrt(mean_D(x^2) + epsilon) * scale``, computed in float32 at least.

    Args:
        scale_D: float32.
        implementation: see `Implementation`.
    """
    obstacles = {"pallas": gpu.obstacle(x_BLD), "xla": None, "reference": None}
    chosen = choose("residual_norm", implementation, obstacles)
    if chosen == "pallas":
        return gpu.residual_norm(x_BLD, scale_D, epsilon)
    return x_BLD, xla.rms_norm(x_BLD, scale_D, epsilon)
