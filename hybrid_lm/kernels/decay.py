"""Decays of a recurrence, summed as logs inside chunks."""

import math

import jax
import jax.numpy as jnp


def sum_decays(log_decay: jax.Array, resets: jax.Array | None) -> jax.Array:
    """Log decay from before the chunk, or from the start of the document in it, to each token.

    ``log_decay`` and the result are [B, chunks, C, ...], ``resets`` is [B, chunks, C]. A plain
    cumulative sum would let the rounding of one document depend on the documents before it.
    """
    # The sums are subtracted later: logs below those of underflow would only cost precision.
    log_decay = jnp.maximum(log_decay, math.log(jnp.finfo(log_decay.dtype).tiny) - 1)
    if resets is None:
        return jnp.cumsum(log_decay, axis=2)

    def join(left, right):
        starts, total = right
        return left[0] | starts, jnp.where(starts, total, left[1] + total)

    starts = resets.reshape(*resets.shape, *[1] * (log_decay.ndim - resets.ndim))
    decays_within = jnp.where(starts, 0.0, log_decay)
    starts = jnp.broadcast_to(starts, log_decay.shape)
    return jax.lax.associative_scan(join, (starts, decays_within), axis=2)[1]
