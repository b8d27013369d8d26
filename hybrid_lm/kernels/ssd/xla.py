"""Chunked form: matrix products inside a chunk, an associative scan over the chunks' states.

Section 6 of Dao & Gu 2024 (arXiv 2405.21060). Memory is O(L (C + N P / C)) per head.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.decay import sum_decays
from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.kernels.ssd import reference


def ssd(
    q_BLGN, k_BLGN, v_BLHP, log_decay_BLH, resets_BL, initial_state_BHNP, *, chunk_size: int
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.ssd.ssd`."""
    batch, length, heads, _ = v_BLHP.shape
    if length == 1:
        return reference.ssd(q_BLGN, k_BLGN, v_BLHP, log_decay_BLH, resets_BL, initial_state_BHNP)
    groups, wide = k_BLGN.shape[2], initial_state_BHNP.dtype
    size = min(chunk_size, length)

    def cut(x):
        """[B, L, ...] -> [B, chunks, C, ...]; a padded token writes nothing and keeps the state."""
        x = jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, size, *x.shape[2:])

    # c: chunk, i/j: query/key place in it, g: group, r: head within the group
    q = cut(q_BLGN)
    k = cut(k_BLGN)
    v = cut(v_BLHP.reshape(batch, length, groups, heads // groups, -1))
    resets = None if resets_BL is None else cut(resets_BL)
    if log_decay_BLH is None:
        total = jnp.zeros(v.shape[:-1], wide)
    else:
        log_decay = log_decay_BLH.astype(wide).reshape(batch, length, groups, -1)
        total = sum_decays(cut(log_decay), resets)
    runs = jnp.zeros((batch, total.shape[1], size), jnp.int32)
    if resets is not None:
        runs = jnp.cumsum(resets, axis=2)  # starts of documents in the chunk so far
    last_run = runs[:, :, -1:]

    # Inside a chunk: masked, decayed scores. The mask comes before exp: no overflow, no 0 * inf.
    place = jnp.arange(size)
    seen = (place[:, None] >= place) & (runs[..., :, None] == runs[..., None, :])
    total_h = jnp.moveaxis(total, 2, -1)  # [B, chunks, G, R, C]
    gap = total_h[..., :, None] - total_h[..., None, :]
    gap = jnp.where(gap > 0, 0.0, gap)  # above 0 only by rounding
    decay = jnp.exp(jnp.where(seen[:, :, None, None], gap, -jnp.inf))
    scores = einsum_f32("bcign,bcjgn->bcgij", q, k)
    weights = (scores[:, :, :, None] * decay).astype(v.dtype)
    y = einsum_f32("bcgrij,bcjgrp->bcigrp", weights, v)

    # Chunk states: what the last document of each chunk writes, and how much of the past stays.
    to_end = jnp.where((runs == last_run)[..., None, None], total[:, :, -1:] - total, -jnp.inf)
    kept_v = (v * jnp.exp(to_end)[..., None]).astype(v.dtype)
    written = einsum_f32("bcjgn,bcjgrp->bcgrnp", k, kept_v)
    stays = jnp.where((last_run == 0)[..., None], jnp.exp(total[:, :, -1]), 0.0)

    # A GPU would otherwise run the gradient of the scan below anew for each token of a chunk.
    stays = jax.lax.optimization_barrier(stays)

    def combine(left, right):
        return left[0] * right[0], left[1] * right[0][..., None, None] + right[1]

    start = initial_state_BHNP.reshape(batch, 1, *written.shape[2:])
    stays = jnp.concatenate([jnp.ones_like(stays[:, :1]), stays], axis=1)
    written = jnp.concatenate([start, written], axis=1)
    _, states = jax.lax.associative_scan(combine, (stays, written), axis=1)

    # What earlier chunks left behind reaches the tokens of the chunk's first document.
    from_start = jnp.exp(jnp.where((runs == 0)[..., None, None], total, -jnp.inf))
    before = states[:, :-1].astype(q.dtype)
    y += einsum_f32("bcign,bcgrnp->bcigrp", q, before) * from_start[..., None]
    y_BLHP = y.reshape(batch, -1, heads, y.shape[-1])[:, :length]
    return y_BLHP, states[:, -1].reshape(initial_state_BHNP.shape)
