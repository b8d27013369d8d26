"""How rows are cut into spans, and spans gathered in tiles."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

_TILES = (16, 32, 64)  # spans that a program steps through side by side


class Sizes(NamedTuple):
    """Rows of the batch, spans of a row, chunks of a span, tokens of a chunk, spans of a tile."""

    batch: int
    spans: int
    steps: int
    chunk: int
    tile: int
    interpret: bool = False

    @property
    def fit(self) -> int:
        """Rows of the batch in a tile."""
        return self.tile // self.spans

    @property
    def tiles(self) -> int:
        return -(-self.batch // self.fit)

    def by_tile(self, x: jax.Array, axis: int = 0) -> jax.Array:
        """Rows of the batch, B at ``axis``, to spans, R: whole tiles, filled up by zeros."""

        def fill(x, axis, length):
            edges = [(0, length - x.shape[axis] if at == axis else 0) for at in range(x.ndim)]
            return jnp.pad(x, edges)

        lead, rest = x.shape[:axis], x.shape[axis + 1 :]
        x = fill(x, axis, self.tiles * self.fit)
        x = x.reshape(*lead, self.tiles, self.fit * self.spans, -1)
        x = fill(x, axis + 1, self.tile)
        return x.reshape(*lead, self.tiles * self.tile, rest[0] // self.spans, *rest[1:])

    def by_row(self, x: jax.Array) -> jax.Array:
        """[D, R, ...] -> [D, B, ...], flat in spans and the rest; the inverse."""
        x = x.reshape(len(x), self.tiles, self.tile, -1)[:, :, : self.fit * self.spans]
        return x.reshape(len(x), self.tiles * self.fit, -1)[:, : self.batch]


def choose_sizes(
    batch: int, chunks: int, chunk: int, may_fill: bool, dense: bool, interpret: bool
) -> Sizes:
    """The tile that is filled best, or (unless ``may_fill``) leaves the fewest chunks over.

    Of equals the smallest, whose programs fit more to a processor; with ``dense`` matrices to pass
    on states the largest, which makes more of each of their products.
    """

    def cut(tile):
        spans = min(chunks, tile // min(batch, tile))
        steps = -(-chunks // spans)
        spans = -(-chunks // steps) if may_fill else chunks // steps
        return Sizes(batch, spans, steps, chunk, tile, interpret)

    def cost(sizes):
        left = max(0, chunks - sizes.spans * sizes.steps)  # they go another, slower way
        return sizes.tiles * sizes.tile * sizes.steps + 8 * batch * left

    return min(map(cut, sorted(_TILES, reverse=dense)), key=cost)
