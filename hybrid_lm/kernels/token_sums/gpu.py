"""Sums over runs of the sorted tokens, as a Pallas kernel (Triton backend).

A program walks over a span of the sorted tokens with one sum in registers. A run that begins and
ends within the span is the whole sum of its token. What a span has of its first and of its last run
goes on to the next round, where two rows stand for a span, until one span is left: every sum is
written once, and added up in a fixed order.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.pallas_triton import store

_SPAN = 64  # rows of a program
_ROWS = 8  # whose loads are under way together
_CHANNELS = 128  # of a program: four a lane


def _sum_runs(values, order, tokens, _, sums, edges, *, is_last: bool):
    """``order`` says where in ``values`` the row of each of the sorted ``tokens`` is."""
    program = pl.program_id(0)
    first = program * _SPAN
    lanes = pl.ds(pl.program_id(1) * _CHANNELS, _CHANNELS)
    zeros_C = jnp.zeros(_CHANNELS, jnp.float32)

    def put(ref, at, sum_C, where):
        store(ref, (*at, lanes), sum_C, jnp.broadcast_to(where, sum_C.shape))

    def put_run(token, sum_C, where):
        put(sums, (token,), sum_C, where & (token < sums.shape[0]))

    def group(i, carry):
        sum_C, token, is_first = carry
        start = first + i * _ROWS
        rows = [values[order[start + r], lanes].astype(jnp.float32) for r in range(_ROWS)]
        for r, row_C in enumerate(rows):
            next_token = tokens[start + r]
            ends = next_token != token
            if is_last:
                put_run(token, sum_C, ends)
            else:
                put_run(token, sum_C, ends & (is_first == 0))
                put(edges, (program, 0), sum_C, ends & (is_first != 0))
            sum_C = jnp.where(ends, 0.0, sum_C) + row_C
            is_first = jnp.where(ends, 0, is_first)
            token = next_token
        return sum_C, token, is_first

    if not is_last:
        put(edges, (program, 0), zeros_C, True)  # what remains if the first run is the last one
    start = (zeros_C, tokens[first], jnp.int32(1))
    sum_C, token, _ = jax.lax.fori_loop(0, _SPAN // _ROWS, group, start)
    if is_last:
        put_run(token, sum_C, True)
    else:
        put(edges, (program, 1), sum_C, True)


def obstacle(values_BLD: jax.Array) -> str | None:
    """Why the kernel cannot run on these operands; None if it can."""
    if values_BLD.shape[-1] % _CHANNELS:
        return f"{values_BLD.shape[-1]} channels are no multiple of {_CHANNELS}"
    return pallas_triton.obstacle(values_BLD)


def token_sums(
    values_BLD: jax.Array, tokens_BL: jax.Array, vocab_size: int, *, interpret: bool = False
) -> jax.Array:
    """See `hybrid_lm.kernels.token_sums.token_sums`."""
    width = values_BLD.shape[-1]
    values_TD, tokens_T = values_BLD.reshape(-1, width), tokens_BL.reshape(-1).astype(jnp.int32)
    order_T = jnp.argsort(tokens_T, stable=True)
    tokens_T = tokens_T[order_T]
    sums_VD = jnp.zeros((vocab_size, width), jnp.float32)
    while True:
        spans = -(-tokens_T.size // _SPAN)
        missing = spans * _SPAN - tokens_T.size
        tokens_T = jnp.pad(tokens_T, (0, missing), constant_values=vocab_size)
        sums_VD, edges_SED = pallas_triton.call(
            partial(_sum_runs, is_last=spans == 1),
            (spans, width // _CHANNELS),
            (
                jax.ShapeDtypeStruct(sums_VD.shape, sums_VD.dtype),
                jax.ShapeDtypeStruct((spans, 2, width), jnp.float32),
            ),
            *(values_TD, jnp.pad(order_T, (0, missing)), tokens_T, sums_VD),
            warps=1,
            aliases={3: 0},
            interpret=interpret,
        )
        if spans == 1:
            return sums_VD
        tokens_T = tokens_T.reshape(spans, _SPAN)[:, (0, -1)].reshape(-1)
        values_TD = edges_SED.reshape(-1, width)
        order_T = jnp.arange(tokens_T.size, dtype=jnp.int32)
