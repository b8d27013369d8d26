"""Kernels of the selective scan on matrix units, where B and C are bfloat16.

The forward walk over a piece of time, and the reverse walk that finds what enters a piece.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels.diagonal_scan.selective_fragments import ROUND, Fragments
from hybrid_lm.kernels.diagonal_scan.selective_lanes import walk_near

STRETCH = 4
"""Rounds whose operands are brought near at once."""
TOGETHER = 2
"""Rounds that are one block of instructions."""


class _Token(NamedTuple):
    """What is worked out of one token by the lane that has it (float32).

    Attributes:
        write: what is added to the states, but for B or C; as of `Fragments.split`.
        skipped: ``D u``; opening: silu of the gate; None where there is none.
    """

    step: jax.Array
    write: jax.Array
    skipped: jax.Array | None = None
    opening: jax.Array | None = None


class _Whole(NamedTuple):
    """Sums over the tokens of a piece: the decay of all of it is ``exp2(a steps + keeps)``.

    Attributes:
        steps: those of the tokens of a lane.
    """

    steps: jax.Array
    keeps: jax.Array


class _Walk:
    """What both walks do with a piece of time."""

    def __init__(self, x: dict[str, Any], *, states: int, length: int, interpret: bool):
        self.row, self.piece, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
        inner = x["step"].shape[-1]
        self.tile = Fragments(self.row, block, states=states, inner=inner, interpret=interpret)
        self.a, self.bias = self.tile.get(x["a"]), self.tile.of_channel(x["bias"])
        self.begin, self.rounds, self.x = self.piece * length, length // ROUND, x

    def step(self, step):
        return step if self.bias is None else self.tile.softplus(step + self.bias)

    def load(self, refs, worked_out, i) -> list[_Token]:
        """The tokens of round i, or of the nearest there is."""
        i = jnp.clip(i, 0, self.rounds - 1)
        sides = [self.tile.load(ref, self.begin + i * ROUND) for ref in refs]
        return [worked_out(*own) for own in zip(*sides, strict=True)]

    def decay(self, own: _Token, q: int, t) -> tuple[list[jax.Array], Any]:
        """Of token t, and its ``keep``."""
        keep = 0.0 if self.x["keep"] is None else self.x["keep"][self.row, t]
        step = self.tile.of(own.step, q)
        return [self.tile.exp2(a_n * step + keep) for a_n in self.a], keep

    def near(self, refs, i) -> jax.Array:
        """Brings near what is read of rounds i .. i + STRETCH - 1."""
        first, last = self.begin // ROUND, self.begin // ROUND + self.rounds
        edges = first * ROUND, last * ROUND
        own = self.tile.touch(refs, [], (first + i) * ROUND, STRETCH * ROUND, *edges)
        return own + self.tile.touch([], [self.x["bc"]], first + i, STRETCH, first, last)

    def nothing(self) -> _Whole:
        return _Whole(self.tile.zero(), jnp.float32(0.0))

    def put_decay(self, ref, whole: _Whole) -> None:
        steps = self.tile.sum_of_lanes(whole.steps)
        decay = [self.tile.exp2(a_n * steps + whole.keeps) for a_n in self.a]
        self.tile.put(ref, decay, self.row, self.piece)


def walk(
    x: dict[str, Any], y: dict[str, Any], *, states: int, length: int, interpret: bool
) -> None:
    """Scan ``length`` tokens from the state ``x["start"]``.

    Operands and results as of `selective_forward.walk`, but bc as of `fragments`. States and
    decays are float32; the output reads the states to 11 bits.
    """
    walk = _Walk(x, states=states, length=length, interpret=interpret)
    tile, row, piece = walk.tile, walk.row, walk.piece
    skip, out = tile.of_channel(x["skip"]), y.get("out")
    refs = [x["u"], x["step"], None if out is None else x["gate"]]

    def worked_out(u, step, gate) -> _Token:
        step = walk.step(step)
        skipped = None if skip is None else skip * u
        opening = None if gate is None else gate * tile.sigmoid(gate)
        return _Token(step, tile.split(step * u), skipped, opening)

    def advance(i, carry):
        h, tokens, whole = carry
        t = walk.begin + i * ROUND
        if "saved" in y:
            tile.save(y["saved"], h, t // ROUND)
        following = walk.load(refs, worked_out, i + 1)
        b, c = tile.shared(x["bc"], t // ROUND)
        sums = [[tile.zero()] * 4] * tile.runs
        written, passed = [], []
        for k in range(ROUND):
            turn, q = divmod(k, 4)
            own = tokens[turn]
            if k % 2 == 0:
                written = [tile.write(own.write, b_run[turn], q) for b_run in b]
            w = [value for run in written for value in run[k % 2]]
            decay, keep = walk.decay(own, q, t + k)
            h = [d * h_n + w_n for d, h_n, w_n in zip(decay, h, w, strict=True)]
            passed.append(h)
            if out is not None and turn:
                both = passed[q], h
                sums = [
                    tile.read([side[2 * n : 2 * n + 2] for side in both], c[n], q, sums[n])
                    for n in range(tile.runs)
                ]
            if whole is not None:
                whole = whole._replace(keeps=whole.keeps + keep)
        if out is not None:
            read = [sum(own[1:], own[0]) for own in zip(*sums, strict=True)]
            values = []
            for own, value in zip(tokens, read[::3], strict=True):
                value = value if own.skipped is None else value + own.skipped
                values.append(value if own.opening is None else value * own.opening)
            tile.put_tokens(out, values, t)
        if whole is not None:
            whole = whole._replace(steps=whole.steps + sum(own.step for own in tokens))
        return h, following, whole

    zeros = [tile.zero()] * len(walk.a)
    start = zeros if x["start"] is None else tile.get(x["start"], row, piece)
    carry = start, walk.load(refs, worked_out, 0), walk.nothing() if "decay" in y else None
    h, _, whole = walk_near(
        walk.rounds, STRETCH, lambda i: walk.near(refs, i), advance, carry, together=TOGETHER
    )
    tile.put(y["end"], h, row, piece)
    if whole is not None:
        walk.put_decay(y["decay"], whole)


def walk_cotangent(
    x: dict[str, Any], y: dict[str, Any], *, states: int, length: int, interpret: bool
) -> None:
    """Reverse scan of a piece from zero: the cotangent of the state that enters it, and its decay.

    Operands and results as of `selective_backward.walk_cotangent`, but bc as of
    ``fragments(c, b)``.
    """
    walk = _Walk(x, states=states, length=length, interpret=interpret)
    tile, last = walk.tile, walk.rounds - 1
    refs = [x["step"], x["dout"], x["gate"]]

    def worked_out(step, dout, gate) -> _Token:
        dy = dout if gate is None else dout * gate * tile.sigmoid(gate)
        return _Token(walk.step(step), tile.split(dy))

    def advance(i, carry):
        g, tokens, whole = carry
        t = walk.begin + (last - i) * ROUND
        following = walk.load(refs, worked_out, last - i - 1)
        c, _ = tile.shared(x["bc"], t // ROUND)
        keeps, written = whole.keeps, []
        for k in reversed(range(ROUND)):
            turn, q = divmod(k, 4)
            own = tokens[turn]
            if k % 2:
                written = [tile.write(own.write, c_run[turn], q - 1) for c_run in c]
            w = [value for run in written for value in run[k % 2]]
            decay, keep = walk.decay(own, q, t + k)
            g = [d * (g_n + w_n) for d, g_n, w_n in zip(decay, g, w, strict=True)]
            keeps += keep
        return g, following, _Whole(whole.steps + sum(own.step for own in tokens), keeps)

    def near(i):
        return walk.near(refs, walk.rounds - i - STRETCH)

    carry = [tile.zero()] * len(walk.a), walk.load(refs, worked_out, last), walk.nothing()
    g, _, whole = walk_near(walk.rounds, STRETCH, near, advance, carry, together=TOGETHER)
    tile.put(y["start"], g, walk.row, walk.piece)
    walk.put_decay(y["decay"], whole)
