"""Queries and keys made ready for attention: projected, RMS norm per head, rotary positions.

Zhang & Sennrich 2019 (arXiv 1910.07467); Su et al. 2021 (arXiv 2104.09864), equation 34. Both in
one operation, so that they can be one product, with one pass over memory after it.
"""

import jax

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.rotary import gpu, xla


def queries_and_keys(
    x_BLD: jax.Array,
    weights: tuple[jax.Array, jax.Array],
    scales: tuple[jax.Array, jax.Array],
    positions_BL: jax.Array,
    theta: float,
    *,
    epsilon: float = 1e-6,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``rotate(rms_norm(x W))`` of queries [B, L, H, K] and of keys [B, L, G, K], in x's dtype.

    Args:
        x_BLD: inputs.
        weights: [D, H, K] and [D, G, K], float32; multiplied with in the dtype of x.
        scales: [K] each, float32, of the norms (over K, computed in float32 at least).
        positions_BL: int32.
        theta: base of the angles (see `xla.rotate`).
        implementation: see `Implementation`.
    """
    obstacles = {"pallas": gpu.obstacle(x_BLD, weights[0]), "xla": None, "reference": None}
    chosen = choose("rotary", implementation, obstacles)
    run = gpu.queries_and_keys if chosen == "pallas" else xla.queries_and_keys
    return run(x_BLD, weights, scales, positions_BL, theta, epsilon)
