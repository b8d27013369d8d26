"""Forward kernel of the selective scan: one program walks a piece of time over its channels."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels.diagonal_scan.selective_tile import Tile, inner, sigmoid, softplus

HELD = 4
"""States of a lane."""
TOKENS = 8
"""Tokens a round of the walk; the backward pass restarts from the state before each round."""
AHEAD = 2
"""Rounds whose operands are under way. The assembler sinks loads to the end of a round, so that
one round ahead is none."""


def walk(
    x: dict[str, Any], y: dict[str, Any], *, states: int, length: int, interpret: bool
) -> None:
    """Scan ``length`` tokens from the state ``x["start"]``.

    ``x``: u, step, gate [B, L, E]; b, c [B, L, N]; keep [B, L]; a [N, E]; bias, skip [E]; start
    [B, pieces, N, E]. ``y`` holds what is wanted: out [B, L, E], end [B, pieces, N, E], saved
    [B, L / TOKENS, N, E] (states before each round), decay [B, pieces, N, E] (of the whole piece).
    """
    row, piece, block = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tile = Tile(row, block, states=states, held=HELD, tokens=TOKENS, interpret=interpret)
    begin, rounds = piece * length, length // TOKENS
    a, bias, skip = tile.get(x["a"]), tile.of_channel(x["bias"]), tile.of_channel(x["skip"])
    out = y.get("out")
    by_token = [x["u"], x["step"], None if out is None else x["gate"]]
    shared = [x["b"]] if out is None else [x["b"], x["c"]]

    def load(i):
        t = begin + jnp.minimum(i, rounds - 1) * TOKENS
        return tile.load(by_token, t, TOKENS), tile.touch(shared, t, TOKENS)

    def advance(i, carry):
        h, log_decay, ((tokens, near), *queue) = carry
        queue = (*queue, load(i + AHEAD))
        h = [h[0] + 0.0 * near, *h[1:]]  # a use, so that the touch is kept
        if "saved" in y:
            tile.put(y["saved"], h, row, begin // TOKENS + i)
        for group, (u, step, gate) in enumerate(tokens):
            t = begin + i * TOKENS + group * tile.tokens
            u, step = u.astype(jnp.float32), step.astype(jnp.float32)
            step = step if bias is None else softplus(step + bias)
            write, reads = step * u, []
            vectors = [[tile.shared(ref, t + k) for ref in shared] for k in range(tile.tokens)]
            for k, (b, *c) in enumerate(vectors):
                step_k, write_k = tile.of(step, k), tile.of(write, k)
                keep = 0.0 if x["keep"] is None else x["keep"][row, t + k]
                logs = [a_n * step_k + keep for a_n in a]
                h = [
                    jnp.exp2(log) * h_n + write_k * b_n
                    for log, h_n, b_n in zip(logs, h, b, strict=True)
                ]
                if "decay" in y:
                    log_decay = [sum_ + log for sum_, log in zip(log_decay, logs, strict=True)]
                if out is not None:
                    reads.append(inner(h, c[0]))
            if out is not None:
                value = tile.by_token(reads)
                if skip is not None:
                    value += skip * u
                if gate is not None:
                    z = gate.astype(jnp.float32)
                    value *= z * sigmoid(z)
                out[tile.place(t)] = value.astype(out.dtype)
        return h, log_decay, queue

    start = tile.zeros() if x["start"] is None else tile.get(x["start"], row, piece)
    log_decay = tile.zeros() if "decay" in y else None
    queue = tuple(load(i) for i in range(AHEAD))
    h, log_decay, _ = jax.lax.fori_loop(0, rounds, advance, (start, log_decay, queue))
    tile.put(y["end"], h, row, piece)
    if log_decay is not None:
        tile.put(y["decay"], [jnp.exp2(log) for log in log_decay], row, piece)
