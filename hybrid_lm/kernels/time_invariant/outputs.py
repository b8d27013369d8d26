"""The kernel that runs the systems: all chunks of a channel in one program."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.pallas_triton import dot
from hybrid_lm.kernels.time_invariant.finish import gelu_of
from hybrid_lm.kernels.time_invariant.maps import Maps
from hybrid_lm.kernels.time_invariant.sizes import Sizes
from hybrid_lm.kernels.time_invariant.tiles import (
    by_run,
    load_across,
    load_parts,
    load_runs,
    multiply,
    of_ends,
    power,
    product,
)

_WARPS = 4


def _next(h, x_MC, write, across, runs, *, tf32, reverse):
    """The states after the chunk."""
    h = multiply(h, across, tf32)
    if runs is not None:
        x_MC = jnp.where(of_ends(runs, reverse=reverse)[0], x_MC, 0)
        stays_M1 = (runs[1] == 0)[:, None]
        h = [jnp.where(stays_M1, h_MP, 0) for h_MP in h]
    return tuple(h_MP + dot(x_MC, w_CP) for h_MP, w_CP in zip(h, write, strict=True))


def _pass_on(ends, stays_M, across, span_M, *, sizes, tf32, reverse):
    """The states before the spans but for the initial one, from what each leaves by itself.

    By doubling: what the last 2, 4, 8, ... spans leave.
    """
    place_M = jnp.arange(sizes.tile)

    def earlier(by):
        """[to, from], 1 where ``from`` is the span ``by`` before in the same row."""
        gap_MM = place_M[:, None] - place_M[None, :]
        if reverse:
            return (gap_MM == -by) & (span_M[:, None] < sizes.spans - by)
        return (gap_MM == by) & (span_M[:, None] >= by)

    def shift(h, by):
        # As products; an inf or NaN times 0 would reach other rows, so that these go apart.
        earlier_MM = earlier(by)
        broken_M = jnp.zeros((sizes.tile,), jnp.float32)
        for h_MP in h:
            broken_M += jnp.sum(jnp.where(jnp.abs(h_MP) < jnp.inf, 0.0, 1.0), axis=1)
        broken_M1 = (jnp.sum(jnp.where(earlier_MM, broken_M[None, :], 0), axis=1) > 0)[:, None]
        finite = [jnp.where(jnp.abs(h_MP) < jnp.inf, h_MP, 0) for h_MP in h]
        moved = [product(earlier_MM.astype(jnp.float32), h_MP, tf32) for h_MP in finite]
        return [jnp.where(broken_M1, jnp.nan, h_MP) for h_MP in moved]

    def double(level, carry):
        ends, stays_M, across = carry
        by = 1 << level
        moved = multiply(shift(ends, by), across, tf32)
        if stays_M is not None:
            moved = [jnp.where((stays_M > 0)[:, None], h_MP, 0) for h_MP in moved]
            stays_M *= jnp.sum(jnp.where(earlier(by), stays_M[None, :], 0), axis=1)
        ends = tuple(end + h_MP for end, h_MP in zip(ends, moved, strict=True))
        return ends, stays_M, multiply(across, across, tf32)

    start = tuple(ends), stays_M, power(across, sizes.steps, tf32)
    levels = (sizes.spans - 1).bit_length()
    return shift(jax.lax.fori_loop(0, levels, double, start)[0], 1)


def _outputs(x, write, read, across, start, taps, *refs, sizes: Sizes, reverse, gelu):
    """Also the states before (in reverse: after) the chunks, and at the end of the spans.

    ``gelu``: and what GELU is taken of.
    """
    if gelu:
        *run, y, states, last, before_gelu = refs
    else:
        *run, y, states, last = refs
    channel, tile = pl.program_id(0), pl.program_id(1)
    rows = pl.ds(tile * sizes.tile, sizes.tile)
    write_, read_ = load_parts(write, channel), load_parts(read, channel)
    across_ = load_across(across, channel, diagonal=len(write_) == 2)
    tf32 = x.dtype == jnp.bfloat16

    place_M = jnp.arange(sizes.tile)
    span_M, row_M = place_M % sizes.spans, tile * sizes.fit + place_M // sizes.spans
    real_M = (place_M < sizes.fit * sizes.spans) & (row_M < sizes.batch)
    first_span = sizes.spans - 1 if reverse else 0
    row_M = jnp.minimum(row_M, sizes.batch - 1)
    starts_M1 = (real_M & (span_M == first_span))[:, None]
    initial = [
        jnp.where(starts_M1, start[channel, row_M, part, :], 0) for part in range(len(write_))
    ]

    def load(i):
        s = sizes.steps - 1 - i if reverse else i
        token = s * sizes.chunk
        x_MC = x[channel, rows, pl.ds(token, sizes.chunk)]
        return s, x_MC, load_runs(run, rows, token, sizes.chunk)

    def leave(i, carry):
        *h, stays_M = carry
        _, x_MC, runs = load(i)
        if runs is not None:
            stays_M = jnp.where(runs[1] == 0, stays_M, 0)
        return *_next(h, x_MC, write_, across_, runs, tf32=tf32, reverse=reverse), stays_M

    h = initial
    if sizes.spans > 1:
        stays_M = jnp.ones((sizes.tile,), jnp.float32) if run else None
        *h, stays_M = jax.lax.fori_loop(0, sizes.steps, leave, (*h, stays_M))
        how = {"sizes": sizes, "tf32": tf32, "reverse": reverse}
        passed = _pass_on(h, stays_M, across_, span_M, **how)
        h = [h_MP + initial_MP for h_MP, initial_MP in zip(passed, initial, strict=True)]

    place_C = jnp.arange(sizes.chunk)
    gap_CC = place_C[None, :] - place_C[:, None]
    toeplitz_CC = taps[channel, sizes.chunk + (-gap_CC if reverse else gap_CC)]

    def step(i, h):
        s, x_MC, runs = load(i)
        narrow = [h_MP.astype(x_MC.dtype) for h_MP in h]
        for part, h_MP in enumerate(narrow):
            states[channel, rows, s, part, :] = h_MP
        y_MC = sum(dot(h_MP, r_CP, trans_b=True) for h_MP, r_CP in zip(narrow, read_, strict=True))
        if runs is None:
            y_MC += dot(x_MC, toeplitz_CC)
        else:

            def of_document(own_MC):
                return jnp.where(own_MC, dot(jnp.where(own_MC, x_MC, 0), toeplitz_CC), 0)

            y_MC = jnp.where(of_ends(runs, reverse=reverse)[1], y_MC, 0)
            y_MC += by_run(runs, of_document)
        tokens = pl.ds(s * sizes.chunk, sizes.chunk)
        if gelu:
            before_gelu[channel, rows, tokens] = y_MC.astype(y.dtype)
            y_MC = gelu_of(y_MC)
        y[channel, rows, tokens] = y_MC.astype(y.dtype)
        return _next(h, x_MC, write_, across_, runs, tf32=tf32, reverse=reverse)

    h = jax.lax.fori_loop(0, sizes.steps, step, tuple(h))
    for part, h_MP in enumerate(h):
        last[channel, rows, part, :] = h_MP


def outputs(x_DRT, run, maps: Maps, start_DBQP, sizes: Sizes, *, reverse=False, gelu=False):
    """Outputs, states before (after) the chunks [D, R, chunks, Q, P], and the last state.

    With ``gelu``, fourth: what it is taken of.
    """
    width, rows, _ = x_DRT.shape
    taps_DZ = jnp.pad(maps.taps_DC, ((0, 0), (sizes.chunk, 0)))
    operands = (x_DRT, maps.write_DQCP, maps.read_DQCP, maps.across, start_DBQP, taps_DZ, *run)
    per_chunk = (width, rows, sizes.steps, *start_DBQP.shape[2:])
    outputs = (
        jax.ShapeDtypeStruct(x_DRT.shape, x_DRT.dtype),
        jax.ShapeDtypeStruct(per_chunk, x_DRT.dtype),
        jax.ShapeDtypeStruct((width, rows, *start_DBQP.shape[2:]), jnp.float32),
        *[jax.ShapeDtypeStruct(x_DRT.shape, x_DRT.dtype)] * gelu,
    )
    y, states, ends, *before_gelu = pallas_triton.call(
        partial(_outputs, sizes=sizes, reverse=reverse, gelu=gelu),
        (width, sizes.tiles),
        outputs,
        *operands,
        warps=_WARPS,
        stages=3 if x_DRT.dtype == jnp.bfloat16 else 1,
        interpret=sizes.interpret,
    )
    ends = sizes.by_row(ends).reshape(width, sizes.batch, sizes.spans, *start_DBQP.shape[2:])
    return y, states, ends[:, :, 0 if reverse else -1], *before_gelu
