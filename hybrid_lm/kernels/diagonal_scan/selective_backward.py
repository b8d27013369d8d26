"""Backward kernels of the selective scan: walks in reverse time over a piece of it."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels.diagonal_scan.selective_forward import TOKENS
from hybrid_lm.kernels.diagonal_scan.selective_lanes import LOG2_E, walk_near
from hybrid_lm.kernels.diagonal_scan.selective_layout import turns
from hybrid_lm.kernels.diagonal_scan.selective_tile import Tile

STRETCH = 4
"""Rounds whose operands are brought near at once."""
HELD = 2
"""States of a lane, of each of its channels."""
BESIDE = 2
"""Channels of a lane."""


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


def _group(tile: Tile, bias, u, step, dout, gate) -> _Group:
    gate = None if gate is None else gate.astype(jnp.float32)
    u, dout = u.astype(jnp.float32), dout.astype(jnp.float32)
    return _Group(u, *_steps(tile, bias, step), dout, _read_cotangent(tile, dout, gate), gate)


def _steps(tile: Tile, bias, step):
    """Steps before and after softplus."""
    raw = step.astype(jnp.float32)
    if bias is None:
        return raw, raw
    return raw + bias, tile.softplus(raw + bias)


def _read_cotangent(tile: Tile, dout, gate):
    if gate is None:
        return dout.astype(jnp.float32)
    gate = gate.astype(jnp.float32)
    return dout.astype(jnp.float32) * gate * tile.sigmoid(gate)


def walk_cotangent(
    x: dict[str, Any], y: dict[str, Any], *, states: int, length: int, interpret: bool
) -> None:
    """Reverse scan of a piece from zero: the cotangent of the state that enters it, and its decay.

    ``x`` as in `walk_gradients`; ``y``: start, decay [B, pieces, N, E].
    """
    row, piece, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tile = Tile(
        row, block, states=states, held=HELD, tokens=TOKENS, interpret=interpret, beside=BESIDE
    )
    rounds = length // TOKENS
    a, bias = tile.get(x["a"]), tile.of_channel(x["bias"])
    by_token = [x["step"], x["dout"], x["gate"]]

    def advance(i, carry):
        g, log_decay = carry
        t0 = piece * length + (rounds - 1 - i) * TOKENS
        tokens = tile.load(by_token, t0, TOKENS)
        for index in reversed(range(len(tokens))):
            group = [
                (_steps(tile, bias_n, raw)[1], _read_cotangent(tile, dout, gate))
                for bias_n, (raw, dout, gate) in zip(bias, tokens[index], strict=True)
            ]
            for k in reversed(range(tile.tokens)):
                t = t0 + index * tile.tokens + k
                c = tile.shared(x["bc"], t)[1] * BESIDE
                step = tile.each([tile.of(step, k) for step, _ in group])
                dy = tile.each([tile.of(dy, k) for _, dy in group])
                keep = 0.0 if x["keep"] is None else x["keep"][row, t]
                logs = [a_n * step_n + keep for a_n, step_n in zip(a, step, strict=True)]
                g = [
                    tile.exp2(log) * (g_n + dy_n * c_n)
                    for log, g_n, dy_n, c_n in zip(logs, g, dy, c, strict=True)
                ]
                log_decay = [sum_ + log for sum_, log in zip(log_decay, logs, strict=True)]
        return g, log_decay

    def near(i):
        t = piece * length + (rounds - i - STRETCH) * TOKENS
        edges = piece * length, (piece + 1) * length
        return tile.touch(by_token, [x["bc"]], t, STRETCH * TOKENS, *edges)

    carry = (tile.zeros(), tile.zeros())
    g, log_decay = walk_near(rounds, STRETCH, near, advance, carry)
    tile.put(y["start"], g, row, piece)
    tile.put(y["decay"], [tile.exp2(log) for log in log_decay], row, piece)


def walk_gradients(
    x: dict[str, Any], y: dict[str, Any], *, states: int, length: int, interpret: bool
) -> None:
    """Reverse scan of a piece from its true end: all gradients.

    With dy the cotangent of the read-out, g that of h_t (from later tokens and from y_t) and
    e = g decay h_{t-1}::

        dC_n = sum_E h_n dy      dB_n = sum_E g_n step u      du = step sum_n g_n B_n + D dy
        dstep = u sum_n g_n B_n + ln 2 sum_n a_n e_n          da_n = ln 2 sum_t step e_n

    The states of a round are made anew from the one saved before it. ``x`` as in the forward walk
    (but bc of what `turn` gives), and dout [B, L, E], saved, after [B, pieces, N, E] (cotangent of
    the last state of each piece).
    ``y``: du, dstep, dgate [B, L, E]; start, da [B, pieces, N, E]; dskip, dbias [B, pieces, E];
    db_dc [B, blocks, L / TOKENS, S, TOKENS * 2 * HELD], see `db_dc`.
    """
    row, piece, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tile = Tile(
        row,
        block,
        states=states,
        held=HELD,
        tokens=TOKENS,
        interpret=interpret,
        turned=True,
        beside=BESIDE,
    )
    rounds = length // TOKENS
    first = piece * rounds
    a, bias, skip = tile.get(x["a"]), tile.of_channel(x["bias"]), tile.of_channel(x["skip"])
    by_token = [x["u"], x["step"], x["dout"], x["gate"]]

    def again(h, groups, t0):
        """Per token of a round: step, write, decay and the state after it, in all lanes."""
        made = []
        for at in range(TOKENS):
            group, k = groups[at // tile.tokens], at % tile.tokens
            b = tile.shared(x["bc"], t0 + at)[0] * BESIDE
            step = tile.each([tile.of(own.step, k) for own in group])
            write = tile.each([tile.of(own.step * own.u, k) for own in group])
            keep = 0.0 if x["keep"] is None else x["keep"][row, t0 + at]
            decay = [tile.exp2(a_n * s + keep) for a_n, s in zip(a, step, strict=True)]
            h = [d * h_n + w * b_n for d, h_n, w, b_n in zip(decay, h, write, b, strict=True)]
            made.append((step, write, decay, h))
        return made

    def advance(i, carry):
        g, da, dskip, dbias = carry
        here = first + rounds - 1 - i
        t0 = here * TOKENS
        before = tile.saved(x["saved"], here)
        groups = [
            [_group(tile, bias_n, *own) for bias_n, own in zip(bias, sides, strict=True)]
            for sides in tile.load(by_token, t0, TOKENS)
        ]
        made = again(before, groups, t0)
        summands, sums = [], []
        for index in reversed(range(len(groups))):
            group = groups[index]
            dwrites, dlogs, reads = [], [], []
            for k in reversed(range(tile.tokens)):
                at = index * tile.tokens + k
                step, write, decay, h = made[at]
                h_before = made[at - 1][3] if at else before
                b, c = (shared * BESIDE for shared in tile.shared(x["bc"], t0 + at))
                dy = tile.each([tile.of(own.dy, k) for own in group])
                g = [g_n + dy_n * c_n for g_n, dy_n, c_n in zip(g, dy, c, strict=True)]
                db = tile.fold_states(tile.over_channels(g, write))
                summands = db + tile.fold_states(tile.over_channels(h, dy)) + summands
                if len(summands) >= tile.width // tile.turns:
                    sums = tile.fold(summands, 2, tile.turns) + sums
                    summands = []
                dwrites.insert(0, tile.inner(g, b))
                reads.insert(0, tile.inner(h, c))
                g = [g_n * d for g_n, d in zip(g, decay, strict=True)]
                e = [g_n * h_n for g_n, h_n in zip(g, h_before, strict=True)]
                dlogs.insert(0, tile.inner(a, e))
                da = [da_n + s * e_n for da_n, s, e_n in zip(da, step, e, strict=True)]
            dwrites, dlogs, reads = (
                [tile.by_token(list(sums)) for sums in zip(*values, strict=True)]
                for values in (dwrites, dlogs, reads)
            )
            outputs = {"du": [], "dstep": [], "dgate": []}
            for n, own in enumerate(group):
                du = own.step * dwrites[n]
                dstep = own.u * dwrites[n] + dlogs[n] / LOG2_E
                if skip[n] is not None:
                    du += skip[n] * own.dy
                    dskip = [*dskip[:n], dskip[n] + own.dy * own.u, *dskip[n + 1 :]]
                if bias[n] is not None:
                    dstep *= tile.softplus_slope(own.raw, own.step)
                    dbias = [*dbias[:n], dbias[n] + dstep, *dbias[n + 1 :]]
                outputs["du"].append(du)
                outputs["dstep"].append(dstep)
                if own.gate is not None:
                    read = reads[n] if skip[n] is None else reads[n] + skip[n] * own.u
                    opening = tile.sigmoid(own.gate)
                    slope = opening * (1 + own.gate * (1 - opening))
                    outputs["dgate"].append(own.dout * read * slope)
            for name, values in outputs.items():
                if name in y:
                    tile.put_tokens(y[name], values, t0 + index * tile.tokens)
        y["db_dc"][row, block, here] = tile.over_warps(sums)
        return g, da, dskip, dbias

    def near(i):
        i, last = first + rounds - i - STRETCH, first + rounds
        states = tile.touch([x["saved"]], [], i, STRETCH, first, last)
        i, count, edges = i * TOKENS, STRETCH * TOKENS, (first * TOKENS, last * TOKENS)
        return states + tile.touch(by_token, [x["bc"]], i, count, *edges)

    zeros = [jnp.zeros(tile.shape, jnp.float32)] * BESIDE
    g = tile.get(x["after"], row, piece)
    carry = (g, tile.zeros(), zeros, zeros)
    g, da, dskip, dbias = walk_near(rounds, STRETCH, near, advance, carry)
    tile.put(y["start"], g, row, piece)
    tile.put(y["da"], [da_n / LOG2_E for da_n in da], row, piece)
    for name, values in (("dskip", dskip), ("dbias", dbias)):
        if name in y:
            for channel, value in zip(tile.channels, values, strict=True):
                y[name][row, piece, channel] = tile.over_tokens(value)


def db_dc(summed: jax.Array) -> tuple[jax.Array, jax.Array]:
    """dB and dC [B, L, N] from the sums of `walk_gradients` over blocks, [B, L / TOKENS, S, -1].

    Of a token, the j-th of every run of `turns` lanes holds the sums of its states. Of every run of
    tokens whose sums fill the runs of lanes, the i-th run of lanes holds the i-th part.
    """
    batch, rounds, slices, _ = summed.shape
    width, low = 32 // slices, turns(slices * HELD, HELD)
    run = max(1, width // (2 * HELD))
    parts = summed.reshape(batch, rounds, slices, width // low, low, TOKENS // run, -1)
    # [.., groups of tokens, S, runs of lanes, of sums, lanes]: from token to state.
    parts = parts.transpose(0, 1, 5, 2, 3, 6, 4).reshape(batch, -1, slices, run, 2, HELD)
    db, dc = parts.transpose(4, 0, 1, 3, 2, 5).reshape(2, batch, rounds * TOKENS, slices * HELD)
    return db, dc
