"""Gradients of the delta rule in one chunk, as one kernel: what is read once serves all of them."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels.chunked_gpu import decay
from hybrid_lm.kernels.pallas_triton import dot


def below_diagonal(size: int):
    """[C, C], True below the diagonal."""
    place = jnp.arange(size)
    return place[:, None] > place[None, :]


def chunk_gradients(
    q,
    k,
    v,
    beta,
    total,
    run,
    from_start,
    to_end,
    inverse,
    w,
    u,
    before,
    writes,
    after,
    dy,
    dwrites,
    dq,
    dk,
    dv,
    dbeta,
    dtotal,
    dfrom_start,
    dto_end,
    dstays,
    *,
    chunk,
    columns,
):
    """All that a chunk's inputs get, from the cotangents of y, of the writes and of the state.

    ``y = d (q S) + scores n`` gives q, k and the decays their shares as in attention. With
    dU = dn, dW = -dn S^T: ``d(b v) = T^T dU``, ``d(b d k) = T^T dW`` and, below the diagonal,
    ``dN = -T^T (dU U^T + dW W^T)``.
    """
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens, half = pl.ds(c * chunk, chunk), k.dtype
    beta_C, inverse_CC = beta[batch, head, tokens], inverse[batch, head, tokens, :]

    def add(i, sums):
        dq_CK, dk_CK, dw_CK, dscores_CC, dsolved_CC, dbeta_C, dstays_K = sums
        block = pl.ds(i * columns, columns)
        at = batch, tokens, head, block
        before_KP, after_KP = before[batch, c, head, :, block], after[batch, c, head, :, block]
        dy_CP, n_CP, dn_CP = dy[at], writes[at], dwrites[at]
        dq_CK += dot(dy_CP, before_KP, trans_b=True)
        dk_CK += dot(n_CP, after_KP, trans_b=True)
        dw_CK += dot(dn_CP, before_KP, trans_b=True)
        dscores_CC += dot(dy_CP, n_CP, trans_b=True)
        dsolved_CC += dot(dn_CP, u[at], trans_b=True)
        dv_CP = dot(inverse_CC, dn_CP, trans_a=True)
        dv[at] = (beta_C[:, None] * dv_CP).astype(dv.dtype)
        dbeta_C += jnp.sum(dv_CP * v[at], axis=1)
        dstays_K += jnp.sum(before_KP.astype(jnp.float32) * after_KP, axis=1)
        return dq_CK, dk_CK, dw_CK, dscores_CC, dsolved_CC, dbeta_C, dstays_K

    keys, width = k.shape[-1], v.shape[-1]
    zeros = [(chunk, keys)] * 3 + [(chunk, chunk)] * 2 + [(chunk,), (keys,)]
    sums = tuple(jnp.zeros(shape, jnp.float32) for shape in zeros)
    sums = jax.lax.fori_loop(0, width // columns, add, sums)
    dq_CK, dk_CK, dw_CK, dscores_CC, dsolved_CC, dbeta_C, dstays_K = sums
    dstays[batch, head, c] = jnp.sum(dstays_K)

    # Reads: the state before the chunk, and the writes in it.
    q_CK, k_CK = q[batch, tokens, head, :], k[batch, tokens, head, :]
    run_C = run[batch, tokens]
    from_start_C, to_end_C = from_start[batch, head, tokens], to_end[batch, head, tokens]
    decay_CC = decay(total, (batch, head, tokens), run_C)
    dgap_CC = dot(q_CK, k_CK, trans_b=True) * decay_CC * dscores_CC
    dtotal_C = jnp.sum(dgap_CC, axis=1) - jnp.sum(dgap_CC, axis=0)
    dscores_CC = (dscores_CC * decay_CC).astype(half)
    dfrom_start_C = jnp.sum(dq_CK * q_CK, axis=1)
    dto_end[batch, head, tokens] = jnp.sum(dk_CK * k_CK, axis=1)
    dq_CK = from_start_C[:, None] * dq_CK + dot(dscores_CC, k_CK)
    dq[batch, tokens, head, :] = dq_CK.astype(dq.dtype)
    dk_CK = to_end_C[:, None] * dk_CK + dot(dscores_CC, q_CK, trans_a=True)

    # Writes: through T.
    dw_CK = (-dw_CK).astype(half)
    y_CK = dot(inverse_CC, dw_CK, trans_a=True)
    read_C = jnp.sum(y_CK * k_CK, axis=1)
    dbeta_C += from_start_C * read_C
    dfrom_start[batch, head, tokens] = dfrom_start_C + beta_C * read_C
    dk_CK += (beta_C * from_start_C)[:, None] * y_CK
    dsolved_CC += dot(dw_CK, w[batch, tokens, head, :], trans_b=True)
    dn_CC = -dot(inverse_CC, dsolved_CC.astype(half), trans_a=True)
    dn_CC = jnp.where(below_diagonal(chunk), dn_CC * decay_CC, 0.0)
    dgap_CC = dn_CC * dot(k_CK, k_CK, trans_b=True)
    dbeta[batch, head, tokens] = dbeta_C + jnp.sum(dgap_CC, axis=1)
    dgap_CC *= beta_C[:, None]
    dtotal[batch, head, tokens] = dtotal_C + jnp.sum(dgap_CC, axis=1) - jnp.sum(dgap_CC, axis=0)
    dkk_CC = (dn_CC * beta_C[:, None]).astype(half)
    dk_CK += dot(dkk_CC, k_CK) + dot(dkk_CC, k_CK, trans_a=True)
    dk[batch, tokens, head, :] = dk_CK.astype(dk.dtype)
