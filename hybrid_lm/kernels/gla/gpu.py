"""Gated linear attention as Pallas kernels for NVIDIA GPUs (Triton backend).

As in `hybrid_lm.kernels.gla.xla`, the scores of a chunk are products over halves of doubling size:
`_scores` and `_score_gradients`, in registers for all sizes, all chunks side by side. With the
queries decayed from the start of their chunk and the keys to its end (by XLA, which also
differentiates that), the rest is a recurrence whose only decay is that of a state over a chunk:
`hybrid_lm.kernels.spans` walks over the chunks, `_outputs` and the gradients take them side by
side.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import chunked_gpu
from hybrid_lm.kernels.chunked_gpu import by_chunk, like
from hybrid_lm.kernels.pallas_triton import dot
from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.kernels.spans import walk

_CHUNK = 64
_KEYS = 64  # channels of keys that one product of scores takes at a time
_COLUMNS = 64  # value channels that one program takes at a time


def _sizes(chunk: int) -> list[int]:
    """Of the halves."""
    return [1 << level for level in range((chunk - 1).bit_length())]


def _at_boundary(q_CK, k_CK, total, half: int, batch, first, head, block):
    """Queries of right halves and keys of left ones as they are at the boundary; their decay."""
    place = jnp.arange(q_CK.shape[0])
    last_left = place // (2 * half) * (2 * half) + half - 1
    right = (place // half % 2 == 1)[:, None]
    total_CK = total[batch, pl.ds(first, q_CK.shape[0]), head, block]
    gap_CK = total_CK - total[batch, first + last_left, head, block]
    # Above 0 by rounding, or where a document starts in between.
    decay_CK = jnp.exp(jnp.minimum(jnp.where(right, gap_CK, -gap_CK), 0.0))
    x_CK = (jnp.where(right, q_CK, k_CK) * decay_CK).astype(q_CK.dtype)
    return x_CK, decay_CK, right


def _halves(size: int, half: int):
    """[C, C] halves of i and j are the two of one pair; True for a query i and key j, either."""
    place = jnp.arange(size)
    i, j = place[:, None] // half, place[None, :] // half
    return i // 2 == j // 2, i > j, i < j


def _scores(q, k, total, run, scores, *, chunk, keys):
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    first, place = c * chunk, jnp.arange(chunk)
    tokens = pl.ds(first, chunk)
    scores_CC = jnp.zeros((chunk, chunk), jnp.float32)
    for start in range(0, q.shape[-1], keys):
        block = pl.ds(start, keys)
        q_CK, k_CK = q[batch, tokens, head, block], k[batch, tokens, head, block]
        own_C = jnp.sum(q_CK.astype(jnp.float32) * k_CK, axis=1)
        scores_CC += jnp.where(place[:, None] == place[None, :], own_C[:, None], 0.0)
        for half in _sizes(chunk):
            x_CK, _, _ = _at_boundary(q_CK, k_CK, total, half, batch, first, head, block)
            pair, past, _ = _halves(chunk, half)
            scores_CC += jnp.where(pair & past, dot(x_CK, x_CK, trans_b=True), 0.0)
    run_C = run[batch, tokens]
    scores_CC = jnp.where(run_C[:, None] == run_C[None, :], scores_CC, 0.0)
    scores[batch, head, tokens, :] = scores_CC.astype(scores.dtype)


def _score_gradients(q, k, total, run, dscores, dq, dk, dtotal, *, chunk, keys):
    """``dscores`` is [i, j] for a query i and a key j <= i, and mirrored above the diagonal."""
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    blocks = q.shape[-1] // keys
    block, head = pl.ds(head % blocks * keys, keys), head // blocks
    first, place = c * chunk, jnp.arange(chunk)
    tokens = pl.ds(first, chunk)
    run_C = run[batch, tokens]
    q_CK, k_CK = q[batch, tokens, head, block], k[batch, tokens, head, block]
    dscores_CC = dscores[batch, head, tokens, :]
    dscores_CC = jnp.where(run_C[:, None] == run_C[None, :], dscores_CC, 0.0).astype(q_CK.dtype)
    diagonal = place[:, None] == place[None, :]
    own_C1 = jnp.sum(jnp.where(diagonal, dscores_CC, 0.0).astype(jnp.float32), axis=1)[:, None]
    dq_CK, dk_CK = own_C1 * k_CK, own_C1 * q_CK
    dtotal_CK = jnp.zeros(q_CK.shape, jnp.float32)
    for half in _sizes(chunk):
        x_CK, decay_CK, right = _at_boundary(q_CK, k_CK, total, half, batch, first, head, block)
        pair, past, future = _halves(chunk, half)
        other_half = pair & (past | future)
        dx_CK = dot(jnp.where(other_half, dscores_CC, 0.0).astype(x_CK.dtype), x_CK)
        # The boundary's own share is the same from both sides, and cancels.
        dgap_CK = x_CK * dx_CK
        dtotal_CK += jnp.where(right, dgap_CK, -dgap_CK)
        dx_CK *= decay_CK
        dq_CK += jnp.where(right, dx_CK, 0.0)
        dk_CK += jnp.where(right, 0.0, dx_CK)
    dq[batch, tokens, head, block] = dq_CK.astype(dq.dtype)
    dk[batch, tokens, head, block] = dk_CK.astype(dk.dtype)
    dtotal[batch, tokens, head, block] = dtotal_CK


def _written(k, v, *, batch, head, tokens, block):
    """``k^T v``"""
    rows, columns = block
    return dot(k[batch, tokens, head, rows], v[batch, tokens, head, columns], trans_a=True)


def _outputs(q, v, scores, before, y, *, chunk, columns):
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    blocks = v.shape[-1] // columns
    block, head = pl.ds(head % blocks * columns, columns), head // blocks
    tokens = pl.ds(c * chunk, chunk)
    y_CP = dot(q[batch, tokens, head, :], before[batch, c, head, :, block])
    y_CP += dot(scores[batch, head, tokens, :], v[batch, tokens, head, block])
    y[batch, tokens, head, block] = y_CP.astype(y.dtype)


def _read_gradients(q, v, dy, before, dq, dscores, *, chunk, columns):
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens, place = pl.ds(c * chunk, chunk), jnp.arange(chunk)

    def add(i, sums):
        dq_CK, past_CC, future_CC = sums
        block = pl.ds(i * columns, columns)
        v_CP, dy_CP = v[batch, tokens, head, block], dy[batch, tokens, head, block]
        dq_CK += dot(dy_CP, before[batch, c, head, :, block], trans_b=True)
        past_CC += dot(dy_CP, v_CP, trans_b=True)
        return dq_CK, past_CC, future_CC + dot(v_CP, dy_CP, trans_b=True)

    scores_CC = jnp.zeros((chunk, chunk), jnp.float32)
    sums = jnp.zeros((chunk, q.shape[-1]), jnp.float32), scores_CC, scores_CC
    dq_CK, past_CC, future_CC = jax.lax.fori_loop(0, v.shape[-1] // columns, add, sums)
    dq[batch, tokens, head, :] = dq_CK.astype(dq.dtype)
    dscores_CC = jnp.where(place[:, None] >= place[None, :], past_CC, future_CC)
    dscores[batch, head, tokens, :] = dscores_CC.astype(dscores.dtype)


def _write_gradients(k, v, dy, scores, before, after, dk, dv, dstays, *, chunk, columns):
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens = pl.ds(c * chunk, chunk)

    def add(i, sums):
        dk_CK, dstays_K = sums
        block = pl.ds(i * columns, columns)
        after_KP = after[batch, c, head, :, block]
        dv_CP = dot(k[batch, tokens, head, :], after_KP)
        scores_CC = scores[batch, head, tokens, :]
        dv_CP += dot(scores_CC, dy[batch, tokens, head, block], trans_a=True)
        dv[batch, tokens, head, block] = dv_CP.astype(dv.dtype)
        dk_CK += dot(v[batch, tokens, head, block], after_KP, trans_b=True)
        before_KP = before[batch, c, head, :, block].astype(jnp.float32)
        return dk_CK, dstays_K + jnp.sum(before_KP * after_KP, axis=1)

    keys = k.shape[-1]
    sums = jnp.zeros((chunk, keys), jnp.float32), jnp.zeros((keys,), jnp.float32)
    dk_CK, dstays_K = jax.lax.fori_loop(0, v.shape[-1] // columns, add, sums)
    dk[batch, tokens, head, :] = dk_CK.astype(dk.dtype)
    dstays[batch, c, head, :] = dstays_K


def _by_chunk(kernel, outputs, *operands, parts=1, warps=4, interpret, **sizes):
    kernel, options = partial(kernel, **sizes), {"parts": parts, "warps": warps}
    return by_chunk(kernel, outputs, operands, chunk=_CHUNK, interpret=interpret, **options)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _chunk_scores(q, k, total, run, interpret: bool):
    """[B, H, L, C] of each token with those of its chunk, 0 where it does not see one."""
    batch, length, heads, key_dim = q.shape
    scores = jax.ShapeDtypeStruct((batch, heads, length, _CHUNK), q.dtype)
    options = {"warps": 8, "keys": min(key_dim, _KEYS), "interpret": interpret}
    return _by_chunk(_scores, scores, q, k, total, run, **options)


def _chunk_scores_forward(q, k, total, run, interpret):
    return _chunk_scores(q, k, total, run, interpret), (q, k, total, run)


def _chunk_scores_backward(interpret, residuals, dscores):
    q, k, total, _ = residuals
    keys = min(q.shape[-1], _KEYS)
    dq, dk, dtotal = _by_chunk(
        _score_gradients,
        (like(q), like(k), like(total)),
        *residuals,
        dscores,
        parts=q.shape[-1] // keys,
        warps=8,
        keys=keys,
        interpret=interpret,
    )
    return dq, dk, dtotal, None


_chunk_scores.defvjp(_chunk_scores_forward, _chunk_scores_backward)


def _walk(k, v, stays, start_BHKP, *, reverse: bool, interpret: bool):
    """The state before (in reverse: after) each chunk, [B, chunks, H, K, P], and the last one."""
    options = {"chunk": _CHUNK, "dtype": v.dtype, "reverse": reverse, "interpret": interpret}
    return walk(_written, (k, v), jnp.moveaxis(stays, 1, 2), start_BHKP, **options)


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _chunk_recurrence(q, k, v, scores, stays, start_BHKP, interpret: bool):
    """Outputs in the dtype of v, and the last state; q and k decayed within their chunk."""
    return _forward(q, k, v, scores, stays, start_BHKP, interpret)[0]


def _forward(q, k, v, scores, stays, start_BHKP, interpret):
    before, last = _walk(k, v, stays, start_BHKP, reverse=False, interpret=interpret)
    columns = min(v.shape[-1], _COLUMNS)
    parts = v.shape[-1] // columns
    options = {"parts": parts, "columns": columns, "interpret": interpret}
    y = _by_chunk(_outputs, like(v), q, v, scores, before, **options)
    return (y, last), (q, k, v, scores, stays, before)


def _backward(interpret, residuals, cotangents):
    q, k, v, scores, stays, before = residuals
    dy, dlast = cotangents
    after, dstart = _walk(q, dy, stays, dlast, reverse=True, interpret=interpret)
    options = {"columns": min(v.shape[-1], _COLUMNS), "interpret": interpret}
    outputs = like(q), like(scores)
    dq, dscores = _by_chunk(_read_gradients, outputs, q, v, dy, before, **options)
    outputs = like(k), like(v), like(stays)
    operands = (k, v, dy, scores, before, after)
    dk, dv, dstays = _by_chunk(_write_gradients, outputs, *operands, **options)
    return dq, dk, dv, dscores, dstays, dstart


_chunk_recurrence.defvjp(_forward, _backward)


def obstacle(k_BLHK: jax.Array, v_BLHP: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    return chunked_gpu.half_obstacle(k_BLHK, v_BLHP)


def gla(
    q_BLHK,
    k_BLHK,
    v_BLHP,
    log_decay_BLHK,
    resets_BL,
    initial_state_BHKP,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.gla.gla`; any L."""
    batch, length, _, _ = v_BLHP.shape

    def cut(x):
        """[B, L, ...] -> [B, chunks, C, ...]; a padded token writes nothing and keeps the state."""
        x = chunked_gpu.padded(x, multiple=_CHUNK)
        return x.reshape(batch, -1, _CHUNK, *x.shape[2:])

    def by_token(x):
        return x.reshape(batch, -1, *x.shape[3:])

    q, k, v = (cut(x) for x in (q_BLHK, k_BLHK, v_BLHP))
    run = jnp.zeros(q.shape[:3], jnp.int32)
    if resets_BL is not None:
        run = jnp.cumsum(cut(resets_BL), axis=2, dtype=jnp.int32)  # starts of documents so far
    place, last_run = jnp.arange(_CHUNK), run[:, :, -1:]

    # Log decays since the start of the chunk, or of the document in it, by a product.
    log_decay = jnp.maximum(cut(log_decay_BLHK), math.log(jnp.finfo(jnp.float32).tiny))
    summed = (place[:, None] >= place) & (run[..., :, None] == run[..., None, :])
    total = einsum_f32("bnij,bnjhk->bnihk", summed.astype(jnp.float32), log_decay)
    from_start = jnp.exp(jnp.where((run == 0)[..., None, None], total, -jnp.inf))
    to_end = jnp.minimum(total[:, :, -1:] - total, 0.0)  # above 0 only by rounding
    to_end = jnp.exp(jnp.where((run == last_run)[..., None, None], to_end, -jnp.inf))
    stays = from_start[:, :, -1]

    scores = _chunk_scores(*map(by_token, (q, k, total, run)), interpret)  # pyright: ignore[reportGeneralTypeIssues]
    reads, writes = (q * from_start).astype(q.dtype), (k * to_end).astype(k.dtype)
    operands = (by_token(reads), by_token(writes), by_token(v), scores, stays, initial_state_BHKP)
    y, last = _chunk_recurrence(*operands, interpret)  # pyright: ignore[reportGeneralTypeIssues]
    return y[:, :length].astype(jnp.float32), last
