"""Backward kernels of the selective scan: walks in reverse time over a piece of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels.diagonal_scan.selective_forward import AHEAD, TOKENS
from hybrid_lm.kernels.diagonal_scan.selective_tile import (
    LOG2_E,
    Tile,
    inner,
    sigmoid,
    softplus,
    softplus_slope,
)

HELD = 4
"""States of a lane."""
SUMMED = 4
"""Tokens whose dB and dC are summed over the channels of a program at once."""


class _Group(NamedTuple):
    """Tokens worked out at once, a token a lane (float32).

    Attributes:
        raw: step before softplus, bias added.
        dout: cotangent of the output; dy: that of the read-out, before skip and gate.
        gate: z, if there is one.
    """

    u: jax.Array
    raw: jax.Array
    step: jax.Array
    dout: jax.Array
    dy: jax.Array
    gate: jax.Array | None


def _group(bias, u, step, dout, gate) -> _Group:
    gate = None if gate is None else gate.astype(jnp.float32)
    u, dout = u.astype(jnp.float32), dout.astype(jnp.float32)
    return _Group(u, *_steps(bias, step), dout, _read_cotangent(dout, gate), gate)


def _steps(bias, step):
    """Steps before and after softplus."""
    raw = step.astype(jnp.float32)
    if bias is None:
        return raw, raw
    return raw + bias, softplus(raw + bias)


def _read_cotangent(dout, gate):
    if gate is None:
        return dout.astype(jnp.float32)
    gate = gate.astype(jnp.float32)
    return dout.astype(jnp.float32) * gate * sigmoid(gate)


def walk_cotangent(
    x: dict[str, Any], y: dict[str, Any], *, states: int, length: int, interpret: bool
) -> None:
    """Reverse scan of a piece from zero: the cotangent of the state that enters it, and its decay.

    ``x`` as in `walk_gradients`; ``y``: start, decay [B, pieces, N, E].
    """
    row, piece, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tile = Tile(row, block, states=states, held=HELD, tokens=TOKENS, interpret=interpret)
    rounds = length // TOKENS
    a, bias = tile.get(x["a"]), tile.of_channel(x["bias"])
    by_token = [x["step"], x["dout"], x["gate"]]

    def load(i):
        t = piece * length + jnp.maximum(rounds - 1 - i, 0) * TOKENS
        return tile.load(by_token, t, TOKENS), tile.touch([x["c"]], t, TOKENS)

    def advance(i, carry):
        g, log_decay, ((tokens, near), *queue) = carry
        queue = (*queue, load(i + AHEAD))
        g = [g[0] + 0.0 * near, *g[1:]]  # a use, so that the touch is kept
        t0 = piece * length + (rounds - 1 - i) * TOKENS
        for index in reversed(range(len(tokens))):
            raw, dout, gate = tokens[index]
            (_, step), dy = _steps(bias, raw), _read_cotangent(dout, gate)
            for k in reversed(range(tile.tokens)):
                t = t0 + index * tile.tokens + k
                c, step_k, dy_k = tile.shared(x["c"], t), tile.of(step, k), tile.of(dy, k)
                keep = 0.0 if x["keep"] is None else x["keep"][row, t]
                logs = [a_n * step_k + keep for a_n in a]
                g = [
                    jnp.exp2(log) * (g_n + dy_k * c_n)
                    for log, g_n, c_n in zip(logs, g, c, strict=True)
                ]
                log_decay = [sum_ + log for sum_, log in zip(log_decay, logs, strict=True)]
        return g, log_decay, queue

    carry = (tile.zeros(), tile.zeros(), tuple(load(i) for i in range(AHEAD)))
    g, log_decay, _ = jax.lax.fori_loop(0, rounds, advance, carry)
    tile.put(y["start"], g, row, piece)
    tile.put(y["decay"], [jnp.exp2(log) for log in log_decay], row, piece)


def walk_gradients(
    x: dict[str, Any], y: dict[str, Any], *, states: int, length: int, interpret: bool
) -> None:
    """Reverse scan of a piece from its true end: all gradients.

    With dy the cotangent of the read-out, g that of h_t (from later tokens and from y_t) and
    e = g decay h_{t-1}::

        dC_n = sum_E h_n dy      dB_n = sum_E g_n step u      du = step sum_n g_n B_n + D dy
        dstep = u sum_n g_n B_n + ln 2 sum_n a_n e_n          da_n = ln 2 sum_t step e_n

    The states of a round are made anew from the one saved before it. ``x`` as in the forward walk,
    and dout [B, L, E], saved, after [B, pieces, N, E] (cotangent of the last state of each piece).
    ``y``: du, dstep, dgate [B, L, E]; start, da [B, pieces, N, E]; dskip, dbias [B, pieces, E];
    db_dc [B, blocks, L / SUMMED, S, SUMMED * 2 * HELD].
    """
    row, piece, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tile = Tile(row, block, states=states, held=HELD, tokens=TOKENS, interpret=interpret)
    rounds = length // TOKENS
    first = piece * rounds
    a, bias, skip = tile.get(x["a"]), tile.of_channel(x["bias"]), tile.of_channel(x["skip"])
    by_token = [x["u"], x["step"], x["dout"], x["gate"]]

    def load(i):
        i = first + jnp.maximum(rounds - 1 - i, 0)
        near = tile.touch([x["b"], x["c"]], i * TOKENS, TOKENS)
        return tile.get(x["saved"], row, i), tile.load(by_token, i * TOKENS, TOKENS), near

    def again(h, groups, t0):
        """Per token of a round: step, write, decay and the state after it, in all lanes."""
        made = []
        for at in range(TOKENS):
            group, k = groups[at // tile.tokens], at % tile.tokens
            b = tile.shared(x["b"], t0 + at)
            step, write = tile.of(group.step, k), tile.of(group.step * group.u, k)
            keep = 0.0 if x["keep"] is None else x["keep"][row, t0 + at]
            decay = [jnp.exp2(a_n * step + keep) for a_n in a]
            h = [d * h_n + write * b_n for d, h_n, b_n in zip(decay, h, b, strict=True)]
            made.append((step, write, decay, h))
        return made

    def advance(i, carry):
        g, da, dskip, dbias, ((before, tokens, near), *queue) = carry
        queue = (*queue, load(i + AHEAD))
        before = [before[0] + 0.0 * near, *before[1:]]  # a use, so that the touch is kept
        t0 = (first + rounds - 1 - i) * TOKENS
        groups = [_group(bias, *group) for group in tokens]
        made = again(before, groups, t0)
        summands = []
        for index in reversed(range(len(groups))):
            group = groups[index]
            dwrites, dlogs, reads = [], [], []
            for k in reversed(range(tile.tokens)):
                at = index * tile.tokens + k
                step, write, decay, h = made[at]
                h_before = made[at - 1][3] if at else before
                b, c = tile.shared(x["b"], t0 + at), tile.shared(x["c"], t0 + at)
                dy = tile.of(group.dy, k)
                g = [g_n + dy * c_n for g_n, c_n in zip(g, c, strict=True)]
                summands = [g_n * write for g_n in g] + [h_n * dy for h_n in h] + summands
                if len(summands) == SUMMED * 2 * HELD:
                    y["db_dc"][row, block, (t0 + at) // SUMMED] = tile.over_channels(summands)
                    summands = []
                dwrites.insert(0, inner(g, b))
                reads.insert(0, inner(h, c))
                g = [g_n * d for g_n, d in zip(g, decay, strict=True)]
                e = [g_n * h_n for g_n, h_n in zip(g, h_before, strict=True)]
                dlogs.insert(0, inner(a, e))
                da = [da_n + step * e_n for da_n, e_n in zip(da, e, strict=True)]
            place = tile.place(t0 + index * tile.tokens)
            dwrite = tile.by_token(dwrites)
            du = group.step * dwrite
            dstep = group.u * dwrite + tile.by_token(dlogs) / LOG2_E
            if skip is not None:
                du += skip * group.dy
                dskip += group.dy * group.u
            if bias is not None:
                dstep *= softplus_slope(group.raw, group.step)
                dbias += dstep
            if group.gate is not None:
                read = tile.by_token(reads)
                read = read if skip is None else read + skip * group.u
                opening = sigmoid(group.gate)
                slope = opening * (1 + group.gate * (1 - opening))
                y["dgate"][place] = (group.dout * read * slope).astype(y["dgate"].dtype)
            y["du"][place] = du.astype(y["du"].dtype)
            y["dstep"][place] = dstep.astype(y["dstep"].dtype)
        return g, da, dskip, dbias, queue

    zero = jnp.zeros(tile.shape, jnp.float32)
    g = tile.get(x["after"], row, piece)
    carry = (g, tile.zeros(), zero, zero, tuple(load(i) for i in range(AHEAD)))
    g, da, dskip, dbias, _ = jax.lax.fori_loop(0, rounds, advance, carry)
    tile.put(y["start"], g, row, piece)
    tile.put(y["da"], [da_n / LOG2_E for da_n in da], row, piece)
    for name, value in (("dskip", dskip), ("dbias", dbias)):
        if name in y:
            y[name][row, piece, tile.channel] = tile.over_tokens(value)
