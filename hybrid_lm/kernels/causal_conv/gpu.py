"""The causal convolution as Pallas kernels for NVIDIA GPUs (Triton backend).

It is bound by memory. A program walks over the tokens of a chunk with the last W - 1 inputs of its
channels in registers, so that every input is read once; backwards it also holds the gradients of
the last W - 1 inputs, to which later outputs still add. Rows are loaded several at a time, to
have enough of them under way. Gradients of taps and bias are summed per program, then over
programs, in a fixed order: repeats are bit-identical.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.causal_conv import xla
from hybrid_lm.kernels.pallas_triton import load, store

_LOG2_E = 1.4426950408889634
_CHANNELS = 256  # of a program
_TOKENS = 128  # of a program
_ROWS = 8  # tokens whose loads are under way together
_WARPS = 1
_AHEAD = True
_MIN_CHANNELS = 16
_WIDTHS = (2, 3, 4)


class Options(NamedTuple):
    """What is compiled; ``interpret`` runs it as plain XLA."""

    silu: bool
    interpret: bool


class _Tile:
    """The tokens and channels of a program, and its loads and stores in float32."""

    def __init__(self, x, seen, channels: int, tokens: int):
        self.batch = pl.program_id(2)
        self.start = pl.program_id(1) * tokens
        self.channels, self.seen = channels, seen
        self.length, self.inner = x.shape[1:]
        first = pl.program_id(0) * channels
        self.lanes = pl.ds(first, channels)
        self.inside = first + jnp.arange(channels) < self.inner

    def _mask(self, where):
        """For a row that is there where ``where`` holds; None if all of it always is."""
        ragged = self.inner % self.channels != 0
        if where is None:
            return self.inside if ragged else None
        return self.inside & where if ragged else jnp.broadcast_to(where, self.inside.shape)

    def parameters(self, ref, at=()):
        return load(ref, (*at, self.lanes), self._mask(None)).astype(jnp.float32)

    def raw(self, ref, t, where):
        return load(ref, (self.batch, t, self.lanes), self._mask(where))

    def row(self, ref, t, where):
        return self.raw(ref, t, where).astype(jnp.float32)

    def store(self, ref, t, where, value):
        store(ref, (self.batch, t, self.lanes), value, self._mask(where))

    def before(self, x, past):
        """The W - 1 inputs before the chunk, the newest first."""
        rows, first = [], self.start == 0
        for back in range(1, past.shape[1] + 1):
            inner = self.row(x, self.start - back, ~first)
            rows.append(inner + self.row(past, past.shape[1] - back, first))
        return rows

    def seen_before(self, t):
        """How many of the tokens before it a token sees; None: all W - 1."""
        if self.seen is None:
            return None
        return load(self.seen, (self.batch, t), t < self.length)


def _if_seen(value, back, seen):
    return value if seen is None else jnp.where(seen >= back, value, 0.0)


def _sigmoid(x):
    return 1 / (1 + jnp.exp2(-_LOG2_E * x))


def _forward(x, weight, bias, past, *refs, silu, channels, tokens, rows):
    *seen, y = refs
    tile = _Tile(x, seen[0] if seen else None, channels, tokens)
    taps = [tile.parameters(weight, (w,)) for w in range(weight.shape[0])]
    bias_C = tile.parameters(bias)

    end = jnp.minimum(tile.start + tokens, tile.length)

    def rows_of(t0):
        return [tile.raw(x, t0 + r, t0 + r < end) for r in range(rows)]

    def group(i, carry):
        earlier, loaded = carry
        t0 = tile.start + i * rows
        seens = [tile.seen_before(t0 + r) for r in range(rows)]
        if _AHEAD:
            ahead = rows_of(t0 + rows)
        else:
            loaded, ahead = rows_of(t0), loaded
        for r, raw_C in enumerate(loaded):
            x_C = raw_C.astype(jnp.float32)
            seen = seens[r]
            y_C = bias_C + taps[-1] * x_C
            for back, earlier_C in enumerate(earlier, 1):
                y_C += taps[-1 - back] * _if_seen(earlier_C, back, seen)
            y_C = y_C * _sigmoid(y_C) if silu else y_C
            tile.store(y, t0 + r, t0 + r < tile.length, y_C)
            earlier = [x_C, *earlier[:-1]]
        return earlier, ahead

    first = rows_of(tile.start) if _AHEAD else []
    jax.lax.fori_loop(0, tokens // rows, group, (tile.before(x, past), first))


def _backward(x, weight, bias, past, dy, dlast, *refs, silu, channels, tokens, rows):
    """With p the sum before silu and dp its cotangent::

    dx_t = sum_w weight_{W-1-w} dp_{t+w}      dweight_{W-1-w} = sum_t dp_t x_{t-w}
    """
    *seen, dx, dparameters = refs
    tile = _Tile(x, seen[0] if seen else None, channels, tokens)
    width = weight.shape[0]
    tail = tile.length - (width - 1)
    taps = [tile.parameters(weight, (w,)) for w in range(width)]
    bias_C = tile.parameters(bias)

    def token(x_C, dy_C, seen, earlier, open_):
        """dp, the inputs it is of, newest first, and the gradients of these inputs so far."""
        inputs = [x_C, *(_if_seen(e, back, seen) for back, e in enumerate(earlier, 1))]
        dp_C = dy_C
        if silu:
            p_C = bias_C
            for tap, input_C in zip(reversed(taps), inputs, strict=True):
                p_C += tap * input_C
            sigmoid_C = _sigmoid(p_C)
            dp_C *= sigmoid_C * (1 + p_C * (1 - sigmoid_C))
        adds = [taps[-1 - back] * _if_seen(dp_C, back, seen) for back in range(width)]
        open_ = [adds[0], *(o + add for o, add in zip(open_, adds[1:], strict=True))]
        return dp_C, inputs, open_

    def rows_of(t0, count):
        """x, dy and what is seen, of some tokens; all loads before any is used."""
        places = [t0 + r for r in range(count)]
        here = [t < tile.length for t in places]
        loaded = [
            [tile.raw(ref, t, h) for t, h in zip(places, here, strict=True)] for ref in (x, dy)
        ]
        seens = [tile.seen_before(t) for t in places]
        for t, x_C, dy_C, seen in zip(places, *loaded, seens, strict=True):
            yield t, x_C.astype(jnp.float32), dy_C.astype(jnp.float32), seen

    def close(t, dx_C):
        inside = (t >= tile.start) & (t < tile.length)
        dlast_C = tile.row(dlast, t - tail, inside & (t >= tail))
        tile.store(dx, t, inside, dx_C + dlast_C)

    def group(i, carry):
        earlier, open_, sums = carry
        for t, x_C, dy_C, seen in rows_of(tile.start + i * rows, rows):
            dp_C, inputs, open_ = token(x_C, dy_C, seen, earlier, open_)
            close(t - (width - 1), open_.pop())
            sums = [s + dp_C * value for s, value in zip(sums, [*inputs, 1.0], strict=True)]
            earlier = [x_C, *earlier[:-1]]
        return earlier, open_, sums

    zero = jnp.zeros((channels,), jnp.float32)
    start = (tile.before(x, past), [zero] * (width - 1), [zero] * (width + 1))
    earlier, open_, sums = jax.lax.fori_loop(0, tokens // rows, group, start)
    for t, x_C, dy_C, seen in rows_of(tile.start + tokens, width - 1):
        _, _, open_ = token(x_C, dy_C, seen, earlier, open_)
        close(t - (width - 1), open_.pop())
        earlier = [x_C, *earlier[:-1]]
    *dtaps, dbias = sums
    program = tile.batch * pl.num_programs(1) + pl.program_id(1)
    for row, value in enumerate([*reversed(dtaps), dbias]):
        store(dparameters, (program, row, tile.lanes), value, tile._mask(None))


def _call(kernel, outputs, x, *operands, options: Options):
    batch, length, inner = x.shape
    grid = (pl.cdiv(inner, _CHANNELS), pl.cdiv(length, _TOKENS), batch)
    return pallas_triton.call(
        partial(kernel, silu=options.silu, channels=_CHANNELS, tokens=_TOKENS, rows=_ROWS),
        grid,
        outputs,
        x,
        *operands,
        warps=_WARPS,
        interpret=options.interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _conv(x, weight, bias, past, seen, options: Options):
    """y and the last W - 1 inputs; ``seen`` as of `xla.seen_before`, or None."""
    return _conv_forward(x, weight, bias, past, seen, options)[0]


def _conv_forward(x, weight, bias, past, seen, options):
    operands = (x, weight, bias, past, *(() if seen is None else (seen,)))
    y = _call(_forward, jax.ShapeDtypeStruct(x.shape, x.dtype), *operands, options=options)
    return (y, xla.last_inputs(x, seen, past)), (x, weight, bias, past, seen)


def _conv_backward(options, residuals, cotangents):
    x, weight, bias, past, seen = residuals
    dy, dlast = cotangents
    (batch, length, inner), width = x.shape, weight.shape[0]
    programs = batch * pl.cdiv(length, _TOKENS)
    outputs = (
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct((programs, width + 1, inner), jnp.float32),
    )
    if seen is not None:
        dlast = jnp.where(xla.of_last_document(seen, width - 1)[..., None], dlast, 0)
    operands = (x, weight, bias, past, dy, dlast, *(() if seen is None else (seen,)))
    dx, dparameters = _call(_backward, outputs, *operands, options=options)
    dparameters = dparameters.sum(axis=0)

    # The state before the row reaches its first tokens only.
    head = slice(width - 1)
    seen_head = None if seen is None else seen[:, head]

    def first_outputs(past):
        return xla.outputs(x[:, head], weight, bias, seen_head, past, silu=options.silu)

    (dpast,) = jax.vjp(first_outputs, past)[1](dy[:, head])
    dweight, dbias = dparameters[:-1].astype(weight.dtype), dparameters[-1].astype(bias.dtype)
    return dx, dweight, dbias, dpast, None


_conv.defvjp(_conv_forward, _conv_backward)


def obstacle(x_BLE: jax.Array, weight_WE: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    width, inner = weight_WE.shape
    if width not in _WIDTHS:
        return f"{width} taps"
    if inner < _MIN_CHANNELS:
        return f"{inner} channels"
    if x_BLE.shape[1] < width:
        return f"rows shorter than {width} tokens"
    return pallas_triton.obstacle(x_BLE)


def causal_conv(
    x_BLE: jax.Array,
    weight_WE: jax.Array,
    bias_E: jax.Array,
    resets_BL: jax.Array | None,
    past_BWE: jax.Array,
    *,
    silu: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.causal_conv.causal_conv`; any L of at least W tokens."""
    seen = None if resets_BL is None else xla.seen_before(resets_BL, weight_WE.shape[0])
    return _conv(  # pyright: ignore[reportGeneralTypeIssues]
        x_BLE, weight_WE, bias_E, past_BWE, seen, Options(silu, interpret)
    )
