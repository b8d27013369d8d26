"""Queries and keys made ready for attention: RMS norm per head, then rotary positions.

Zhang & Sennrich 2019 (arXiv 1910.07467); Su et al. 2021 (arXiv 2104.09864), equation 34.
"""

import jax

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.rotary import gpu, xla


def norm_and_rotate(
    x_BLHK: jax.Array,
    scale_K: jax.Array,
    positions_BL: jax.Array,
    theta: float,
    *,
    epsilon: float = 1e-6,
    implementation: str | None = None,
) -> jax.Array:
    """`xla.rotate` of the `rms_norm` over K, computed in float32 at least, in the dtype of x.

    Args:
        scale_K: float32, of the norm.
        positions_BL: int32.
        theta: base of the angles.
        implementation: see `Implementation`.
    """
    obstacles = {"pallas": gpu.obstacle(x_BLHK), "xla": None, "reference": None}
    chosen = choose("rotary", implementation, obstacles)
    run = gpu.norm_and_rotate if chosen == "pallas" else xla.norm_and_rotate
    return run(x_BLHK, scale_K, positions_BL, theta, epsilon)
