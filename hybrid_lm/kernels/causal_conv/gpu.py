"""The causal convolution as Pallas kernels for NVIDIA GPUs (Triton backend).

It is bound by memory. A program walks over the tokens of a chunk with the last W - 1 inputs of its
channels in registers, so that every input is read once; backwards it also holds the gradients of
the last W - 1 inputs, to which later outputs still add. Tokens are loaded in groups, to have enough
of them under way; forward, those of the next group while one is computed. Gradients of taps and
bias are summed per program, then over programs, in a fixed order: repeats are bit-identical.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.causal_conv import xla
from hybrid_lm.kernels.pallas_triton import load, store

_LOG2_E = 1.4426950408889634
_CHANNELS = 128  # of a program: four a lane
_ROWS = 8  # tokens whose loads are under way together
_TOKENS = tuple(range(64, 321, _ROWS))  # of a program
_PROGRAMS = 132 * 16  # that run side by side backwards, on an H100
_MIN_CHANNELS = 16
_WIDTHS = (2, 3, 4)
_BITS = max(_WIDTHS) - 1  # what one token sees before it


class Options(NamedTuple):
    """What is compiled: also the widths of the outputs; ``interpret`` runs it as plain XLA."""

    silu: bool
    parts: tuple[int, ...]
    interpret: bool


class _Tile:
    """The tokens and channels of a program, and its loads and stores in float32.

    ``part_start`` is the first channel of the output, if there are several, that is its own.
    """

    def __init__(self, x, weight, words, channels: int, tokens: int, place, part_start: int):
        block, chunk, self.batch = place
        self.start = chunk * tokens
        self.channels, self.words = channels, words
        self.length, self.inner = x.shape[1], weight.shape[1]
        first = block * channels
        self.lanes = pl.ds(first, channels)
        self.lanes_of_part = pl.ds(first - part_start, channels)
        self.inside = first + jnp.arange(channels) < self.inner

    def _mask(self, where):
        """For a row that is there where ``where`` holds; None if all of it always is."""
        ragged = self.inner % self.channels != 0
        if where is None:
            return self.inside if ragged else None
        return self.inside & where if ragged else jnp.broadcast_to(where, self.inside.shape)

    def parameters(self, ref, at=()):
        return load(ref, (*at, self.lanes), self._mask(None)).astype(jnp.float32)

    def _at(self, ref, t):
        whole = ref.shape[2] >= self.inner
        return self.batch, t, self.lanes if whole else self.lanes_of_part

    def raw(self, ref, t, where):
        return load(ref, self._at(ref, t), self._mask(where))

    def store_parameters(self, ref, at, value):
        store(ref, (*at, self.lanes), value, self._mask(None))

    def row(self, ref, t, where):
        return self.raw(ref, t, where).astype(jnp.float32)

    def store(self, ref, t, where, value):
        store(ref, self._at(ref, t), value, self._mask(where))

    def before(self, x, past):
        """The W - 1 inputs before the chunk, the newest first."""
        rows, first = [], self.start == 0
        for back in range(1, past.shape[1] + 1):
            inner = self.row(x, self.start - back, ~first)
            rows.append(inner + self.row(past, past.shape[1] - back, first))
        return rows

    def word(self, t0, rows):
        """That of `_words` of the group from t0 on; as of documents of one token behind the row.

        None: all tokens see all before them.
        """
        if self.words is None:
            return None
        group = t0 // rows
        return load(self.words, (self.batch, group), group < self.words.shape[1])


def _if_seen(value, back, seen):
    """``value``, of the token ``back`` before one that sees those of the bits in ``seen``; else 0.

    By a mask of all bits, made once for all channels: a choice takes predicates of its own.
    """
    if seen is None or back == 0:
        return value
    mask = (seen << (32 - back)) >> 31
    bits = jax.lax.bitcast_convert_type(value, jnp.int32)
    return jax.lax.bitcast_convert_type(bits & mask, jnp.float32)


def _sigmoid(x):
    return 1 / (1 + jnp.exp2(-_LOG2_E * x))


def _seen_in(word, r):
    """Which tokens before it token r of the group sees, in bits; None: all."""
    return None if word is None else word >> _BITS * r


def _all_seen(width: int, rows: int) -> int:
    """The word of a group whose tokens see all before them."""
    return sum(((1 << (width - 1)) - 1) << _BITS * r for r in range(rows))


def _words(seen_BL, rows: int):
    """Which of the tokens before it each token of a group sees, a bit each: int32 [B, L / rows].

    ``seen_BL`` is their number, of `xla.seen_before`.
    """
    batch, length = seen_BL.shape
    seen_BL = jnp.pad(seen_BL, ((0, 0), (0, -length % rows)))
    shifted = ((1 << seen_BL) - 1).reshape(batch, -1, rows) << _BITS * jnp.arange(rows)
    return shifted.sum(axis=-1, dtype=jnp.int32)


def _forward(x, weight, bias, past, y, *words, silu, channels, tokens, rows, place, part_start):
    tile = _Tile(x, weight, words[0] if words else None, channels, tokens, place, part_start)
    width = weight.shape[0]
    taps = [tile.parameters(weight, (w,)) for w in range(width)]
    bias_C = tile.parameters(bias)
    end = jnp.minimum(tile.start + tokens, tile.length)

    def rows_of(t0):
        return [tile.raw(x, t0 + r, t0 + r < end) for r in range(rows)]

    def group(i, carry):
        earlier, loaded = carry
        t0 = tile.start + i * rows
        word = tile.word(t0, rows)
        ahead = rows_of(t0 + rows)

        def tokens_of_group(word):
            inputs = earlier
            for r, raw_C in enumerate(loaded):
                x_C, seen = raw_C.astype(jnp.float32), _seen_in(word, r)
                y_C = bias_C + taps[-1] * x_C
                for back, earlier_C in enumerate(inputs, 1):
                    y_C += taps[-1 - back] * _if_seen(earlier_C, back, seen)
                y_C = y_C * _sigmoid(y_C) if silu else y_C
                tile.store(y, t0 + r, t0 + r < tile.length, y_C)
                inputs = [x_C, *inputs[:-1]]
            return inputs

        if word is None:
            return tokens_of_group(None), ahead
        # Few groups are near the start of a document, and only they need masks.
        all_seen = word == _all_seen(width, rows)
        every, some = (partial(tokens_of_group, of) for of in (None, word))
        return jax.lax.cond(all_seen, every, some), ahead

    start = (tile.before(x, past), rows_of(tile.start))
    jax.lax.fori_loop(0, tokens // rows, group, start)


def _backward(x, weight, bias, past, dy, *refs, silu, channels, tokens, rows, place, part_start):
    """With p the sum before silu and dp its cotangent::

    dx_t = sum_w weight_{W-1-w} dp_{t+w}      dweight_{W-1-w} = sum_t dp_t x_{t-w}
    """
    *words, dx, dparameters = refs
    tile = _Tile(x, weight, words[0] if words else None, channels, tokens, place, part_start)
    width = weight.shape[0]
    taps = [tile.parameters(weight, (w,)) for w in range(width)]
    bias_C = tile.parameters(bias)

    def token(t, x_C, dy_C, seen, carry):
        """Adds what the token adds; closes the gradient of the oldest input that it sees.

        In ``carry`` are the inputs before it, newest first, their gradients so far, and the sums
        for taps and bias.
        """
        earlier, open_, sums = carry
        inputs = [x_C, *(_if_seen(e, back, seen) for back, e in enumerate(earlier, 1))]
        dp_C = dy_C
        if silu:
            p_C = bias_C
            for tap, input_C in zip(reversed(taps), inputs, strict=True):
                p_C += tap * input_C
            sigmoid_C = _sigmoid(p_C)
            dp_C *= sigmoid_C * (1 + p_C * (1 - sigmoid_C))
        adds = [taps[-1 - back] * _if_seen(dp_C, back, seen) for back in range(width)]
        *open_, dx_C = [adds[0], *(o + add for o, add in zip(open_, adds[1:], strict=True))]
        done = t - (width - 1)
        tile.store(dx, done, (done >= tile.start) & (done < tile.length), dx_C)
        sums = [s + dp_C * value for s, value in zip(sums, [*inputs, 1.0], strict=True)]
        return [x_C, *earlier[:-1]], open_, sums

    def load_rows(t0, count):
        places = [t0 + r for r in range(count)]
        return [[tile.raw(ref, t, t < tile.length) for t in places] for ref in (x, dy)]

    def wide(loaded):
        for x_C, dy_C in zip(*loaded, strict=True):
            yield x_C.astype(jnp.float32), dy_C.astype(jnp.float32)

    def group(i, carry):
        t0 = tile.start + i * rows
        loaded = load_rows(t0, rows)
        word = tile.word(t0, rows)

        def at_once():
            after = carry
            for r, (x_C, dy_C) in enumerate(wide(loaded)):
                after = token(t0 + r, x_C, dy_C, None, after)
            return after

        def by_token(r, carry):
            ((x_C, dy_C),) = wide(load_rows(t0 + r, 1))
            return token(t0 + r, x_C, dy_C, _seen_in(word, r), carry)

        if word is None:
            return at_once()
        # Written out as forward, the few that need masks would leave registers for fewer programs.
        all_seen = word == _all_seen(width, rows)
        return jax.lax.cond(all_seen, at_once, lambda: jax.lax.fori_loop(0, rows, by_token, carry))

    zero = jnp.zeros((channels,), jnp.float32)
    start = (tile.before(x, past), [zero] * (width - 1), [zero] * (width + 1))
    carry = jax.lax.fori_loop(0, tokens // rows, group, start)
    *_, sums = carry
    end = tile.start + tokens
    word = tile.word(end, rows)
    for r, (x_C, dy_C) in enumerate(wide(load_rows(end, width - 1))):
        carry = token(end + r, x_C, dy_C, _seen_in(word, r), carry)
    *dtaps, dbias = sums
    program = tile.batch * pl.num_programs(1) + place[1]
    for row, value in enumerate([*reversed(dtaps), dbias]):
        tile.store_parameters(dparameters, (program, row), value)


def _by_part(kernel, first_four, of_parts, rest, parts):
    """Runs the kernel on the output that the program's channels are of."""
    kernel = partial(kernel, place=[pl.program_id(axis) for axis in range(3)])
    if len(parts) == 1:
        return kernel(*first_four, *of_parts, *rest, part_start=0)
    channel, start = pl.program_id(0) * _CHANNELS, 0
    for width, of_part in zip(parts, of_parts, strict=True):
        inside = (channel >= start) & (channel < start + width)
        pl.when(inside)(partial(kernel, *first_four, of_part, *rest, part_start=start))
        start += width


def _call(kernel, outputs, x, weight, *operands, parts_at: int, tokens: int, options: Options):
    """``kernel`` takes the ref of its part of the outputs, or of their cotangents, as the fifth.

    In operands and outputs the parts are from place ``parts_at`` on.
    """
    (batch, length, _), inner = x.shape, weight.shape[1]
    count = len(options.parts)
    kernel = partial(kernel, silu=options.silu, channels=_CHANNELS, tokens=tokens, rows=_ROWS)

    def program(*refs):
        of_parts = refs[parts_at : parts_at + count]
        rest = (*refs[4:parts_at], *refs[parts_at + count :])
        _by_part(kernel, refs[:4], of_parts, rest, options.parts)

    return pallas_triton.call(
        program,
        (pl.cdiv(inner, _CHANNELS), pl.cdiv(length, tokens), batch),
        outputs,
        x,
        weight,
        *operands,
        warps=1,
        interpret=options.interpret,
    )


def _tokens_backward(batch: int, length: int, inner: int) -> int:
    """Tokens of a program: many for few partial sums, but so that the last round is full."""

    def cost(tokens):
        programs = batch * pl.cdiv(length, tokens) * pl.cdiv(inner, _CHANNELS)
        # As many as 10 tokens more: partial sums, and what is read again at the edges.
        return pl.cdiv(programs, _PROGRAMS) * (tokens + 10)

    return min(_TOKENS, key=cost)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _outputs(x, weight, bias, past, seen, options: Options):
    """y in parts; ``seen`` as of `xla.seen_before`, or None."""
    words = () if seen is None else (_words(seen, _ROWS),)
    ys = [jax.ShapeDtypeStruct((*x.shape[:2], width), x.dtype) for width in options.parts]
    operands = (x, weight, bias, past, *words)
    return _call(
        _forward,
        ys,
        *operands,
        parts_at=len(operands),
        tokens=_TOKENS[0],
        options=options,
    )


def _outputs_forward(x, weight, bias, past, seen, options):
    return _outputs(x, weight, bias, past, seen, options), (x, weight, bias, past, seen)


def _outputs_backward(options, residuals, dys):
    x, weight, bias, past, seen = residuals
    (batch, length, _), (width, inner) = x.shape, weight.shape
    tokens = _tokens_backward(batch, length, inner)
    programs = batch * pl.cdiv(length, tokens)
    results = (
        jax.ShapeDtypeStruct(x.shape, x.dtype),
        jax.ShapeDtypeStruct((programs, width + 1, inner), jnp.float32),
    )
    words = () if seen is None else (_words(seen, _ROWS),)
    operands = (x, weight, bias, past, *dys, *words)
    dx, dparameters = _call(
        _backward, results, *operands, parts_at=4, tokens=tokens, options=options
    )
    dparameters = dparameters.sum(axis=0)

    # The state before the row reaches its first tokens only.
    head = slice(width - 1)
    seen_head = None if seen is None else seen[:, head]

    def first_outputs(past):
        return xla.outputs(x[:, head, :inner], weight, bias, seen_head, past, silu=options.silu)

    dy_head = jnp.concatenate([dy[:, head] for dy in dys], axis=-1)
    (dpast,) = jax.vjp(first_outputs, past)[1](dy_head)
    dweight, dbias = dparameters[:-1].astype(weight.dtype), dparameters[-1].astype(bias.dtype)
    # The kernel writes nothing behind the E channels: in place, where a sum would copy all.
    return dx.at[..., inner:].set(0), dweight, dbias, dpast, None


_outputs.defvjp(_outputs_forward, _outputs_backward)


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
    parts: tuple[int, ...] | None = None,
    interpret: bool = False,
) -> tuple[Any, jax.Array]:
    """See `hybrid_lm.kernels.causal_conv.causal_conv`; any L of at least W tokens."""
    seen_BL = None if resets_BL is None else xla.seen_before(resets_BL, weight_WE.shape[0])
    written = weight_WE.shape[1:]
    if parts is not None and all(part % _CHANNELS == 0 for part in parts):
        written = parts
    options = Options(silu, written, interpret)
    ys: Any = _outputs(x_BLE, weight_WE, bias_E, past_BWE, seen_BL, options)
    ys = ys if written is parts else xla.in_parts(ys[0], parts)
    # Outside of the kernels' gradient: training has no use for it, and then it costs nothing.
    return ys, xla.last_inputs(x_BLE[..., : weight_WE.shape[1]], seen_BL, past_BWE)
