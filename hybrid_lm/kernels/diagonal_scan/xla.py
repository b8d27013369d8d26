"""Two-level scan: spans one after the other, the chunks of a span side by side.

A span is cut in `_CHUNKS` chunks that take their steps together, so that a step works on
[B, _CHUNKS, ...] states: few sequential steps, each wide enough to fill the device. A first pass
from zero finds what each chunk leaves behind, those are combined, and a second pass runs from the
right states. Spans are rematerialised in the backward pass: memory is O(L / span + span) states.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.diagonal_scan import reference
from hybrid_lm.kernels.diagonal_scan.recurrence import Recurrence

_CHUNKS = 16


def scan(
    recurrence: Recurrence,
    x: dict[str, jax.Array],
    resets_BL: jax.Array | None,
    h0: jax.Array,
    *,
    chunk_size: int,
) -> tuple[jax.Array, jax.Array]:
    """Inputs [B, L, ...] -> outputs [B, L, ...] and the state after the last token."""
    batch, length = x["step"].shape[:2]
    if length <= chunk_size:
        return reference.scan(recurrence, x, resets_BL, h0)
    chunks = min(_CHUNKS, -(-length // chunk_size))
    span = chunks * chunk_size
    if resets_BL is None:
        resets_BL = jnp.zeros((batch, length), bool)

    def cut(a):
        """[B, L, ...] -> [spans, C, B, chunks, ...], zero-padded: a zero step keeps the state."""
        a = jnp.pad(a, [(0, 0), (0, -length % span)] + [(0, 0)] * (a.ndim - 2))
        a = a.reshape(batch, -1, chunks, chunk_size, *a.shape[2:])
        return jnp.moveaxis(a, (1, 3), (0, 1))

    def lift(mask, like):
        return mask.reshape(*mask.shape, *[1] * (like.ndim - mask.ndim))

    def step(h, at):
        x_t, reset = at
        decay = jnp.where(lift(reset, h), 0.0, jnp.exp(recurrence.log_decay(x_t["step"])))
        return decay * h + recurrence.write(x_t)

    @jax.checkpoint
    def run_span(h, at):
        x_span, resets = at
        zero = jnp.zeros((batch, chunks, *h.shape[1:]), h.dtype)
        left, _ = jax.lax.scan(lambda h, at: (step(h, at), None), zero, at)
        decay = jnp.exp(recurrence.log_decay(x_span["step"].sum(axis=0)))
        decay = jnp.where(lift(resets.any(axis=0), decay), 0.0, decay)

        def pass_chunk(h, at):
            decay, left = at
            return decay * h + left, h

        chunk_major = (jnp.moveaxis(decay, 1, 0), jnp.moveaxis(left, 1, 0))
        h, before = jax.lax.scan(pass_chunk, h, chunk_major)

        def emit(h, at):
            h = step(h, at)
            return h, recurrence.read(at[0], h)

        _, y = jax.lax.scan(emit, jnp.moveaxis(before, 0, 1), at)
        return h, y

    h, y = jax.lax.scan(run_span, h0, jax.tree.map(cut, (x, resets_BL)))
    y = jnp.moveaxis(y, (0, 1), (1, 3))
    return y.reshape(batch, -1, *y.shape[4:])[:, :length], h
