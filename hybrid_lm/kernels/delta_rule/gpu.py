"""The delta rule as Pallas kernels for NVIDIA GPUs (Triton backend).

With the notation of `hybrid_lm.kernels.delta_rule.xla`, ``T = (I + N)^-1``, the writes of a chunk
that starts from S are ``n = U - W S`` with ``U = T (b v)`` and ``W = T (b d k)``. `_solve` finds T,
W and U of all chunks side by side; `_pass_states` walks over the chunks with S in registers. From
then on the writes n are the values of a recurrence without the delta rule, whose kernels are in
`hybrid_lm.kernels.chunked_gpu`. Backwards `_pass_cotangents` walks in reverse, and
`_solve_gradients` goes back through T.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import chunked_gpu, pallas_triton
from hybrid_lm.kernels.chunked_gpu import Factors, Sizes, by_chunk, decay, like, padded
from hybrid_lm.kernels.pallas_triton import dot

_CHUNK = 64
_COLUMNS = (32, 16)  # of a state in one program of a walk, where there are enough programs
_WALKS = 256  # programs of a walk that are enough


def _earlier(total_C, run_C, *, keys_first=False):
    """`decay` of earlier tokens only."""
    place = jnp.arange(total_C.shape[0])
    i, j = (place[None, :], place[:, None]) if keys_first else (place[:, None], place[None, :])
    return jnp.where(i > j, decay(total_C, run_C, keys_first=keys_first), 0.0)


def _inverse(n_CC):
    """``(I + n)^-1``, as in the XLA form: blocks of doubling size."""
    place = jnp.arange(n_CC.shape[0])

    def corner(level):
        row, column = place[:, None] >> level, place[None, :] >> level
        return jnp.where((row == column + 1) & (row % 2 == 1), n_CC, 0.0)

    inverse_CC = jnp.where(place[:, None] == place[None, :], 1.0, 0.0) - corner(0)
    for level in range(1, n_CC.shape[0].bit_length() - 1):
        update_CC = dot(corner(level), inverse_CC, tf32=True)
        inverse_CC -= dot(inverse_CC, update_CC, tf32=True)
    return inverse_CC


def _solve(k, v, beta, total, run, from_start, inverse, w, u, *, chunk):
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens = pl.ds(c * chunk, chunk)
    k_CK, v_CP = k[batch, tokens, head, :], v[batch, tokens, head, :]
    beta_C = beta[batch, head, tokens]
    n_CC = dot(k_CK, k_CK, trans_b=True) * _earlier(total[batch, head, tokens], run[batch, tokens])
    inverse_CC = _inverse(beta_C[:, None] * n_CC)
    inverse[batch, head, tokens, :] = inverse_CC.astype(inverse.dtype)
    # W and U are what every later product starts from.
    w_CK = _exact_dot(inverse_CC * (beta_C * from_start[batch, head, tokens]), k_CK)
    w[batch, tokens, head, :] = w_CK.astype(w.dtype)
    u[batch, tokens, head, :] = _exact_dot(inverse_CC * beta_C, v_CP).astype(u.dtype)


def _exact_dot(wide, half):
    """Product of a float32 matrix and one of bfloat16, the first as a sum of two of bfloat16."""
    high = wide.astype(half.dtype)
    low = (wide - high.astype(jnp.float32)).astype(half.dtype)
    return dot(high, half) + dot(low, half)


def _pass_states(w, u, k, to_end, stays, start, last, before, writes, *, chunk, columns, chunks):
    batch, head = pl.program_id(0), pl.program_id(1)
    block = pl.ds(pl.program_id(2) * columns, columns)

    def step(c, state_KP):
        tokens = pl.ds(c * chunk, chunk)
        half_KP = state_KP.astype(before.dtype)
        before[batch, c, head, :, block] = half_KP
        n_CP = u[batch, tokens, head, block] - dot(w[batch, tokens, head, :], half_KP)
        writes[batch, tokens, head, block] = n_CP.astype(writes.dtype)
        n_CP = (n_CP * to_end[batch, head, tokens][:, None]).astype(writes.dtype)
        return stays[batch, head, c] * state_KP + dot(k[batch, tokens, head, :], n_CP, trans_a=True)

    state_KP = jax.lax.fori_loop(0, chunks, step, start[batch, head, :, block])
    last[batch, head, :, block] = state_KP


def _read_writes(q, k, total, run, dy, dwrites, *, chunk):
    """Cotangent of the writes from the outputs of their own chunk."""
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens = pl.ds(c * chunk, chunk)
    dy_CP = dy[batch, tokens, head, :]
    scores_CC = dot(k[batch, tokens, head, :], q[batch, tokens, head, :], trans_b=True)
    scores_CC *= decay(total[batch, head, tokens], run[batch, tokens], keys_first=True)
    dwrites[batch, tokens, head, :] = dot(scores_CC.astype(dy_CP.dtype), dy_CP).astype(dy_CP.dtype)


def _pass_cotangents(
    w, q, k, dy, dwrites, from_start, to_end, stays, start, first, after, *, chunk, columns, chunks
):
    batch, head = pl.program_id(0), pl.program_id(1)
    block = pl.ds(pl.program_id(2) * columns, columns)

    def step(i, dstate_KP):
        c = chunks - 1 - i
        tokens = pl.ds(c * chunk, chunk)
        half_KP = dstate_KP.astype(after.dtype)
        after[batch, c, head, :, block] = half_KP
        dn_CP = to_end[batch, head, tokens][:, None] * dot(k[batch, tokens, head, :], half_KP)
        dn_CP = (dn_CP + dwrites[batch, tokens, head, block]).astype(half_KP.dtype)
        dy_CP = dy[batch, tokens, head, block]
        dy_CP = (from_start[batch, head, tokens][:, None] * dy_CP).astype(half_KP.dtype)
        dstate_KP = stays[batch, head, c] * dstate_KP
        dstate_KP += dot(q[batch, tokens, head, :], dy_CP, trans_a=True)
        return dstate_KP - dot(w[batch, tokens, head, :], dn_CP, trans_a=True)

    dstate_KP = jax.lax.fori_loop(0, chunks, step, start[batch, head, :, block])
    first[batch, head, :, block] = dstate_KP


def _solve_gradients(
    k,
    v,
    beta,
    total,
    run,
    from_start,
    inverse,
    w,
    u,
    before,
    dwrites,
    dk_written,
    dk,
    dv,
    dbeta,
    dtotal,
    dfrom_start,
    *,
    chunk,
):
    """From the cotangents dU = dn and dW = -dn S^T: with X = T^T dU and Y = T^T dW,
    ``d(b v) = X``, ``d(b d k) = Y`` and ``dN = -(X U^T + Y W^T)`` below the diagonal.
    """
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens = pl.ds(c * chunk, chunk)
    k_CK, v_CP = k[batch, tokens, head, :], v[batch, tokens, head, :]
    dn_CP, half = dwrites[batch, tokens, head, :], k_CK.dtype
    beta_C, from_start_C = beta[batch, head, tokens], from_start[batch, head, tokens]
    inverse_CC = inverse[batch, head, tokens, :]

    x_CP = dot(inverse_CC, dn_CP, trans_a=True)
    dv[batch, tokens, head, :] = (beta_C[:, None] * x_CP).astype(dv.dtype)
    dbeta_C = jnp.sum(x_CP * v_CP, axis=1)
    dw_CK = -dot(dn_CP, before[batch, c, head, :, :], trans_b=True)
    y_CK = dot(inverse_CC, dw_CK.astype(half), trans_a=True)
    read_C = jnp.sum(y_CK * k_CK, axis=1)
    dbeta_C += from_start_C * read_C
    dfrom_start[batch, head, tokens] = beta_C * read_C

    dk_CK = dk_written[batch, tokens, head, :] + (beta_C * from_start_C)[:, None] * y_CK
    x_CP, y_CK = x_CP.astype(half), y_CK.astype(half)
    earlier_CC = _earlier(total[batch, head, tokens], run[batch, tokens])
    n_CC = dot(k_CK, k_CK, trans_b=True) * earlier_CC
    dn_CC = -dot(x_CP, u[batch, tokens, head, :], trans_b=True)
    dn_CC -= dot(y_CK, w[batch, tokens, head, :], trans_b=True)
    dgap_CC = dn_CC * n_CC
    dbeta[batch, head, tokens] = dbeta_C + jnp.sum(dgap_CC, axis=1)
    dgap_CC *= beta_C[:, None]
    dtotal[batch, head, tokens] = jnp.sum(dgap_CC, axis=1) - jnp.sum(dgap_CC, axis=0)
    dkk_CC = (dn_CC * earlier_CC * beta_C[:, None]).astype(half)
    dk_CK += dot(dkk_CC, k_CK) + dot(dkk_CC, k_CK, trans_a=True)
    dk[batch, tokens, head, :] = dk_CK.astype(dk.dtype)


def _by_chunk(kernel, outputs, *operands, sizes: Sizes):
    chunk, interpret = sizes.chunk, sizes.interpret
    return by_chunk(kernel, outputs, operands, chunk=chunk, stages=1, interpret=interpret)


def _walk(kernel, outputs, *operands, sizes: Sizes):
    """Run a kernel from chunk to chunk; operands end with the state it starts from."""
    batch, heads, _, width = operands[-1].shape
    fill = batch * heads * width >= _WALKS * _COLUMNS[0]
    columns, chunks = _COLUMNS[0 if fill else 1], operands[0].shape[1] // sizes.chunk
    return pallas_triton.call(
        partial(kernel, chunk=sizes.chunk, columns=columns, chunks=chunks),
        (batch, heads, width // columns),
        outputs,
        *operands,
        warps=4,
        stages=3,
        interpret=sizes.interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _delta_rule(q, k, v, beta, factors: Factors, start_BHKP, sizes: Sizes):
    """Outputs in the dtype of v, and the last state; beta [B, H, L]."""
    return _forward(q, k, v, beta, factors, start_BHKP, sizes)[0]


def _forward(q, k, v, beta, factors, start_BHKP, sizes):
    batch, length, heads, _ = v.shape
    total, from_start, to_end, stays, run = factors

    inverse = jax.ShapeDtypeStruct((batch, heads, length, sizes.chunk), k.dtype)
    operands = (k, v, beta, total, run, from_start)
    inverse, w, u = _by_chunk(_solve, (inverse, like(k), like(v)), *operands, sizes=sizes)
    per_chunk = (batch, length // sizes.chunk, heads, *start_BHKP.shape[2:])
    states = (like(start_BHKP), jax.ShapeDtypeStruct(per_chunk, v.dtype))
    operands = (w, u, k, to_end, stays, start_BHKP)
    last, before, writes = _walk(_pass_states, (*states, like(v)), *operands, sizes=sizes)
    y = chunked_gpu.outputs(q, k, writes, factors, before, sizes)
    return (y, last), (q, k, v, beta, factors, inverse, w, u, before, writes)


def _backward(sizes, residuals, cotangents):
    q, k, v, beta, factors, inverse, w, u, before, writes = residuals
    dy, dlast = cotangents
    total, from_start, to_end, stays, run = factors

    dwrites = _by_chunk(_read_writes, like(v), q, k, total, run, dy, sizes=sizes)
    operands = (w, q, k, dy, dwrites, from_start, to_end, stays, dlast)
    dstart, after = _walk(_pass_cotangents, (like(dlast), like(before)), *operands, sizes=sizes)
    dq, dk, dwrites, dfactors, _ = chunked_gpu.gradients(
        q, k, writes, factors, before, after, dy, sizes, dk_dtype=jnp.float32
    )
    operands = (k, v, beta, total, run, from_start, inverse, w, u, before, dwrites, dk)
    outputs = (like(k), like(v), like(beta), like(total), like(from_start))
    dk, dv, dbeta, dtotal, dfrom_start = _by_chunk(
        _solve_gradients, outputs, *operands, sizes=sizes
    )
    dfactors = dfactors._replace(
        total=dfactors.total + dtotal, from_start=dfactors.from_start + dfrom_start
    )
    return dq, dk, dv, dbeta, dfactors, dstart


_delta_rule.defvjp(_forward, _backward)


def obstacle(k_BLHK: jax.Array, v_BLHP: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    return chunked_gpu.half_obstacle(k_BLHK, v_BLHP, least=32)


def delta_rule(
    q_BLHK,
    k_BLHK,
    v_BLHP,
    beta_BLH,
    log_decay_BLH,
    resets_BL,
    initial_state_BHKP,
    *,
    interpret=False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.delta_rule.delta_rule`; any L."""
    length = v_BLHP.shape[1]
    pad = partial(padded, multiple=_CHUNK)
    v, log_decay, resets = jax.tree.map(pad, (v_BLHP, log_decay_BLH, resets_BL))
    factors = chunked_gpu.factors(log_decay, resets, v.shape[:3], _CHUNK)
    beta_BHL = jnp.moveaxis(pad(beta_BLH.astype(jnp.float32)), -1, 1)
    operands = (pad(q_BLHK), pad(k_BLHK), v, beta_BHL, factors, initial_state_BHKP)
    y, last = _delta_rule(*operands, Sizes(_CHUNK, interpret=interpret))  # pyright: ignore[reportGeneralTypeIssues]
    return y[:, :length].astype(jnp.float32), last
