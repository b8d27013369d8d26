"""Decays of a recurrence, summed as logs inside chunks."""

import math

import jax
import jax.numpy as jnp


def at_least_underflow(log_decay: jax.Array) -> jax.Array:
    """Sums of logs are subtracted later: those below that of underflow would cost precision."""
    return jnp.maximum(log_decay, math.log(jnp.finfo(log_decay.dtype).tiny) - 1)


def sum_decays(log_decay: jax.Array, resets: jax.Array | None) -> jax.Array:
    """Log decay from before the chunk, or from the start of the document in it, to each token.

    ``log_decay`` and the result are [B, chunks, C, ...], ``resets`` is [B, chunks, C]. A plain
    cumulative sum would let the rounding of one document depend on the documents before it.
    """
    log_decay = at_least_underflow(log_decay)
    if resets is None:
        return jnp.cumsum(log_decay, axis=2)

    def join(left, right):
        starts, total = right
        return left[0] | starts, jnp.where(starts, total, left[1] + total)

    starts = resets.reshape(*resets.shape, *[1] * (log_decay.ndim - resets.ndim))
    decays_within = jnp.where(starts, 0.0, log_decay)
    starts = jnp.broadcast_to(starts, log_decay.shape)
    return jax.lax.associative_scan(join, (starts, decays_within), axis=2)[1]
