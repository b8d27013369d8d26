"""Runs a diagonal recurrence with the implementation that was chosen."""

import jax

from hybrid_lm.kernels.diagonal_scan import reference, xla
from hybrid_lm.kernels.diagonal_scan.recurrence import Recurrence
from hybrid_lm.kernels.dispatch import choose


def run(
    recurrence: Recurrence,
    x: dict[str, jax.Array],
    resets_BL: jax.Array | None,
    h0: jax.Array,
    chunk_size: int,
    implementation: str | None,
) -> tuple[jax.Array, jax.Array]:
    """Inputs [B, L, ...] -> outputs [B, L, ...] and the state after the last token."""
    chosen = choose("diagonal_scan", implementation, {"xla": None, "reference": None})
    if chosen == "reference":
        return reference.scan(recurrence, x, resets_BL, h0)
    return xla.scan(recurrence, x, resets_BL, h0, chunk_size=chunk_size)
