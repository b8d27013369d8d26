"""A walk over chunks with a state, cut in spans that go side by side where rows are few."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_WALKS = 128  # programs of a walk that fill a card
_LEAST = 8  # chunks that are worth a span


def choose_spans(walks: int, chunks: int) -> int:
    """Into how many spans to cut ``walks`` over so many chunks: a power of 2, 1 where they fill."""
    spans = 1
    while walks * spans < _WALKS and _LEAST * spans < chunks:
        spans *= 2
    return spans


def walk(
    run: Callable[..., tuple[jax.Array, ...]],
    start: jax.Array,
    decay: jax.Array,
    per_span: jax.ShapeDtypeStruct,
    per_chunk: jax.ShapeDtypeStruct,
    *,
    reverse: bool,
) -> tuple[jax.Array, jax.Array]:
    """With several spans: once from zero for what each leaves, once from the right states.

    Args:
        run: ``run(starts, per_span)`` -> the states [B, spans, ...] that spans from ``starts``
            leave; ``run(starts, per_span, per_chunk)`` -> these, and those before the chunks.
        start: the state [B, ...] before the first span (in reverse: after the last).
        decay: what is left of a state over a span, [spans, B, ...].
        per_span: of the states of spans.
        per_chunk: of the states of chunks.

    Returns:
        The state before (in reverse: after) each chunk, and the one after the last (before the
        first).
    """
    if per_span.shape[1] == 1:
        last, states = run(start[:, None], per_span, per_chunk)
        return states, last[:, 0]
    (ends,) = run(jnp.zeros(per_span.shape, per_span.dtype), per_span)

    def pass_span(state, span):
        decay, end = span
        return decay * state + end, state

    operands = decay, jnp.moveaxis(ends, 1, 0)
    _, starts = jax.lax.scan(pass_span, start, operands, reverse=reverse)
    last, states = run(jnp.moveaxis(starts, 0, 1), per_span, per_chunk)
    return states, last[:, 0 if reverse else -1]
