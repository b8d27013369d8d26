"""Gradients of state-space duality on a GPU where several heads share a q and k.

The gradient of the scores of a chunk is summed over these heads (`_inner_gradients`); those of q
and k are one product with that sum, and what each head's states give (`_state_gradients`).
"""

from functools import partial

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.chunked_gpu import (
    Factors,
    Scales,
    Sizes,
    by_part,
    decay,
    is_small,
    like,
    of_program,
    put_value_gradients,
    scaled_values,
    summed_over_parts,
)
from hybrid_lm.kernels.pallas_triton import dot


def _inner_gradients(q, k, v, total, run, to_end, after, dy, *rest, chunk, share, parts, scaled):
    """Of v, of the scores of a part's heads together, and of decays inside the chunk.

    Matrices [C, C] are of (key, query): no result of a product is transposed.
    """
    scales, rest = rest[: 2 * scaled], rest[2 * scaled :]
    dv, dscores, dtotal, *dscales = rest
    (part, c, batch), tokens, heads = of_program(chunk, share, parts)
    q_CN, k_CN = q[batch, tokens, part // parts, :], k[batch, tokens, part // parts, :]
    scores_CC, run_C = dot(k_CN, q_CN, trans_b=True), run[batch, tokens]

    def head(i, dscores_CC):
        h = part * heads + i
        given_CP, dy_CP = v[batch, tokens, h, :], dy[batch, tokens, h, :]
        v_CP = scaled_values(given_CP, scales, (batch, h, tokens))
        decay_CC = decay(total, (batch, h, tokens), run_C, keys_first=True)
        weights_CC = scores_CC * decay_CC
        dv_CP = to_end[batch, h, tokens][:, None] * dot(k_CN, after[batch, c, h, :, :])
        dv_CP += dot(weights_CC.astype(dy_CP.dtype), dy_CP)
        put_value_gradients(dv, dscales, dv_CP, given_CP, dy_CP, scales, (batch, h, c, tokens))

        dweights_CC = dot(v_CP, dy_CP, trans_b=True)
        dgap_CC = weights_CC * dweights_CC
        dtotal[batch, h, tokens] = jnp.sum(dgap_CC, axis=0) - jnp.sum(dgap_CC, axis=1)
        return dscores_CC + dweights_CC * decay_CC

    dscores_CC = jax.lax.fori_loop(0, heads, head, jnp.zeros((chunk, chunk), jnp.float32))
    dscores[batch, tokens, part, :] = dscores_CC.astype(dscores.dtype)


def _state_gradients(
    x, other, values, factor, states, dscores, *rest, chunk, share, parts, reads, scaled
):
    """Of queries, which read the states before chunks, or of keys, which write those after them:
    ``dx = sum_h factor (values states^T) + dscores other``, and of their factor.
    """
    strength, after, rest = rest[:scaled], rest[scaled : scaled + reads], rest[scaled + reads :]
    dx, dfactor, *dstays = rest
    (part, c, batch), tokens, heads = of_program(chunk, share, parts)
    x_CN = x[batch, tokens, part // parts, :]

    def head(i, dx_CN):
        h = part * heads + i
        states_NP = states[batch, c, h, :, :]
        if reads:
            after_NP = after[0][batch, c, h, :, :]
            dstays[0][batch, h, c] = jnp.sum(states_NP.astype(jnp.float32) * after_NP)
        values_CP = scaled_values(values[batch, tokens, h, :], strength, (batch, h, tokens))
        dx_h_CN = dot(values_CP, states_NP, trans_b=True)
        dfactor[batch, h, tokens] = jnp.sum(dx_h_CN * x_CN, axis=1)
        return dx_CN + factor[batch, h, tokens][:, None] * dx_h_CN

    dx_CN = jax.lax.fori_loop(0, heads, head, jnp.zeros(x_CN.shape, jnp.float32))
    other_CN = other[batch, tokens, part // parts, :]
    dx_CN += dot(dscores[batch, tokens, part, :], other_CN, trans_a=reads)
    dx[batch, tokens, part, :] = dx_CN.astype(dx.dtype)


def is_worth(before, sizes: Sizes) -> bool:
    """Whether these kernels are faster than those of `hybrid_lm.kernels.chunked_gpu`."""
    return sizes.share > sizes.parts and is_small(before)


def gradients(
    q, k, v, factors: Factors, before, after, dy, sizes: Sizes, scales: Scales | None = None
):
    """See `hybrid_lm.kernels.chunked_gpu.gradients`."""
    total, from_start, to_end, stays, run = factors
    batch, length, groups, n = q.shape

    def of_parts(width, dtype):
        return jax.ShapeDtypeStruct((batch, length, groups * sizes.parts, width), dtype)

    vector = jax.ShapeDtypeStruct(total.shape, jnp.float32)
    per_chunk = jax.ShapeDtypeStruct(stays.shape, jnp.float32)
    results = (like(v), of_parts(sizes.chunk, q.dtype), vector)
    results += (vector, per_chunk) if scales else ()
    operands = (q, k, v, total, run, to_end, after, dy, *(scales or ()))
    kernel = partial(_inner_gradients, scaled=scales is not None)
    dv, dscores, dtotal, *dscales = by_part(kernel, results, operands, sizes, stages=3)

    part = of_parts(n, jnp.float32 if sizes.parts > 1 else q.dtype)
    kernel = partial(_state_gradients, reads=True, scaled=0)
    operands = (q, k, dy, from_start, before, dscores, after)
    results = (part, vector, per_chunk)
    dq, dfrom_start, dstays = by_part(kernel, results, operands, sizes, stages=3)
    strength = (scales or ())[:1]
    kernel = partial(_state_gradients, reads=False, scaled=len(strength))
    operands = (k, q, v, to_end, after, dscores, *strength)
    dk, dto_end = by_part(kernel, (part, vector), operands, sizes, stages=3)

    dfactors = Factors(dtotal, dfrom_start, dto_end, dstays, None)  # pyright: ignore[reportArgumentType]
    if scales is not None:
        dscales = Scales(dscales[0], dscales[1].sum((0, 2)))
    dq, dk = summed_over_parts(dq, q, sizes), summed_over_parts(dk, k, sizes)
    return dq, dk, dv, dfactors, dscales or None
