"""The receptive field of any causal blocks, cut without touching them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp


def cut_field(
    run: Callable[[jax.Array, jax.Array], jax.Array], x_BLD: jax.Array, width: int
) -> jax.Array:
    """``run`` on x_BLD, every output from at most 2 ``width`` and at least ``width`` tokens.

    The row is folded into overlapping pieces, blocks i and i + 1 of ``width`` tokens, in the batch
    axis; each starts from zero state and only its second block is kept (of the first piece, both).
    The field of a token is then in [width, 2 width), or all that is before it.

    Args:
        run: ``run(x_BLD, start_B1)`` of causal blocks; a row starts at position ``start`` of its
            document, so that also what depends on the position itself stays what it is.
    """
    batch, length, _ = x_BLD.shape
    pieces = -(-length // width) - 1
    if pieces < 2:  # two blocks are one piece
        return run(x_BLD, jnp.zeros((batch, 1), jnp.int32))
    x_BLD = jnp.pad(x_BLD, ((0, 0), (0, -length % width), (0, 0)))
    blocks = x_BLD.reshape(batch, pieces + 1, width, -1)
    folded = jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=2)
    start_B1 = jnp.tile(jnp.arange(pieces, dtype=jnp.int32) * width, batch)[:, None]
    y = run(folded.reshape(batch * pieces, 2 * width, -1), start_B1)
    y = y.reshape(batch, pieces, 2 * width, -1)
    y_BLD = jnp.concatenate([y[:, 0, :width], y[:, :, width:].reshape(batch, -1, y.shape[-1])], 1)
    return y_BLD[:, :length]
