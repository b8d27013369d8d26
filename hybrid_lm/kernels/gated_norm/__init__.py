"""The norm after Mamba-2's recurrence and the projection of it: ``(rms_norm(y silu(z)) scale) W``.

Dao & Gu 2024 (arXiv 2405.21060), section 7; the norm: Zhang & Sennrich 2019 (arXiv 1910.07467).
Both in one operation, as the gradient of W needs the normalised values again: the pass over memory
that finds the gradients of y and z has them at hand.
"""

import jax

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.gated_norm import gpu, xla


def gated_norm(
    y_BLE: jax.Array,
    z_BLE: jax.Array,
    scale_E: jax.Array,
    weight_ED: jax.Array,
    *,
    epsilon: float = 1e-6,
    implementation: str | None = None,
) -> jax.Array:
    """``u / sqrt(mean_E(u^2) + epsilon) * scale`` of ``u = y silu(z)``, times W.

    Args:
        y_BLE: what the recurrence gave.
        z_BLE: gate, before silu.
        scale_E: float32.
        weight_ED: W, float32; multiplied with in the dtype of y.
        implementation: see `Implementation`.

    Returns:
        [B, L, D] in the dtype of y; the norm is computed in float32 (float64 if given).
    """
    obstacles = {"pallas": gpu.obstacle(y_BLE), "xla": None, "reference": None}
    chosen = choose("gated_norm", implementation, obstacles)
    run = gpu.gated_norm if chosen == "pallas" else xla.gated_norm
    return run(y_BLE, z_BLE, scale_E, weight_ED, epsilon)
