"""What linear recurrences in chunks share on a GPU: the kernels that take all chunks side by side.

``S_t = a_t S_{t-1} + k_t v_t^T`` and ``y_t = S_t^T q_t`` in chunks of C tokens, from the state
before each chunk (`outputs`) and, backwards, the cotangent of the state after it (the gradients).
How the states are found is the recurrence's own. Heads that share a q and k are gone through one
after another, so that gradients of q and k are summed in registers, in a fixed order.

Decays reach the kernels as three factors of a token (`gpu_factors`): ``total``, the log decay since
the start of the chunk; ``from_start`` and ``to_end``, what is left at the token of the state before
the chunk, and at the end of the chunk of what the token writes.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.decay import at_least_underflow, sum_decays
from hybrid_lm.kernels.decay_gpu import places_of_total, token_decays
from hybrid_lm.kernels.pallas_triton import dot
from hybrid_lm.kernels.remat import keep

_SMALL = (128, 64)  # rows and columns of a state of which several are loaded ahead
_WIDE = 128 * 128  # entries of a state from beyond which 8 warps are faster at its gradients


class Factors(NamedTuple):
    """Decays of tokens, float32 [B, H, L]; ``stays`` [B, H, chunks]: of the state over a chunk;
    ``run`` int32 [B, L]: the number of starts of documents in the chunk so far.
    """

    total: jax.Array
    from_start: jax.Array
    to_end: jax.Array
    stays: jax.Array
    run: jax.Array


class Scales(NamedTuple):
    """Strength of each token's write, float32 [B, H, L] (``k (strength v)^T``), and what of v goes
    past the recurrence, float32 [H] (``y + skip v``).
    """

    strength: jax.Array
    skip: jax.Array


class Sizes(NamedTuple):
    """Tokens of a chunk, heads that share a q and k, and the number of parts, side by side, in
    which they are gone through.
    """

    chunk: int
    share: int = 1
    parts: int = 1
    interpret: bool = False


def padded(x: Any, multiple: int) -> Any:
    """[B, L, ...] with L filled up by zeros; such tokens write nothing and keep the state."""
    edge = -x.shape[1] % multiple
    return jnp.pad(x, [(0, 0), (0, edge)] + [(0, 0)] * (x.ndim - 2))


def factors(log_decay_BLH, resets_BL, shape: tuple[int, ...], chunk: int) -> Factors:
    """Of rows of [B, L, H] tokens and heads, L a multiple of the chunk, by XLA."""
    batch, length, heads = shape
    run_BL = _runs(resets_BL, shape, chunk)
    run = run_BL.reshape(batch, 1, -1, chunk)
    if log_decay_BLH is None:
        total = jnp.zeros((batch, heads, length), jnp.float32)
    else:
        resets = None if resets_BL is None else resets_BL.reshape(batch, -1, chunk)
        by_chunk = sum_decays(log_decay_BLH.reshape(batch, -1, chunk, heads), resets)
        total = jnp.moveaxis(by_chunk.reshape(batch, length, heads), 2, 1)
    by_chunk = total.reshape(batch, heads, -1, chunk)
    last, last_run = by_chunk[..., -1:], run[..., -1:]
    from_start = jnp.exp(jnp.where(run == 0, by_chunk, -jnp.inf))
    to_end = jnp.exp(jnp.where(run == last_run, last - by_chunk, -jnp.inf))
    stays = jnp.where(last_run == 0, jnp.exp(last), 0.0)[..., 0]
    return Factors(
        total, from_start.reshape(total.shape), to_end.reshape(total.shape), stays, run_BL
    )


def gpu_factors(
    log_decay_BLH,
    strength_BLH,
    resets_BL,
    shape: tuple[int, ...],
    chunk: int,
    interpret: bool,
    *,
    exact: bool = False,
) -> tuple[Factors, jax.Array | None]:
    """`factors`, and the strengths as [B, H, L]; where tokens decay, both by one kernel.

    Where ``exact``, total is in two parts (see `token_decays`).
    """
    if log_decay_BLH is None:
        strength = None if strength_BLH is None else jnp.moveaxis(strength_BLH, 2, 1)
        return factors(None, resets_BL, shape, chunk), strength
    log_decay_BLH = at_least_underflow(log_decay_BLH)
    if resets_BL is not None:  # of a document without its first token, which keeps nothing
        log_decay_BLH = jnp.where(resets_BL[..., None], 0.0, log_decay_BLH)
    run_BL = _runs(resets_BL, shape, chunk)
    decays: Any = token_decays(chunk, exact, interpret, log_decay_BLH, strength_BLH, run_BL)
    total, from_start, to_end, stays, strength = decays
    return Factors(total, from_start, to_end, stays, run_BL), strength


def _runs(resets_BL, shape: tuple[int, ...], chunk: int) -> jax.Array:
    batch, length, _ = shape
    if resets_BL is None:
        return jnp.zeros((batch, length), jnp.int32)
    by_chunk = resets_BL.reshape(batch, -1, chunk)
    return keep(jnp.cumsum(by_chunk, axis=2, dtype=jnp.int32).reshape(batch, length))


def states_obstacle(key_dim: int, width: int, *, least: int = 16) -> str | None:
    """Why no kernel holds states of this shape on chip; None if they do."""
    fits = all(least <= dim <= 256 and dim.bit_count() == 1 for dim in (key_dim, width))
    return None if fits and key_dim * width <= 128 * 256 else f"states of {key_dim} x {width}"


def half_obstacle(k_BLHK: jax.Array, v_BLHP: jax.Array, *, least: int = 16) -> str | None:
    """Why no kernel whose products are of bfloat16 runs on such operands; None if one does."""
    if reason := states_obstacle(k_BLHK.shape[-1], v_BLHP.shape[-1], least=least):
        return reason
    if v_BLHP.dtype != jnp.bfloat16:
        return "its products are of bfloat16"
    return pallas_triton.obstacle(v_BLHP)


def decay(total, at, run_C, *, keys_first=False):
    """decay_CC from token j to token i of a chunk, 0 where i does not see j; [i, j] or [j, i].

    ``at``: row, head and tokens of the chunk.
    """
    i, j = ((None, slice(None)), (slice(None), None))[:: 1 if keys_first else -1]
    place = jnp.arange(run_C.shape[0])
    seen = (place[i] >= place[j]) & (run_C[i] == run_C[j])
    parts = [total[place] for place in places_of_total(total, *at)]
    gap = sum(total_C[i] - total_C[j] for total_C in parts)
    gap = jnp.minimum(gap, 0.0)  # above 0 only by rounding
    return jnp.exp(jnp.where(seen, gap, -jnp.inf))


def scaled_values(v_CP, scales, place):
    """What is written in the end, of values at ``place`` of [B, H, L]."""
    return (v_CP * scales[0][place][:, None]).astype(v_CP.dtype) if scales else v_CP


def put_value_gradients(dv, dscales, dv_CP, given_CP, dy_CP, scales, place) -> None:
    """Writes the gradients of values as given, and of their scales, from that of what is written.

    ``place``: row, head, chunk and its tokens.
    """
    batch, h, c, tokens = place
    if scales:
        dscales[0][batch, h, tokens] = jnp.sum(dv_CP * given_CP, axis=1)
        dscales[1][batch, h, c] = jnp.sum(dy_CP.astype(jnp.float32) * given_CP)
        dv_CP = scales[0][batch, h, tokens][:, None] * dv_CP + scales[1][h] * dy_CP
    dv[batch, tokens, h, :] = dv_CP.astype(dv.dtype)


def of_program(chunk: int, share: int, parts: int):
    """Where it is, in parts of heads, chunks and rows; its tokens; how many heads a part has."""
    place = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    return place, pl.ds(place[1] * chunk, chunk), share // parts


def _outputs(q, k, v, total, run, from_start, before, *rest, chunk, share, parts):
    *scales, y = rest
    (part, c, batch), tokens, heads = of_program(chunk, share, parts)
    q_CN, k_CN = q[batch, tokens, part // parts, :], k[batch, tokens, part // parts, :]
    scores_CC, run_C = dot(q_CN, k_CN, trans_b=True), run[batch, tokens]

    def head(i, _):
        h = part * heads + i
        v_CP = v[batch, tokens, h, :]
        y_CP = from_start[batch, h, tokens][:, None] * dot(q_CN, before[batch, c, h, :, :])
        weights_CC = scores_CC * decay(total, (batch, h, tokens), run_C)
        y_CP += dot(weights_CC.astype(v_CP.dtype), scaled_values(v_CP, scales, (batch, h, tokens)))
        if scales:
            y_CP += scales[1][h] * v_CP
        y[batch, tokens, h, :] = y_CP.astype(y.dtype)

    jax.lax.fori_loop(0, heads, head, None)


def _read_gradients(k, q, v, total, run, from_start, before, after, dy, *rest, chunk, share, parts):
    *scales, dq, dfrom_start, dstays = rest
    (part, c, batch), tokens, heads = of_program(chunk, share, parts)
    k_CN, q_CN = k[batch, tokens, part // parts, :], q[batch, tokens, part // parts, :]
    run_C = run[batch, tokens]

    def head(i, dq_CN):
        h = part * heads + i
        v_CP, dy_CP = v[batch, tokens, h, :], dy[batch, tokens, h, :]
        v_CP = scaled_values(v_CP, scales, (batch, h, tokens))
        before_NP = before[batch, c, h, :, :]
        # Of the writes' business, but there the registers are needed.
        dstays[batch, h, c] = jnp.sum(before_NP.astype(jnp.float32) * after[batch, c, h, :, :])
        read_CN = dot(dy_CP, before_NP, trans_b=True)
        dfrom_start[batch, h, tokens] = jnp.sum(read_CN * q_CN, axis=1)
        dscores_CC = dot(dy_CP, v_CP, trans_b=True) * decay(total, (batch, h, tokens), run_C)
        dq_CN += from_start[batch, h, tokens][:, None] * read_CN
        return dq_CN + dot(dscores_CC.astype(k_CN.dtype), k_CN)

    dq_CN = jax.lax.fori_loop(0, heads, head, jnp.zeros(k_CN.shape, jnp.float32))
    dq[batch, tokens, part, :] = dq_CN.astype(dq.dtype)


def _write_gradients(q, k, v, total, run, to_end, after, dy, *rest, chunk, share, parts, scaled):
    """Matrices [C, C] are of (key, query) here: no result of a product is transposed."""
    scales, rest = rest[: 2 * scaled], rest[2 * scaled :]
    dk, dv, dtotal, dto_end, *dscales = rest
    (part, c, batch), tokens, heads = of_program(chunk, share, parts)
    q_CN, k_CN = q[batch, tokens, part // parts, :], k[batch, tokens, part // parts, :]
    run_C = run[batch, tokens]

    def head(i, dk_CN):
        h = part * heads + i
        given_CP, dy_CP = v[batch, tokens, h, :], dy[batch, tokens, h, :]
        v_CP = scaled_values(given_CP, scales, (batch, h, tokens))
        after_NP = after[batch, c, h, :, :]
        to_end_C = to_end[batch, h, tokens][:, None]
        decay_CC = decay(total, (batch, h, tokens), run_C, keys_first=True)
        dwrite_CP = dot(k_CN, after_NP)
        dto_end[batch, h, tokens] = jnp.sum(dwrite_CP * v_CP, axis=1)
        # Not once for all heads: kept over the loop, it costs registers that are worth more.
        weights_CC = dot(k_CN, q_CN, trans_b=True) * decay_CC
        dv_CP = to_end_C * dwrite_CP + dot(weights_CC.astype(dy_CP.dtype), dy_CP)
        put_value_gradients(dv, dscales, dv_CP, given_CP, dy_CP, scales, (batch, h, c, tokens))

        dscores_CC = dot(v_CP, dy_CP, trans_b=True)
        dgap_CC = weights_CC * dscores_CC
        dtotal[batch, h, tokens] = jnp.sum(dgap_CC, axis=0) - jnp.sum(dgap_CC, axis=1)
        dscores_CC = (dscores_CC * decay_CC).astype(q_CN.dtype)
        # The product is summed where it is made: registers of its own would be too many.
        dk_CN += dot((to_end_C * v_CP).astype(v_CP.dtype), after_NP, trans_b=True)
        return dk_CN + dot(dscores_CC, q_CN)

    dk_CN = jax.lax.fori_loop(0, heads, head, jnp.zeros(k_CN.shape, jnp.float32))
    dk[batch, tokens, part, :] = dk_CN.astype(dk.dtype)


def like(x: jax.Array) -> jax.ShapeDtypeStruct:
    """An output as ``x``."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def by_chunk(
    kernel: Callable[..., None],
    outputs: Any,
    operands: tuple[jax.Array, ...],
    *,
    chunk: int,
    parts: int = 1,
    warps: int = 4,
    stages: int = 2,
    interpret: bool,
) -> Any:
    """Run a kernel on every part of every head (or group) of every chunk, side by side.

    Operands start with [B, L, H, .].
    """
    batch, length, heads, _ = operands[0].shape
    return pallas_triton.call(
        partial(kernel, chunk=chunk),
        (heads * parts, length // chunk, batch),
        outputs,
        *operands,
        warps=warps,
        stages=stages,
        interpret=interpret,
    )


def by_part(kernel, outputs, operands, sizes: Sizes, **options: int) -> Any:
    """`by_chunk` where heads share a q and k: ``kernel`` also takes ``share`` and ``parts``."""
    chunk, share, parts, interpret = sizes
    kernel, options = partial(kernel, share=share, parts=parts), {"parts": parts, **options}
    return by_chunk(kernel, outputs, operands, chunk=chunk, interpret=interpret, **options)


def summed_over_parts(d, x, sizes: Sizes) -> jax.Array:
    """The gradient of a shared q or k ``x``, from those of the parts of its heads."""
    return d if sizes.parts == 1 else d.reshape(*x.shape[:3], -1, x.shape[3]).sum(3).astype(x.dtype)


def is_small(states) -> bool:
    """Whether shared memory has room to load several of them ahead."""
    fits = all(size <= most for size, most in zip(states.shape[-2:], _SMALL, strict=True))
    return fits and states.dtype == jnp.bfloat16


def outputs(
    q, k, v, factors: Factors, before, sizes: Sizes, scales: Scales | None = None
) -> jax.Array:
    """y [B, L, H, P] in the dtype of v, from the states before the chunks [B, chunks, H, N, P]."""
    operands = (q, k, v, factors.total, factors.run, factors.from_start, before, *(scales or ()))
    return by_part(_outputs, like(v), operands, sizes, stages=3 if is_small(before) else 2)


def gradients(
    q, k, v, factors: Factors, before, after, dy, sizes: Sizes, scales: Scales | None = None
):
    """Cotangents (dq, dk, dv, of the factors, of the scales) from those of y and of the states
    after the chunks.

    They are those of `outputs` and of the writes ``to_end k v^T`` and decays ``stays`` together.
    """
    total, from_start, to_end, stays, run = factors
    batch, length, groups, n = q.shape

    def of_parts(dtype):
        dtype = jnp.float32 if sizes.parts > 1 else dtype
        return jax.ShapeDtypeStruct((batch, length, groups * sizes.parts, n), dtype)

    vector = jax.ShapeDtypeStruct(from_start.shape, jnp.float32)
    per_chunk = jax.ShapeDtypeStruct(stays.shape, jnp.float32)
    operands = (k, q, v, total, run, from_start, before, after, dy, *(scales or ())[:1])
    results = (of_parts(q.dtype), vector, per_chunk)
    dq, dfrom_start, dstays = by_part(_read_gradients, results, operands, sizes)
    dv = jax.ShapeDtypeStruct(v.shape, v.dtype)
    results = (of_parts(k.dtype), dv, vector, vector, *((vector, per_chunk) if scales else ()))
    operands = (q, k, v, total, run, to_end, after, dy, *(scales or ()))
    kernel = partial(_write_gradients, scaled=scales is not None)
    warps = 8 if n * v.shape[-1] > _WIDE else 4
    dk, dv, dtotal, dto_end, *dscales = by_part(kernel, results, operands, sizes, warps=warps)
    dq, dk = summed_over_parts(dq, q, sizes), summed_over_parts(dk, k, sizes)
    if len(total.shape) == 4:  # the same for both parts
        dtotal = jnp.broadcast_to(dtotal[:, :, None], total.shape)
    dfactors = Factors(dtotal, dfrom_start, dto_end, dstays, None)  # pyright: ignore[reportArgumentType]
    if scales is not None:
        dscales = Scales(dscales[0], dscales[1].sum((0, 2)))
    return dq, dk, dv, dfactors, dscales or None
