"""A walk over chunks with a state on chip, cut in spans that go side by side where rows are few."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton

_COLUMNS = 64  # of a state in one program
_ROWS = 64  # the least of a state in one program
_WALKS = 128  # programs that fill a card: with as many, nothing is walked twice
_WALKS_CUT = 256  # programs of walks that are cut: two a processor, in one wave
_LEAST = 8  # chunks that are worth a span


def choose_spans(walks: int, chunks: int) -> int:
    """Into how many spans to cut each of so many walks over so many chunks."""
    if walks >= _WALKS:
        return 1
    return max(1, min(_WALKS_CUT // walks, -(-chunks // _LEAST)))


def _span_walk(advance, operands, stays, saved, place, state_NP, *, sizes, block):
    """Over the chunks of a span; saves the state before each of them."""
    batch, span, head = place
    chunk, chunks, steps, reverse = sizes
    first = span * steps
    count = steps if chunks % steps == 0 else jnp.minimum(steps, chunks - first)

    def chunk_of(i):
        return first + (count - 1 - i if reverse else i)

    def stay_over(c):
        one = stays.shape[-1] == 1
        return stays[batch, head, c, 0] if one else stays[batch, head, c, block[0]][:, None]

    def step(i, carry):
        state_NP, stay = carry
        c = chunk_of(i)
        # Ahead: the state waits for it, and it is too small to be loaded in stages.
        following = stay_over(chunk_of(jnp.minimum(i + 1, count - 1)))
        for ref in saved:
            ref[batch, c, head, *block] = state_NP.astype(ref.dtype)
        tokens = pl.ds(c * chunk, chunk)
        write_NP = advance(*operands, batch=batch, head=head, tokens=tokens, block=block)
        return stay * state_NP + write_NP, following

    return jax.lax.fori_loop(0, count, step, (state_NP, stay_over(chunk_of(0))))[0]


def _block(shape: tuple[int, int], width: int):
    """The rows and columns of a state that a program has."""
    (rows, columns), place = shape, pl.program_id(2)
    across = width // columns
    return pl.ds(place // across * rows, rows), pl.ds(place % across * columns, columns)


def _leave(*refs, advance, sizes, spans, shape):
    """What a span leaves of what it writes itself; of all but the last span."""
    *operands, stays, end = refs
    row, head = pl.program_id(0), pl.program_id(1)
    block = _block(shape, end.shape[-1])
    batch, span = row // (spans - 1), row % (spans - 1) + sizes[-1]
    state_NP = jnp.zeros(shape, end.dtype)
    place = batch, span, head
    state_NP = _span_walk(advance, operands, stays, (), place, state_NP, sizes=sizes, block=block)
    end[batch, span, head, *block] = state_NP


def _pass_states(*refs, advance, inputs, sizes, spans, shape):
    """A span from the right state, which comes from what the spans before it leave."""
    operands, (stays, start, *left, last, saved) = refs[:inputs], refs[inputs:]
    row, head = pl.program_id(0), pl.program_id(1)
    block = _block(shape, start.shape[-1])
    batch, span, reverse = row // spans, row % spans, sizes[-1]
    behind = spans - 1 - span if reverse else span

    def add(i, state_NP):
        decays, ends = left
        s = spans - 1 - i if reverse else i
        return decays[batch, head, s, :][:, None] * state_NP + ends[batch, s, head, *block]

    state_NP = start[batch, head, *block]
    if left:
        state_NP = jax.lax.fori_loop(0, behind, add, state_NP)
    place = batch, span, head
    state_NP = _span_walk(
        advance, operands, stays, (saved,), place, state_NP, sizes=sizes, block=block
    )

    @pl.when(behind == spans - 1)
    def _():
        last[batch, head, *block] = state_NP


def walk(
    advance: Callable[..., jax.Array],
    operands: tuple[jax.Array, ...],
    stays_BHcN: jax.Array,
    start_BHNP: jax.Array,
    *,
    chunk: int,
    dtype: Any,
    reverse: bool,
    interpret: bool,
) -> tuple[jax.Array, jax.Array]:
    """``S <- stays S + advance(...)`` from chunk to chunk.

    With several spans: once from zero for what each leaves, once from the right states.

    Args:
        advance: ``advance(*operand_refs, batch=, head=, tokens=, block=)`` -> what a chunk writes
            to the rows and columns ``block`` of the state of one head.
        stays_BHcN: what is left of a state over each chunk; N may be 1.
        start_BHNP: the state before the first chunk (in reverse: after the last).
        chunk: tokens of each chunk.
        dtype: of the states before chunks.

    Returns:
        The state before (in reverse: after) each chunk, [B, chunks, H, N, P], and the one after the
        last (before the first).
    """
    batch, heads, n, width = start_BHNP.shape
    chunks = stays_BHcN.shape[2]
    columns = min(width, _COLUMNS)
    walks = batch * heads * width // columns
    steps = -(-chunks // choose_spans(walks, chunks))
    spans = -(-chunks // steps)
    # Two programs a processor, as walks that are cut have them. Where several blocks of columns
    # read the same keys already, or each row decays by itself, it was no faster.
    is_alone = width == columns and stays_BHcN.shape[-1] == 1
    halved = _WALKS <= walks < _WALKS_CUT and is_alone and n >= 2 * _ROWS
    shape = n // 2 if halved else n, columns
    sizes = chunk, chunks, steps, reverse
    shared = {"advance": advance, "sizes": sizes, "spans": spans, "shape": shape}

    def run(kernel, rows, outputs, *operands):
        return pallas_triton.call(
            partial(kernel, **shared),
            (batch * rows, heads, n * width // (shape[0] * shape[1])),
            outputs,
            *operands,
            warps=4,
            stages=3 + halved if dtype == jnp.bfloat16 else 1,
            interpret=interpret,
        )

    left = ()
    if spans > 1:
        edge = ((0, 0), (0, 0), (0, spans * steps - chunks), (0, 0))
        stays = jnp.pad(stays_BHcN, edge, constant_values=1)
        decays_BHSN = stays.reshape(batch, heads, spans, steps, -1).prod(3)
        ends = jax.ShapeDtypeStruct((batch, spans, heads, n, width), jnp.float32)
        left = decays_BHSN, run(_leave, spans - 1, ends, *operands, stays_BHcN)
    last = jax.ShapeDtypeStruct(start_BHNP.shape, jnp.float32)
    states = jax.ShapeDtypeStruct((batch, chunks, heads, n, width), dtype)
    kernel = partial(_pass_states, inputs=len(operands))
    last, states = run(kernel, spans, (last, states), *operands, stays_BHcN, start_BHNP, *left)
    return states, last
