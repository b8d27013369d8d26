"""Forward kernel of the selective scan: one program walks a piece of time over its channels."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels.diagonal_scan.selective_lanes import walk_near
from hybrid_lm.kernels.diagonal_scan.selective_tile import Tile

HELD = 2
"""States of a lane, of each of its channels."""
BESIDE = 2
"""Channels of a lane: B and C are loaded once for them."""
TOKENS = 8
"""Tokens a round of the walk; the backward pass restarts from the state before each round."""
STRETCH = 8
"""Rounds whose operands are brought near at once."""


class _Group(NamedTuple):
    """Tokens worked out at once, a token a lane (float32).

    Attributes:
        opening: silu of the gate, if there is one.
    """

    u: jax.Array
    step: jax.Array
    opening: jax.Array | None


class _Step(NamedTuple):
    """How a token changes the state, in all lanes: ``h = decay h + write B``.

    Attributes:
        log_decay: empty where the decay of the whole piece is not wanted.
    """

    write: list[jax.Array]
    decay: list[jax.Array]
    log_decay: list[jax.Array]


def walk(
    x: dict[str, Any], y: dict[str, Any], *, states: int, length: int, interpret: bool
) -> None:
    """Scan ``length`` tokens from the state ``x["start"]``.

    ``x``: u, step, gate [B, L, E]; bc [B, L, any], see `side_by_side`; keep [B, L]; a [N, E]; bias,
    skip [E]; start [B, pieces, N, E]. ``y`` holds what is wanted: out [B, L, E], end [B, pieces, N,
    E], saved [B, L / TOKENS, blocks, PROGRAM_STATES] (before each round), decay [B, pieces, N, E]
    (of the whole piece).
    """
    row, piece, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tile = Tile(
        row,
        block,
        states=states,
        held=HELD,
        tokens=TOKENS,
        interpret=interpret,
        beside=BESIDE,
    )
    a, bias, skip = tile.get(x["a"]), tile.of_channel(x["bias"]), tile.of_channel(x["skip"])
    begin, rounds = piece * length, length // TOKENS
    out = y.get("out")
    by_token = [x["u"], x["step"], None if out is None else x["gate"]]

    def worked_out(bias, u, step, gate) -> _Group:
        step = step.astype(jnp.float32)
        if gate is not None:
            gate = gate.astype(jnp.float32)
            gate *= tile.sigmoid(gate)
        step = step if bias is None else tile.softplus(step + bias)
        return _Group(u.astype(jnp.float32), step, gate)

    def load(i) -> list[list[_Group]]:
        loaded = tile.load(by_token, begin + i * TOKENS, TOKENS)
        return [
            [worked_out(b, *own) for b, own in zip(bias, sides, strict=True)] for sides in loaded
        ]

    def step_of(i, groups: list[list[_Group]], at: int) -> _Step:
        sides, k = groups[at // tile.tokens], at % tile.tokens
        step = tile.each([tile.of(own.step, k) for own in sides])
        write = tile.each([tile.of(own.step * own.u, k) for own in sides])
        keep = 0.0 if x["keep"] is None else x["keep"][row, begin + i * TOKENS + at]
        logs = [a_n * step_n + keep for a_n, step_n in zip(a, step, strict=True)]
        return _Step(write, [tile.exp2(log) for log in logs], logs if "decay" in y else [])

    def advance(i, carry):
        h, log_decay, groups, steps = carry
        if "saved" in y:
            tile.save(y["saved"], h, begin // TOKENS + i)
        # The next round's exponentials wait for nothing, and fill the gaps of this round's sums.
        after = jnp.minimum(i + 1, rounds - 1)
        groups_after, steps_after = load(after), []
        for index, group in enumerate(groups):
            t = begin + i * TOKENS + index * tile.tokens
            reads = []
            for k in range(tile.tokens):
                at = index * tile.tokens + k
                write, decay, logs = steps[at]
                b, c = tile.shared(x["bc"], t + k)
                h = [
                    d * h_n + w * b_n
                    for d, h_n, w, b_n in zip(decay, h, write, b * BESIDE, strict=True)
                ]
                if log_decay is not None:
                    log_decay = [sum_ + log for sum_, log in zip(log_decay, logs, strict=True)]
                if out is not None:
                    reads.append(tile.inner(h, c * BESIDE))
                steps_after.append(step_of(after, groups_after, at))
            if out is not None:
                values = [tile.by_token(list(sums)) for sums in zip(*reads, strict=True)]
                for n, own in enumerate(group):
                    if skip[n] is not None:
                        values[n] += skip[n] * own.u
                    if own.opening is not None:
                        values[n] *= own.opening
                tile.put_tokens(out, values, t)
        return h, log_decay, groups_after, steps_after

    def near(i):
        t, edges = begin + i * TOKENS, (begin, begin + length)
        return tile.touch(by_token, [x["bc"]], t, STRETCH * TOKENS, *edges)

    start = tile.zeros() if x["start"] is None else tile.get(x["start"], row, piece)
    log_decay = tile.zeros() if "decay" in y else None
    groups = load(0)
    steps = [step_of(0, groups, at) for at in range(TOKENS)]
    carry = (start, log_decay, groups, steps)
    h, log_decay, *_ = walk_near(rounds, STRETCH, near, advance, carry)
    tile.put(y["end"], h, row, piece)
    if log_decay is not None:
        tile.put(y["decay"], [tile.exp2(log) for log in log_decay], row, piece)
