"""What finished blocks leave behind, from chunk to chunk: sums, and averages under a softmax.

``keeps_i`` says whether what came before chunk i is still part of it. All results start with the
start, and have one entry more than there are chunks.
"""

import jax

from hybrid_lm.kernels.block_scan import gpu, xla
from hybrid_lm.kernels.block_scan.xla import LOW
from hybrid_lm.kernels.dispatch import choose


def carry(
    keeps: jax.Array, written: jax.Array, start: jax.Array, *, implementation: str | None = None
) -> jax.Array:
    """``s_i = s_{i-1} + written_i`` where ``keeps_i``, else ``written_i``.

    Args:
        keeps: [B, n] or [B, n, M].
        written: [B, n, ...], after n the dimensions of ``keeps``.
        start: [B, ...].
        implementation: see `Implementation`.

    Returns:
        [B, n + 1, ...].
    """
    return _form(implementation, written).carry(keeps, written, start)


def merge(
    keeps_BnM: jax.Array,
    log_mass_BnMH: jax.Array,
    values_BnMHP: jax.Array,
    start_log_mass_BMH: jax.Array,
    start_values_BMHP: jax.Array,
    *,
    implementation: str | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Averages of weight ``exp(log_mass)`` joined with those before, where ``keeps_i``.

    A log mass of `LOW` stands for 0.

    Returns:
        log masses [B, n + 1, M, H] and averages [B, n + 1, M, H, P].
    """
    operands = (log_mass_BnMH, values_BnMHP, start_log_mass_BMH, start_values_BMHP)
    return _form(implementation, values_BnMHP).merge(keeps_BnM, *operands)


def _form(implementation: str | None, values: jax.Array):
    # Not the best first: on a GPU the kernels were timed, but not yet compared with float64.
    obstacles = {"xla": None, "pallas": gpu.obstacle(values), "reference": None}
    return gpu if choose("block_scan", implementation, obstacles) == "pallas" else xla


__all__ = ["LOW", "carry", "merge"]
