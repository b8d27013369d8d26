"""The selective scan as Pallas kernels for NVIDIA GPUs (Triton backend).

One lane owns a channel and holds its N states in N separate registers: no cross-lane sums but
those over channels that dB and dC need. Time is cut in chunks to fill the card; a chunk is scanned
from zero first (`_chunk_end`), chunk ends are passed on (`_pass_on`), and a second scan starts from
the right state (`_outputs`). The backward pass mirrors this in reverse time and recomputes states
from a checkpoint every `_STRIDE` tokens. All sums are in a fixed order: repeats are bit-identical.

Layout: decays in log2 (one exp2 each); `keep` is 0, or -1e30 where a document starts, and is added
to the log decay. State arrays are [B, chunks, N, E] so that lanes touch neighbouring addresses.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton

_CLEAR = -1e30  # log2 of the decay across a start of document; exp2 of it is exactly 0
_LOG2_E = 1.4426950408889634
_CHUNK = 256  # tokens scanned by one program
_STRIDE = 4  # tokens between the states that the backward pass restarts from
_LANES = 32  # channels of a program: one warp


def _load_rows(ref, lead, n, lanes):
    """N vectors of lanes: rows ``ref[*lead, 0..n-1, lanes]``."""
    return [ref[(*lead, i, lanes)] for i in range(n)]


def _step(h, a, step, keep, x, b_ref, at):
    """States after a token, and the decays: ``h_n = 2^(a_n step + keep) h_n + x B_n``."""
    decay = [jnp.exp2(a_n * step + keep) for a_n in a]
    return [
        d * h_n + x * b_ref[(*at, n)] for n, (d, h_n) in enumerate(zip(decay, h, strict=True))
    ], decay


def _chunk_end(u, step, a, b, keep, end, total, *, states, chunk):
    """Scan a chunk from zero: the state it leaves, and the sum of its steps."""
    row, piece = pl.program_id(0), pl.program_id(1)
    lanes = pl.ds(pl.program_id(2) * _LANES, _LANES)
    a_n = _load_rows(a, (), states, lanes)

    def token(t, carry):
        h, sum_ = carry
        t = piece * chunk + t
        step_t = step[row, t, lanes]
        x = step_t * u[row, t, lanes].astype(jnp.float32)
        h, _ = _step(h, a_n, step_t, keep[row, t], x, b, (row, t))
        return h, sum_ + step_t

    zero = jnp.zeros((_LANES,), jnp.float32)
    h, sum_ = jax.lax.fori_loop(0, chunk, token, ([zero] * states, zero))
    for n in range(states):
        end[row, piece, n, lanes] = h[n]
    total[row, piece, lanes] = sum_


def _pass_on(end, decay, start, before, last, *, pieces, reverse):
    """``before[c]`` is what enters chunk c when each chunk maps s to ``decay s + end``."""
    row, n = pl.program_id(0), pl.program_id(1)
    lanes = pl.ds(pl.program_id(2) * 128, 128)

    def piece(c, s):
        c = pieces - 1 - c if reverse else c
        before[row, c, n, lanes] = s
        return decay[row, c, n, lanes] * s + end[row, c, n, lanes]

    last[row, n, lanes] = jax.lax.fori_loop(0, pieces, piece, start[row, n, lanes])


def _outputs(u, step, a, b, c, keep, before, y, *saved, states, chunk):
    """Scan a chunk from its true start: outputs, and the state before every `_STRIDE` tokens."""
    row, piece = pl.program_id(0), pl.program_id(1)
    lanes = pl.ds(pl.program_id(2) * _LANES, _LANES)
    a_n = _load_rows(a, (), states, lanes)

    def stride(i, h):
        t0 = piece * chunk + i * _STRIDE
        for ref in saved:
            for n in range(states):
                ref[row, t0 // _STRIDE, n, lanes] = h[n]
        for t in range(_STRIDE):
            t = t0 + t
            step_t = step[row, t, lanes]
            x = step_t * u[row, t, lanes].astype(jnp.float32)
            h, _ = _step(h, a_n, step_t, keep[row, t], x, b, (row, t))
            y_t = h[0] * c[row, t, 0]
            for n in range(1, states):
                y_t += h[n] * c[row, t, n]
            y[row, t, lanes] = y_t.astype(y.dtype)
        return h

    jax.lax.fori_loop(0, chunk // _STRIDE, stride, _load_rows(before, (row, piece), states, lanes))


def _cotangent_start(step, a, c, keep, dy, start, *, states, chunk):
    """Reverse scan of a chunk from zero: the cotangent of the state that enters it."""
    row, piece = pl.program_id(0), pl.program_id(1)
    lanes = pl.ds(pl.program_id(2) * _LANES, _LANES)
    a_n = _load_rows(a, (), states, lanes)

    def token(i, g):
        t = piece * chunk + chunk - 1 - i
        step_t, keep_t = step[row, t, lanes], keep[row, t]
        dy_t = dy[row, t, lanes].astype(jnp.float32)
        return [
            jnp.exp2(a_n[n] * step_t + keep_t) * (g[n] + dy_t * c[row, t, n]) for n in range(states)
        ]

    zero = jnp.zeros((_LANES,), jnp.float32)
    g = jax.lax.fori_loop(0, chunk, token, [zero] * states)
    for n in range(states):
        start[row, piece, n, lanes] = g[n]


def _gradients(u, step, a, b, c, keep, saved, dy, after, du, dstep, da, db, dc, *, states, chunk):
    """Reverse scan of a chunk from its true end: all gradients.

    With g the cotangent of h_t (from later tokens and from y_t) and e = g decay h_{t-1}::

        dC_n = sum_E h_n dy      dB_n = sum_E g_n step u      du = step sum_n g_n B_n
        dstep = u sum_n g_n B_n + ln 2 sum_n a_n e_n          da_n = ln 2 sum_t step e_n
    """
    row, piece, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    lanes = pl.ds(block * _LANES, _LANES)
    a_n = _load_rows(a, (), states, lanes)
    strides = chunk // _STRIDE

    def stride(i, carry):
        g, da_n = carry
        t0 = piece * chunk + (strides - 1 - i) * _STRIDE
        h = _load_rows(saved, (row, t0 // _STRIDE), states, lanes)
        history, decays = [h], []
        for t in range(_STRIDE):
            step_t = step[row, t0 + t, lanes]
            x = step_t * u[row, t0 + t, lanes].astype(jnp.float32)
            h, decay = _step(h, a_n, step_t, keep[row, t0 + t], x, b, (row, t0 + t))
            history.append(h)
            decays.append(decay)
        for t in reversed(range(_STRIDE)):
            at, h, h_before, decay = t0 + t, history[t + 1], history[t], decays[t]
            step_t, dy_t = step[row, at, lanes], dy[row, at, lanes].astype(jnp.float32)
            u_t = u[row, at, lanes].astype(jnp.float32)
            x = step_t * u_t
            g = [g[n] + dy_t * c[row, at, n] for n in range(states)]
            dx, dlog = jnp.zeros((_LANES,), jnp.float32), jnp.zeros((_LANES,), jnp.float32)
            for n in range(states):
                dc[row, block, at, n] = jnp.sum(h[n] * dy_t)
                db[row, block, at, n] = jnp.sum(g[n] * x)
                dx += g[n] * b[row, at, n]
                g[n] = g[n] * decay[n]
                e = g[n] * h_before[n]
                dlog += a_n[n] * e
                da_n[n] += step_t * e
            du[row, at, lanes] = (step_t * dx).astype(du.dtype)
            dstep[row, at, lanes] = u_t * dx + dlog / _LOG2_E
        return g, da_n

    zero = jnp.zeros((_LANES,), jnp.float32)
    g = _load_rows(after, (row, piece), states, lanes)
    _, da_n = jax.lax.fori_loop(0, strides, stride, (g, [zero] * states))
    for n in range(states):
        da[row, piece, n, lanes] = da_n[n] / _LOG2_E


class _Grid:
    """Sizes of the padded operands, and the calls over them."""

    def __init__(self, u_BLE: jax.Array, states: int, interpret: bool):
        self.batch, length, self.inner = u_BLE.shape
        self.states, self.interpret = states, interpret
        self.chunk = min(_CHUNK, length)
        self.pieces = length // self.chunk
        self.blocks = self.inner // _LANES

    def f32(self, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def per_chunk(self):
        return self.f32(self.batch, self.pieces, self.states, self.inner)

    def scan(self, kernel, outputs, *operands):
        kernel = partial(kernel, states=self.states, chunk=self.chunk)
        grid = (self.batch, self.pieces, self.blocks)
        return pallas_triton.call(
            kernel, grid, outputs, *operands, warps=1, interpret=self.interpret
        )

    def decay(self, total, a, keep):
        """Decay [B, chunks, N, E] over each whole chunk."""
        kept = keep.reshape(self.batch, self.pieces, -1).min(axis=-1)[..., None, None]
        return jnp.exp2(a * total[:, :, None] + kept)

    def pass_on(self, end, decay, start, *, reverse):
        kernel = partial(_pass_on, pieces=self.pieces, reverse=reverse)
        outputs = (self.per_chunk(), self.f32(self.batch, self.states, self.inner))
        grid = (self.batch, self.states, self.inner // 128)
        return pallas_triton.call(
            kernel, grid, outputs, end, decay, start, warps=4, interpret=self.interpret
        )


@partial(jax.custom_vjp, nondiff_argnums=(7,))
def _scan(u, step, a, b, c, keep, h0, interpret):
    """The scan of padded operands: u, step [B, L, E]; a (in log2) [N, E]; b, c [B, L, N];
    keep [B, L]; h0 [B, N, E].
    """
    return _scan_forward(u, step, a, b, c, keep, h0, interpret, save=False)[0]


def _scan_forward(u, step, a, b, c, keep, h0, interpret, save=True):
    grid = _Grid(u, a.shape[0], interpret)
    total_shape = grid.f32(grid.batch, grid.pieces, grid.inner)
    end, total = grid.scan(_chunk_end, (grid.per_chunk(), total_shape), u, step, a, b, keep)
    decay = grid.decay(total, a, keep)
    before, last = grid.pass_on(end, decay, h0, reverse=False)
    y_shape = jax.ShapeDtypeStruct(u.shape, jnp.float32)
    outputs = [y_shape]
    if save:
        outputs.append(grid.f32(grid.batch, u.shape[1] // _STRIDE, grid.states, grid.inner))
    y, *saved = grid.scan(_outputs, outputs, u, step, a, b, c, keep, before)
    return (y, last), (u, step, a, b, c, keep, decay, *saved)


def _scan_backward(interpret, residuals, cotangents):
    u, step, a, b, c, keep, decay, saved = residuals
    dy, dlast = cotangents
    grid = _Grid(u, a.shape[0], interpret)
    start = grid.scan(_cotangent_start, grid.per_chunk(), step, a, c, keep, dy)
    after, dh0 = grid.pass_on(start, decay, dlast, reverse=True)
    per_block = grid.f32(grid.batch, grid.blocks, *b.shape[1:])
    du_shape = jax.ShapeDtypeStruct(u.shape, u.dtype)
    outputs = (du_shape, grid.f32(*u.shape), grid.per_chunk(), per_block, per_block)
    du, dstep, da, db, dc = grid.scan(_gradients, outputs, u, step, a, b, c, keep, saved, dy, after)
    return du, dstep, da.sum(axis=(0, 1)), db.sum(axis=1), dc.sum(axis=1), None, dh0


_scan.defvjp(_scan_forward, _scan_backward)


def obstacle(u_BLE: jax.Array, a_EN: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    common = pallas_triton.obstacle(u_BLE)
    if common is None and a_EN.shape[1] > 16:
        return f"state_size {a_EN.shape[1]} is more than the 16 that fit the registers"
    return common


def selective_scan(
    u_BLE: jax.Array,
    step_BLE: jax.Array,
    a_EN: jax.Array,
    b_BLN: jax.Array,
    c_BLN: jax.Array,
    resets_BL: jax.Array | None,
    h0_BEN: jax.Array,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.diagonal_scan.selective.selective_scan`; any L, any E."""
    _, length, inner = u_BLE.shape
    multiple = _CHUNK if length > _CHUNK else _STRIDE
    tokens, channels = -length % multiple, -inner % 128

    def pad(x, *edges):
        """Zero-pad: a zero step keeps the state, a zero channel stays zero."""
        return jnp.pad(x, [(0, edge) for edge in edges])

    keep_BL = jnp.zeros(u_BLE.shape[:2], jnp.float32)
    if resets_BL is not None:
        keep_BL = jnp.where(resets_BL, _CLEAR, keep_BL)
    y_BLE, h_BNE = _scan(  # pyright: ignore[reportGeneralTypeIssues]
        pad(u_BLE, 0, tokens, channels),
        pad(step_BLE.astype(jnp.float32), 0, tokens, channels),
        pad(a_EN.astype(jnp.float32).T * _LOG2_E, 0, channels),
        pad(b_BLN.astype(jnp.float32), 0, tokens, 0),
        pad(c_BLN.astype(jnp.float32), 0, tokens, 0),
        pad(keep_BL, 0, tokens),
        pad(h0_BEN.swapaxes(1, 2), 0, 0, channels),
        interpret,
    )
    return y_BLE[:, :length, :inner], h_BNE[..., :inner].swapaxes(1, 2)
