"""Cross-entropy of logits together with its gradient, for where both are needed at once."""

import jax
from jax.typing import DTypeLike

from hybrid_lm.kernels.cross_entropy import gpu, xla
from hybrid_lm.kernels.dispatch import choose


def cross_entropy(
    logits_BCV: jax.Array,
    targets_BC: jax.Array,
    counts_BC: jax.Array,
    dtype: DTypeLike,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``logsumexp(logits) - logits[target]`` in nats, and ``softmax(logits) - [v = target]``.

    Args:
        logits_BCV: float32 (float64).
        counts_BC: bool; both results are 0 where it is False.
        dtype: of the gradient.
        implementation: see `Implementation`.

    Returns:
        nll_BC in the dtype of the logits, and dlogits_BCV in ``dtype``. Not to be differentiated.
    """
    obstacles = {"pallas": gpu.obstacle(logits_BCV), "xla": None, "reference": None}
    chosen = choose("cross_entropy", implementation, obstacles)
    run = gpu.cross_entropy if chosen == "pallas" else xla.cross_entropy
    return run(logits_BCV, targets_BC, counts_BC, dtype)
