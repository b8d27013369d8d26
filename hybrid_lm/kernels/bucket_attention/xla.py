"""Tokens sorted by bucket, and windows over the sorted row in batched matrix products.

Chunks begin with the first token of a document's bucket and hold no other's: a token's place in its
chunk, and with it every rounding, depends only on the past of its own document.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.bucket_attention.rings import LOW, Rings, Shape, Softmax, merged
from hybrid_lm.kernels.precision import einsum_half


def bucket_attention(
    q_BLHK, k_BLHK, v_BLHP, bucket_BLHR, resets_BL, rings, shape: Shape, documents: int, size: int
):
    """See `hybrid_lm.kernels.bucket_attention.bucket_attention`.

    ``documents`` bounds those of the row and the state, ``size`` is that of a chunk.
    """
    document_BL = jnp.zeros(q_BLHK.shape[:2], jnp.int32)
    if resets_BL is not None:
        document_BL = jnp.cumsum(resets_BL, axis=1, dtype=jnp.int32)
    group_BLHR = document_BL[..., None, None] * shape.buckets + bucket_BLHR
    of_round = partial(_round, shape=shape, documents=documents, size=size)

    def of_head(q_LK, k_LK, v_LP, group_LR, document_L, ring_R):
        axes = (None, None, None, 1, None, None if ring_R is None else 0)
        rounds, ring_R = jax.vmap(of_round, axes)(q_LK, k_LK, v_LP, group_LR, document_L, ring_R)
        return merged(rounds), ring_R

    ring_axis = None if rings is None else 0
    of_heads = jax.vmap(of_head, (1, 1, 1, 1, None, ring_axis), (1, 0))
    of_rows = jax.vmap(of_heads, (0, 0, 0, 0, 0, ring_axis))
    y_BLHP, rings = of_rows(q_BLHK, k_BLHK, v_BLHP, group_BLHR, document_BL, rings)
    return y_BLHP.astype(q_BLHK.dtype), rings if shape.causal else None


def _round(q_LK, k_LK, v_LP, group_L, document_L, ring, *, shape: Shape, documents, size):
    """One round of one head and row: the softmax of each token, and the ring after the row."""
    length, before = q_LK.shape[0], 0
    if ring is not None:
        before = shape.buckets * shape.window
        slot_NW = jnp.arange(shape.window) >= shape.window - ring.count_BHRN[:, None]
        bucket_NW = jnp.where(slot_NW, jnp.arange(shape.buckets)[:, None], -1)
        group_L = jnp.concatenate([bucket_NW.ravel(), group_L])
        q_LK = jnp.pad(q_LK, ((before, 0), (0, 0)))
        k_LK = jnp.concatenate([ring.k_BHRNWK.reshape(before, -1).astype(k_LK.dtype), k_LK])
        v_LP = jnp.concatenate([ring.v_BHRNWP.reshape(before, -1).astype(v_LP.dtype), v_LP])
    items = length + before
    groups = min(documents * shape.buckets + 1, items)
    chunks = min(-(-items // size) + groups, items)
    order_L = jnp.argsort(group_L, stable=True).astype(jnp.int32)
    sorted_L = group_L[order_L]
    place_L = jnp.arange(items, dtype=jnp.int32)
    is_new_L = jnp.concatenate([jnp.ones(1, bool), sorted_L[1:] != sorted_L[:-1]])
    rank_L = place_L - jax.lax.cummax(jnp.where(is_new_L, place_L, 0))
    chunk_L = jnp.cumsum(rank_L % size == 0, dtype=jnp.int32) - 1
    slot_L = chunk_L * size + rank_L % size
    source_S = jnp.full(chunks * size, items, jnp.int32).at[slot_L].set(order_L)
    slot_L = jnp.zeros(items, jnp.int32).at[order_L].set(slot_L)
    group_n = jnp.where(source_S[::size] < items, group_L.at[source_S[::size]].get(mode="clip"), -2)

    def cut(x_LK):
        return rearranged(x_LK, source_S, slot_L).reshape(chunks, size, -1)

    # A token sees the chunks that its window reaches into.
    reach = min(shape.window if shape.causal else shape.window // 2, items - 1)
    past = -(-reach // size)
    pieces = past + 1 if shape.causal else 2 * past + 1

    def windows(x_nC, value=0):
        ends = [(past, pieces - 1 - past)] + [(0, 0)] * (x_nC.ndim - 1)
        x_nC = jnp.pad(x_nC, ends, constant_values=value)
        return jnp.stack([x_nC[i : i + chunks] for i in range(pieces)], axis=1)

    slot_C1 = jnp.arange(size)[:, None]
    distance_CS = slot_C1 - jnp.arange(-past * size, (pieces - past) * size)
    near_CS = (abs(distance_CS) <= reach) & ((distance_CS >= 0) | (not shape.causal))
    own_CS = distance_CS == 0
    same_np = windows(group_n, -3) == group_n[:, None]
    there_npC = same_np[..., None] & (windows(source_S.reshape(chunks, size), items) < items)
    seen_nCS = near_CS & there_npC.reshape(chunks, 1, -1)
    q_nCK = cut(q_LK)
    k_nSK, v_nSP = (windows(cut(x)).reshape(chunks, pieces * size, -1) for x in (k_LK, v_LP))
    scores = einsum_half("nck,nsk->ncs", q_nCK, k_nSK) / q_LK.shape[-1] ** 0.5
    hidden_CS = own_CS & (not shape.sees_itself)
    # XLA may compute them anew, and round them differently, for each of their uses: large scores
    # would then lie far from their own maximum.
    scores = jax.lax.optimization_barrier(jnp.where(seen_nCS & ~hidden_CS, scores, LOW))
    top_nC = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    weights = jnp.where(seen_nCS, jnp.exp(scores - top_nC[..., None]), 0.0)
    values_nCP = einsum_half("ncs,nsp->ncp", weights.astype(v_nSP.dtype), v_nSP)
    total_nC = jnp.where(chunk_L[-1] < chunks, weights.sum(-1), jnp.nan)

    def of_token(x_nCF):
        return rearranged(x_nCF.reshape(chunks * size, -1), slot_L, source_S)[before:]

    softmax = Softmax(of_token(top_nC)[:, 0], of_token(total_nC)[:, 0], of_token(values_nCP))
    if not shape.causal:
        return softmax, None
    last_N = document_L[-1] * shape.buckets + jnp.arange(shape.buckets)
    end_N = jnp.sum(sorted_L <= last_N[:, None], axis=1, dtype=jnp.int32)
    count_N = jnp.sum(sorted_L == last_N[:, None], axis=1, dtype=jnp.int32)
    count_N = jnp.minimum(count_N, shape.window)
    kept_NW = jnp.arange(shape.window) >= shape.window - count_N[:, None]
    place_NW = end_N[:, None] + jnp.arange(-shape.window, 0)
    item_NW = order_L[jnp.where(kept_NW, place_NW, 0)]

    def kept(x_LK):
        return jnp.where(kept_NW[..., None], x_LK[item_NW], 0)

    return softmax, Rings(kept(k_LK), kept(v_LP), count_N)


def rearranged(x_LK: jax.Array, source_S: jax.Array, slot_L: jax.Array) -> jax.Array:
    """``x[source]``, 0 for a source of L; ``slot`` is where each row of x goes.

    Every row goes to one place at most, so that the gradient is a gather too.
    """
    x_SK: Any = _rearranged(x_LK, source_S, slot_L)
    return x_SK


@jax.custom_vjp
def _rearranged(x_LK, source_S, slot_L):
    del slot_L
    return x_LK.at[source_S].get(mode="fill", fill_value=0)


def _rearranged_forward(x_LK, source_S, slot_L):
    return _rearranged(x_LK, source_S, slot_L), slot_L


def _rearranged_backward(slot_L, d_SK):
    return d_SK.at[slot_L].get(mode="fill", fill_value=0), None, None


_rearranged.defvjp(_rearranged_forward, _rearranged_backward)
