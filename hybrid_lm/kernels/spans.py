"""A walk over chunks with a state on chip, cut in spans that go side by side where rows are few."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton

_COLUMNS = 64  # of a state in one program
_WALKS = 128  # programs of a walk that fill a card
_LEAST = 8  # chunks that are worth a span


def choose_spans(v_BLHP: jax.Array, chunks: int) -> int:
    """Into how many spans to cut the walk over so many chunks: a power of 2, 1 where rows fill."""
    batch, _, heads, width = v_BLHP.shape
    walks = batch * heads * -(-width // _COLUMNS)
    spans = 1
    while walks * spans < _WALKS and _LEAST * spans < chunks:
        spans *= 2
    return spans


def _pass_states(*refs, advance, inputs, chunk, spans, columns, steps, reverse):
    """Over the chunks of a span; saves the state before each of them."""
    operands, (start, last, *saved) = refs[:inputs], refs[inputs:]
    row, head = pl.program_id(0), pl.program_id(1)
    batch, span = row // spans, row % spans
    block = pl.ds(pl.program_id(2) * columns, columns)

    def step(i, state_NP):
        c = span * steps + (steps - 1 - i if reverse else i)
        tokens = pl.ds(c * chunk, chunk)
        for ref in saved:
            ref[batch, c, head, :, block] = state_NP.astype(ref.dtype)
        return advance(*operands, state_NP, batch=batch, head=head, c=c, tokens=tokens, block=block)

    state_NP = jax.lax.fori_loop(0, steps, step, start[batch, span, head, :, block])
    last[batch, span, head, :, block] = state_NP


def walk(
    advance: Callable[..., jax.Array],
    operands: tuple[jax.Array, ...],
    start_BHNP: jax.Array,
    decay_SBHN1: jax.Array,
    *,
    chunks: int,
    chunk: int,
    dtype: Any,
    reverse: bool,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """With several spans: once from zero for what each leaves, once from the right states.

    Args:
        advance: ``advance(*operand_refs, state, batch=, head=, c=, tokens=, block=)`` -> the state
            after chunk ``c``, of the columns ``block`` of one head.
        start_BHNP: the state before the first chunk (in reverse: after the last).
        decay_SBHN1: what is left of a state over each of S spans; the last axes may be 1.
        chunk: tokens of each of the ``chunks``.
        dtype: of the states before chunks.

    Returns:
        The state before (in reverse: after) each chunk, [B, chunks, H, N, P], and the one after the
        last (before the first).
    """
    spans = decay_SBHN1.shape[0]
    batch, heads, n, width = start_BHNP.shape
    columns = min(width, _COLUMNS)
    kernel = partial(
        _pass_states,
        advance=advance,
        inputs=len(operands),
        chunk=chunk,
        spans=spans,
        columns=columns,
        steps=chunks // spans,
        reverse=reverse,
    )
    per_span = jax.ShapeDtypeStruct((batch, spans, heads, n, width), jnp.float32)
    per_chunk = jax.ShapeDtypeStruct((batch, chunks, heads, n, width), dtype)

    def run(starts, *outputs):
        return pallas_triton.call(
            kernel,
            (batch * spans, heads, width // columns),
            outputs,
            *(*operands, starts),
            warps=4,
            stages=3 if dtype == jnp.bfloat16 else 1,
            interpret=interpret,
        )

    if spans == 1:
        last, states = run(start_BHNP[:, None], per_span, per_chunk)
        return states, last[:, 0]
    (ends,) = run(jnp.zeros(per_span.shape, per_span.dtype), per_span)

    def pass_span(state, span):
        decay, end = span
        return decay * state + end, state

    ends = decay_SBHN1, jnp.moveaxis(ends, 1, 0)
    _, starts = jax.lax.scan(pass_span, start_BHNP, ends, reverse=reverse)
    last, states = run(jnp.moveaxis(starts, 0, 1), per_span, per_chunk)
    return states, last[:, 0 if reverse else -1]
