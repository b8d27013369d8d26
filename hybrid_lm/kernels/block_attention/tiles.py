"""Where the blocks of the documents of a row lie."""

from dataclasses import dataclass
from typing import Self

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Tiles:
    """The blocks (but each document's first) that have queries in the row: T tiles.

    Every tile follows a finished block of its own document, and finished blocks do not overlap: so
    there are no more than ``(L - 2) // C + 2``, however many documents a row holds and wherever
    they start. Places are indices among the S keys; unused tiles lie behind the row.

    Attributes:
        block_size: C, tokens of a block.
        aligned: the row is one document from its first block on: tile t is block t + 1.
        first_BT: place of a tile's first token, in the row or in the cache before it.
        start_BT: place of the first token of its document.
        number_BT: number of the block within its document.
        tile_BL: tile of each query; -1 in the first block of a document.
        within_BL: place of each query within its document.
        finished_BF: places of the first tokens of the finished blocks, F = S // C at most.
        base_BT: index among them of block 0 of the tile's document.
    """

    block_size: int
    aligned: bool
    first_BT: jax.Array
    start_BT: jax.Array
    number_BT: jax.Array
    tile_BL: jax.Array
    within_BL: jax.Array
    finished_BF: jax.Array
    base_BT: jax.Array

    @classmethod
    def of(
        cls, starts_BL: jax.Array | None, batch: int, length: int, keys: int, block_size: int
    ) -> Self:
        """Tiles of documents whose first keys are at ``starts_BL`` (None: one, at key 0)."""
        finished = keys // block_size
        if starts_BL is None:
            number_T = jnp.arange(1, -(-length // block_size), dtype=jnp.int32)
            number_BT = jnp.broadcast_to(number_T, (batch, number_T.size))
            within_L = jnp.arange(length, dtype=jnp.int32)
            within_BL = jnp.broadcast_to(within_L, (batch, length))
            return cls(
                block_size,
                True,
                number_BT * block_size,
                jnp.zeros_like(number_BT),
                number_BT,
                within_BL // block_size - 1,
                within_BL,
                jnp.broadcast_to(jnp.arange(finished) * block_size, (batch, finished)),
                jnp.zeros_like(number_BT),
            )
        offset = keys - length
        place_S = jnp.arange(keys, dtype=jnp.int32)
        cached_BS = jnp.broadcast_to(starts_BL[:, :1], (batch, offset))
        within_BS = place_S - jnp.concatenate([cached_BS, starts_BL], axis=1)
        is_end_BS = (within_BS >= 0) & (within_BS % block_size == block_size - 1)
        before_BS = jnp.cumsum(is_end_BS, axis=1, dtype=jnp.int32) - is_end_BS
        # Blocks after which something of the row may follow.
        is_last_BS = is_end_BS & (place_S >= offset - block_size) & (place_S < keys - 1)
        tiles_before_BS = jnp.cumsum(is_last_BS, axis=1, dtype=jnp.int32) - is_last_BS

        def behind(is_end_BS, before_BS, count):
            """Places that follow the ends, that of the last key for those that are not there."""

            def of_row(is_end_S, before_S):
                last_N = jnp.full(count, keys - 1, jnp.int32)
                return last_N.at[jnp.where(is_end_S, before_S, count)].set(place_S, mode="drop")

            return jax.vmap(of_row)(is_end_BS, before_BS) + 1

        first_BT = behind(is_last_BS, tiles_before_BS, (length - 2) // block_size + 2)
        within_BT = jnp.take_along_axis(within_BS, first_BT - 1, axis=1) + 1
        start_BT = first_BT - within_BT
        within_BL = within_BS[:, offset:]
        return cls(
            block_size,
            False,
            first_BT,
            start_BT,
            within_BT // block_size,
            jnp.where(within_BL < block_size, -1, tiles_before_BS[:, offset:] - 1),
            within_BL,
            behind(is_end_BS, before_BS, finished) - block_size,
            jnp.take_along_axis(before_BS, start_BT, axis=1),
        )
