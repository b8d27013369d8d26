"""The delta rule as Pallas kernels for NVIDIA GPUs (Triton backend).

With the notation of `hybrid_lm.kernels.delta_rule.xla`, ``T = (I + N)^-1``, the writes of a chunk
that starts from S are ``n = U - W S`` with ``U = T (b v)`` and ``W = T (b d k)``. `_solve` finds T,
W and U of all chunks side by side; `_pass_states` walks over the chunks with S in registers. From
then on the writes n are the values of a recurrence without the delta rule, whose outputs are those
of `hybrid_lm.kernels.chunked_gpu`. Backwards `_pass_cotangents` walks in reverse, and
`chunk_gradients` does all that is left of all chunks side by side.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import chunked_gpu, pallas_triton
from hybrid_lm.kernels.chunked_gpu import Factors, Sizes, by_chunk, decay, like, padded
from hybrid_lm.kernels.delta_rule.gpu_gradients import below_diagonal, chunk_gradients
from hybrid_lm.kernels.pallas_triton import dot

_CHUNK = 64
_COLUMNS = (32, 16)  # of a state in one program of a walk, where there are enough programs
_WALKS = 256  # programs of a walk that are enough
_GRADIENT_COLUMNS = 64  # of a state that one product of the gradients takes
_KEYS = 128  # with more, what the gradients of a chunk load ahead is more than shared memory


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


def _exact_dot(wide, half):
    """Product of a float32 matrix and one of bfloat16, the first as a sum of two of bfloat16."""
    high = wide.astype(half.dtype)
    low = (wide - high.astype(jnp.float32)).astype(half.dtype)
    return dot(high, half) + dot(low, half)


def _solve(k, v, beta, total, run, from_start, inverse, w, u, *, chunk):
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens = pl.ds(c * chunk, chunk)
    k_CK, v_CP = k[batch, tokens, head, :], v[batch, tokens, head, :]
    beta_C = beta[batch, head, tokens]
    n_CC = dot(k_CK, k_CK, trans_b=True) * decay(total, (batch, head, tokens), run[batch, tokens])
    inverse_CC = _inverse(jnp.where(below_diagonal(chunk), beta_C[:, None] * n_CC, 0.0))
    inverse[batch, head, tokens, :] = inverse_CC.astype(inverse.dtype)
    # W and U are what every later product starts from.
    w_CK = _exact_dot(inverse_CC * (beta_C * from_start[batch, head, tokens]), k_CK)
    w[batch, tokens, head, :] = w_CK.astype(w.dtype)
    u[batch, tokens, head, :] = _exact_dot(inverse_CC * beta_C, v_CP).astype(u.dtype)


def _pass_states(w, u, k, to_end, stays, start, last, before, writes, *, chunk, columns, chunks):
    """``n = u - W S`` and ``S <- stays S + k^T (to_end n)``; saves S before each chunk, and n."""
    batch, head = pl.program_id(0), pl.program_id(1)
    block = pl.ds(pl.program_id(2) * columns, columns)

    def step(c, carried):
        state_KP, stay = carried
        ahead = stays[batch, head, jnp.minimum(c + 1, chunks - 1)]  # not among those of ``stages``
        tokens = pl.ds(c * chunk, chunk)
        half_KP = state_KP.astype(before.dtype)
        before[batch, c, head, :, block] = half_KP
        n_CP = u[batch, tokens, head, block] - dot(w[batch, tokens, head, :], half_KP)
        writes[batch, tokens, head, block] = n_CP.astype(writes.dtype)
        n_CP = (n_CP * to_end[batch, head, tokens][:, None]).astype(writes.dtype)
        return stay * state_KP + dot(k[batch, tokens, head, :], n_CP, trans_a=True), ahead

    carried = start[batch, head, :, block], stays[batch, head, 0]
    last[batch, head, :, block] = jax.lax.fori_loop(0, chunks, step, carried)[0]


def _read_writes(q, k, total, run, dy, dwrites, *, chunk):
    """Cotangent of the writes from the outputs of their own chunk."""
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens = pl.ds(c * chunk, chunk)
    dy_CP = dy[batch, tokens, head, :]
    scores_CC = dot(k[batch, tokens, head, :], q[batch, tokens, head, :], trans_b=True)
    scores_CC *= decay(total, (batch, head, tokens), run[batch, tokens], keys_first=True)
    dwrites[batch, tokens, head, :] = dot(scores_CC.astype(dy_CP.dtype), dy_CP).astype(dy_CP.dtype)


def _pass_cotangents(
    w,
    q,
    k,
    dy,
    dread,
    from_start,
    to_end,
    stays,
    start,
    first,
    after,
    dwrites,
    *,
    chunk,
    columns,
    chunks,
):
    """``dn = dread + to_end k dS`` and ``dS <- stays dS + q^T (from_start dy) - W^T dn``; saves dS
    after each chunk, and dn.
    """
    batch, head = pl.program_id(0), pl.program_id(1)
    block = pl.ds(pl.program_id(2) * columns, columns)

    def step(i, carried):
        dstate_KP, stay = carried
        c = chunks - 1 - i
        ahead = stays[batch, head, jnp.maximum(c - 1, 0)]
        tokens = pl.ds(c * chunk, chunk)
        half_KP = dstate_KP.astype(after.dtype)
        after[batch, c, head, :, block] = half_KP
        dn_CP = to_end[batch, head, tokens][:, None] * dot(k[batch, tokens, head, :], half_KP)
        dn_CP = (dn_CP + dread[batch, tokens, head, block]).astype(half_KP.dtype)
        dwrites[batch, tokens, head, block] = dn_CP
        dy_CP = dy[batch, tokens, head, block]
        dy_CP = (from_start[batch, head, tokens][:, None] * dy_CP).astype(half_KP.dtype)
        dstate_KP = stay * dstate_KP + dot(q[batch, tokens, head, :], dy_CP, trans_a=True)
        return dstate_KP - dot(w[batch, tokens, head, :], dn_CP, trans_a=True), ahead

    carried = start[batch, head, :, block], stays[batch, head, chunks - 1]
    first[batch, head, :, block] = jax.lax.fori_loop(0, chunks, step, carried)[0]


def _by_chunk(kernel, outputs, *operands, sizes: Sizes, stages: int = 1, **options):
    chunk, interpret = sizes.chunk, sizes.interpret
    options = {"chunk": chunk, "stages": stages, "interpret": interpret, **options}
    return by_chunk(kernel, outputs, operands, **options)


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
    results = (like(start_BHKP), jax.ShapeDtypeStruct(per_chunk, v.dtype), like(v))
    operands = (w, u, k, to_end, stays, start_BHKP)
    last, before, writes = _walk(_pass_states, results, *operands, sizes=sizes)
    y = chunked_gpu.outputs(q, k, writes, factors, before, sizes)
    return (y, last), (q, k, v, beta, factors, inverse, w, u, before, writes)


def _backward(sizes, residuals, cotangents):
    q, k, v, beta, factors, inverse, w, u, before, writes = residuals
    dy, dlast = cotangents
    total, from_start, to_end, stays, run = factors

    dread = _by_chunk(_read_writes, like(v), q, k, total, run, dy, sizes=sizes)
    operands = (w, q, k, dy, dread, from_start, to_end, stays, dlast)
    results = (like(dlast), like(before), like(v))
    dstart, after, dwrites = _walk(_pass_cotangents, results, *operands, sizes=sizes)
    operands = (q, k, v, beta, total, run, from_start, to_end)
    operands = (*operands, inverse, w, u, before, writes, after, dy, dwrites)
    results = (*map(like, (q, k, v, beta, total, from_start, to_end, stays)),)
    kernel = partial(chunk_gradients, columns=min(v.shape[-1], _GRADIENT_COLUMNS))
    options = {"sizes": sizes, "warps": 8, "stages": 3}
    dq, dk, dv, dbeta, *dfactors = _by_chunk(kernel, results, *operands, **options)
    return dq, dk, dv, dbeta, Factors(*dfactors, None), dstart  # pyright: ignore[reportCallIssue]


_delta_rule.defvjp(_forward, _backward)


def obstacle(k_BLHK: jax.Array, v_BLHP: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    if k_BLHK.shape[-1] > _KEYS:
        return f"keys of {k_BLHK.shape[-1]}"
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
    given = log_decay, pad(beta_BLH.astype(jnp.float32)), resets
    factors, beta_BHL = chunked_gpu.gpu_factors(*given, v.shape[:3], _CHUNK, interpret)
    operands = (pad(q_BLHK), pad(k_BLHK), v, beta_BHL, factors, initial_state_BHKP)
    y, last = _delta_rule(*operands, Sizes(_CHUNK, interpret=interpret))  # pyright: ignore[reportGeneralTypeIssues]
    return y[:, :length].astype(jnp.float32), last
