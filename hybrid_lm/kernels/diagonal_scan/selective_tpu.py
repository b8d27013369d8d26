"""The selective scan as Pallas kernels for TPUs.

A program owns up to 1024 channels, as tiles of 8 x 128, and holds their N states in N such tiles:
a step of the scan is elementwise, and what the channels share (B, C, starts of documents) are
scalars. Time is cut in chunks; the states are carried from one to the next in VMEM. The backward
pass goes through the chunks in reverse, makes the states of a chunk anew from the one before it,
and sums dB and dC over the channels of a program, then over programs: the order is fixed.

Layout: channels are [E / 128, 128]; states come first, [N, E / 128, 128]. `keep` is 0, or -1e30
where a document starts, and is added to the log decay.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_tpu
from hybrid_lm.kernels.chunked_gpu import padded
from hybrid_lm.kernels.pallas_tpu import LANES, SUBLANES, dot

_CLEAR = -1e30  # log decay across a start of document; exp of it is exactly 0
_CHUNK = 64  # tokens
_MOST_STATES = 32


class _Sizes(NamedTuple):
    states: int
    chunk: int
    interpret: pallas_tpu.Interpret


def _step(h, a, step, keep, x, b, t):
    """States after token t, ``h_n = exp(a_n step + keep) h_n + x B_n``, and the decays."""
    decay = [jnp.exp(a_n * step + keep) for a_n in a]
    written = [x * b[0, 0, 0, t * len(h) + n] for n in range(len(h))]
    return [d * h_n + w for d, h_n, w in zip(decay, h, written, strict=True)], decay


def _forward(u, step, a, b, c, keep, start, y, last, *refs, sizes: _Sizes):
    *saved, state = refs
    chunk, chunks = pl.program_id(2), pl.num_programs(2)
    states = range(sizes.states)
    a_n = [a[n] for n in states]

    @pl.when(chunk == 0)
    def _():
        state[...] = start[0]

    for ref in saved:
        ref[0, 0] = state[...]

    def token(t, h):
        step_t = step[0, t]
        x = step_t * u[0, t].astype(jnp.float32)
        h, _ = _step(h, a_n, step_t, keep[0, 0, 0, t], x, b, t)
        y[0, t] = sum(h[n] * c[0, 0, 0, t * sizes.states + n] for n in states)
        return h

    h = jax.lax.fori_loop(0, sizes.chunk, token, [state[n] for n in states])
    for n in states:
        state[n] = h[n]

    @pl.when(chunk == chunks - 1)
    def _():
        last[0] = state[...]


def _backward(*refs, sizes: _Sizes):
    """With g the cotangent of h_t (from later tokens and from y_t) and e = g decay h_{t-1}::

    dC_n = sum_E h_n dy      dB_n = sum_E g_n step u      du = step sum_n g_n B_n
    dstep = u sum_n g_n B_n + sum_n a_n e_n               da_n = sum_t step e_n
    """
    u, step, a, b, c, keep, before, dy, dlast = refs[:9]
    du, dstep, da, db, dc, dstart, after, history, db_rows, dc_rows = refs[9:]
    place, chunks = pl.program_id(2), pl.num_programs(2)
    states = range(sizes.states)
    a_n = [a[n] for n in states]

    @pl.when(place == 0)
    def _():
        after[...] = dlast[0]
        da[0] = jnp.zeros(da.shape[1:], da.dtype)

    def forward(t, h):
        for n in states:
            history[t, n] = h[n]
        step_t = step[0, t]
        x = step_t * u[0, t].astype(jnp.float32)
        return _step(h, a_n, step_t, keep[0, 0, 0, t], x, b, t)[0]

    jax.lax.fori_loop(0, sizes.chunk, forward, [before[0, 0, n] for n in states])

    def token(i, g):
        t = sizes.chunk - 1 - i
        u_t, step_t, dy_t = u[0, t].astype(jnp.float32), step[0, t], dy[0, t]
        x = step_t * u_t
        h_before = [history[t, n] for n in states]
        h, decay = _step(h_before, a_n, step_t, keep[0, 0, 0, t], x, b, t)
        dx, dlog, new = jnp.zeros_like(x), jnp.zeros_like(x), []
        for n in states:
            at = t * sizes.states + n
            g_n = g[n] + dy_t * c[0, 0, 0, at]
            # Sums over sublanes here, over lanes for the whole chunk at once.
            dc_rows[n, pl.ds(t, 1)] = jnp.sum(h[n] * dy_t, axis=0, keepdims=True)
            db_rows[n, pl.ds(t, 1)] = jnp.sum(g_n * x, axis=0, keepdims=True)
            dx += g_n * b[0, 0, 0, at]
            g_n *= decay[n]
            e = g_n * h_before[n]
            dlog += a_n[n] * e
            da[0, n] += step_t * e
            new.append(g_n)
        du[0, t] = (step_t * dx).astype(du.dtype)
        dstep[0, t] = u_t * dx + dlog
        return new

    g = jax.lax.fori_loop(0, sizes.chunk, token, [after[n] for n in states])
    for n in states:
        after[n] = g[n]
    db[0, 0], dc[0, 0] = _sum_lanes(db_rows), _sum_lanes(dc_rows)

    @pl.when(place == chunks - 1)
    def _():
        dstart[0] = after[...]


def _sum_lanes(rows):
    """[N, C, 128] -> [C, N], as products: a lane of the result for each state."""
    states = rows.shape[0]
    state = jax.lax.broadcasted_iota(jnp.int32, (LANES, states), 1)
    return sum(dot(rows[n], (state == n).astype(jnp.float32)) for n in range(states))


class _Blocks:
    """Blocks of the operands over the grid (B, blocks of channels, chunks)."""

    def __init__(self, u, sizes: _Sizes, *, reverse: bool):
        self.batch, self.length, self.rows, _ = u.shape
        self.tile = (min(self.rows, SUBLANES), LANES)
        self.states, chunk = sizes.states, sizes.chunk
        self.chunks = self.length // chunk
        self.grid = (self.batch, self.rows // self.tile[0], self.chunks)
        last = self.chunks - 1

        def spec(shape, at, space=None):
            def index(b, e, c):
                return at(b, e, last - c if reverse else c)

            return pl.BlockSpec(shape, index, memory_space=space)

        def scalars(count):
            return spec((1, 1, 1, count), lambda b, e, c: (b, c, 0, 0), pallas_tpu.SMEM)

        state = (self.states, *self.tile)
        self.tokens = spec((1, chunk, *self.tile), lambda b, e, c: (b, c, e, 0))
        self.a = spec(state, lambda b, e, c: (0, e, 0))
        self.bc, self.keep = scalars(chunk * self.states), scalars(chunk)
        self.state = spec((1, *state), lambda b, e, c: (b, 0, e, 0))
        self.saved = spec((1, 1, *state), lambda b, e, c: (b, c, 0, e, 0))
        self.dbc = spec((1, 1, chunk, self.states), lambda b, e, c: (b, e, c, 0))
        self.scratch = [pallas_tpu.VMEM(state, jnp.float32)]
        self.history = pallas_tpu.VMEM((chunk, *state), jnp.float32)
        self.rows_of_bc = pallas_tpu.VMEM((self.states, chunk, LANES), jnp.float32)

    def f32(self, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def state_shape(self, *lead):
        return self.f32(*lead, self.states, self.rows, LANES)


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _scan(u, step, a, b, c, keep, start, sizes: _Sizes):
    """The scan of padded operands: u, step [B, L, E/128, 128]; a [N, E/128, 128]; b, c [B, chunks,
    1, C N]; keep [B, chunks, 1, C]; start [B, N, E/128, 128].
    """
    return _run_forward((u, step, a, b, c, keep, start), sizes, save=False)[:2]


def _run_forward(operands, sizes, *, save: bool):
    u = operands[0]
    blocks = _Blocks(u, sizes, reverse=False)
    tokens, bc = [blocks.tokens] * 2, [blocks.bc] * 2
    outputs = [blocks.tokens, blocks.state]
    shapes = [blocks.f32(*u.shape), blocks.state_shape(blocks.batch)]
    if save:
        outputs.append(blocks.saved)
        shapes.append(blocks.state_shape(blocks.batch, blocks.chunks))
    return pallas_tpu.call(
        partial(_forward, sizes=sizes),
        blocks.grid,
        [*tokens, blocks.a, *bc, blocks.keep, blocks.state],
        outputs,
        shapes,
        blocks.scratch,
        *operands,
        interpret=sizes.interpret,
    )


def _scan_forward(*operands_and_sizes):
    *operands, sizes = operands_and_sizes
    y, last, before = _run_forward(operands, sizes, save=True)
    return (y, last), (*operands[:-1], before)


def _scan_backward(sizes, residuals, cotangents):
    u, step, *_ = residuals
    blocks = _Blocks(u, sizes, reverse=True)
    batch, programs = blocks.grid[:2]
    tokens, bc = [blocks.tokens] * 2, [blocks.bc] * 2
    dbc = blocks.f32(batch, programs, blocks.length, blocks.states)
    du, dstep, da, db, dc, dstart = pallas_tpu.call(
        partial(_backward, sizes=sizes),
        blocks.grid,
        [*tokens, blocks.a, *bc, blocks.keep, blocks.saved, blocks.tokens, blocks.state],
        [*tokens, blocks.state, blocks.dbc, blocks.dbc, blocks.state],
        [
            jax.ShapeDtypeStruct(u.shape, u.dtype),
            blocks.f32(*step.shape),
            blocks.state_shape(batch),
            dbc,
            dbc,
            blocks.state_shape(batch),
        ],
        [*blocks.scratch, blocks.history, blocks.rows_of_bc, blocks.rows_of_bc],
        *residuals,
        *cotangents,
        interpret=sizes.interpret,
    )
    db, dc = (d.sum(axis=1).reshape(residuals[3].shape) for d in (db, dc))
    return du, dstep, da.sum(axis=0), db, dc, None, dstart


_scan.defvjp(_scan_forward, _scan_backward)


def obstacle(u_BLE: jax.Array, a_EN: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    if a_EN.shape[1] > _MOST_STATES:
        return f"state_size {a_EN.shape[1]} is more than {_MOST_STATES}"
    return pallas_tpu.obstacle(u_BLE)


def selective_scan(
    u_BLE: jax.Array,
    step_BLE: jax.Array,
    a_EN: jax.Array,
    b_BLN: jax.Array,
    c_BLN: jax.Array,
    resets_BL: jax.Array | None,
    h0_BEN: jax.Array,
    *,
    interpret: pallas_tpu.Interpret = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.diagonal_scan.selective.selective_scan`; any L, any E."""
    batch, length, inner = u_BLE.shape
    tile = LANES * (SUBLANES if inner > LANES * SUBLANES else 1)
    keep_BL = jnp.zeros(u_BLE.shape[:2], jnp.float32)
    if resets_BL is not None:
        keep_BL = jnp.where(resets_BL, _CLEAR, keep_BL)

    def tiles(x):
        """[..., E] -> [..., E/128, 128]; a channel of zeros stays zero."""
        x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -inner % tile)])
        return x.reshape(*x.shape[:-1], -1, LANES)

    def by_token(x):
        """A token of zeros keeps the state: its step is 0."""
        return tiles(padded(x, _CHUNK))

    def scalars(x):
        """[B, L, ...] -> [B, chunks, 1, the numbers of a chunk]"""
        x = padded(x.astype(jnp.float32), _CHUNK)
        return x.reshape(batch, x.shape[1] // _CHUNK, 1, -1)

    y, last = _scan(  # pyright: ignore[reportGeneralTypeIssues]
        by_token(u_BLE),
        by_token(step_BLE.astype(jnp.float32)),
        tiles(a_EN.astype(jnp.float32).T),
        scalars(b_BLN),
        scalars(c_BLN),
        scalars(keep_BL),
        tiles(h0_BEN.swapaxes(1, 2)),
        _Sizes(a_EN.shape[1], _CHUNK, interpret),
    )
    y_BLE = y.reshape(batch, y.shape[1], -1)[:, :length, :inner]
    h_BNE = last.reshape(batch, last.shape[1], -1)[..., :inner]
    return y_BLE, h_BNE.swapaxes(1, 2)
