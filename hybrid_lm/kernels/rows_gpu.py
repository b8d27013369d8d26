"""What the kernels of norms share on a GPU: programs that take some whole rows after another."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton

ROWS = 64
"""Of a program."""

_WIDTHS = (128, 256, 512, 1024, 2048, 4096)


def rows_of(program: jax.Array, rows: int, tile: int) -> Callable[[jax.Array], pl.Slice]:
    """The ``tile`` of all ``rows`` that a program takes in round i: beside those of its neighbours.

    Programs that run at a time then read and write memory side by side, not each at its own place;
    from the last row to the first, as what was written last, by the product before, is in L2 still.
    """
    return lambda i: pl.ds(rows - (i * (rows // ROWS) + program + 1) * tile, tile)


def mean_product(pieces_a, pieces_b) -> jax.Array:
    """Over all channels, [..., 1], of rows in pieces, [..., C]: summed over the pieces first, so
    that what a sum over channels needs is needed once.
    """
    first, *rest = (a * b for a, b in zip(pieces_a, pieces_b, strict=True))
    channels = first.shape[-1] * (1 + len(rest))
    return (jnp.sum(sum(rest, first), axis=-1) / channels)[..., None]


def by_rows(
    kernel: Callable[..., None],
    outputs: Any,
    *operands: jax.Array,
    channels: int,
    warps: int,
    epsilon: float,
    interpret: bool,
) -> Any:
    """Run a kernel on all rows of the first operand.

    A warp takes ``channels`` of rows at a time; a program has ``warps``, or what a row needs.
    """
    rows, width = operands[0].shape
    warps = max(warps, width // channels)
    return pallas_triton.call(
        partial(kernel, tile=min(warps * channels // width, ROWS), epsilon=epsilon),
        (rows // ROWS,),
        outputs,
        *operands,
        warps=warps,
        interpret=interpret,
    )


def obstacle(x_BLD: jax.Array, *, is_padded: bool) -> str | None:
    """Why no kernel takes such rows, filled up to a multiple of `ROWS` or not; None if one does."""
    if x_BLD.shape[-1] not in _WIDTHS:
        return f"{x_BLD.shape[-1]} channels"
    if not is_padded and x_BLD.shape[0] * x_BLD.shape[1] % ROWS:
        return f"tokens must be a multiple of {ROWS}"
    return pallas_triton.obstacle(x_BLD)
