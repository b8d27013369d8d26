"""Chunked form: matrix products inside a chunk, an associative scan over the chunks' states.

Inside a chunk a score is ``sum_k q_ik k_jk d_ijk`` with the decay d from token j to i. Splitting d
in exp(t_i) and exp(-t_j) would overflow. The secondary chunks of Yang et al. 2023 (arXiv
2312.06635, section 4.3) avoid that for pairs in different ones; here they halve down to one token,
so that it is avoided for all: any i and j < i are parted by exactly one boundary between two halves
of some size, and d is the decay from j to that boundary times the decay from it to i, both at most
1. Memory is O(L (C + K log C + K P / C)) per head.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from hybrid_lm.kernels.gla import reference
from hybrid_lm.kernels.precision import einsum_f32


def gla(
    q_BLHK, k_BLHK, v_BLHP, log_decay_BLHK, resets_BL, initial_state_BHKP, *, chunk_size
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.gla.gla`."""
    batch, length, heads, value_dim = v_BLHP.shape
    if length == 1:
        operands = (q_BLHK, k_BLHK, v_BLHP, log_decay_BLHK, resets_BL)
        return reference.gla(*operands, initial_state_BHKP)
    wide = initial_state_BHKP.dtype
    size = min(chunk_size, length)
    # Half-precision inputs are worth TF32 products.
    exact = v_BLHP.dtype == wide
    precision = jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.HIGH

    def product(spec, *operands):
        return jnp.einsum(spec, *operands, precision=precision)

    def cut(x):
        """[B, L, ...] -> [B, chunks, C, ...]; a padded token writes nothing and keeps the state."""
        x = jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(batch, -1, size, *x.shape[2:])

    # n: chunk, i/j: query/key place in it, l: size of halves
    q, k, v, log_decay = (cut(x) for x in (q_BLHK, k_BLHK, v_BLHP, log_decay_BLHK.astype(wide)))
    runs = jnp.zeros(q.shape[:3], jnp.int32)
    if resets_BL is not None:
        runs = jnp.cumsum(cut(resets_BL), axis=2)  # starts of documents in the chunk so far
    first_run, last_run = runs == 0, runs == runs[:, :, -1:]
    same_run = runs[:, :, :, None] == runs[:, :, None]

    # Sums of logs by a product: no differences of large sums, so none above 0.
    log_decay = jnp.maximum(log_decay, math.log(jnp.finfo(wide).tiny))
    summed, pairs = _halves(size)
    decays = jnp.exp(einsum_f32("lij,bnjhk->bnlihk", jnp.asarray(summed, wide), log_decay))
    to_boundary, from_start, to_end = decays[:, :, :-2], decays[:, :, -2], decays[:, :, -1]

    q_levels, k_levels = q[:, :, None] * to_boundary, k[:, :, None] * to_boundary
    scores = product("bnlihk,bnljhk->bnlhij", q_levels, k_levels)
    scores = jnp.where(pairs[:, None], scores, 0.0).sum(axis=2)
    own = jnp.moveaxis(jnp.sum(q * k.astype(wide), axis=-1), 2, 3)
    scores += own[..., None] * np.eye(size, dtype=wide)
    scores = jnp.where(same_run[:, :, None], scores, 0.0)
    y = product("bnhij,bnjhp->bnihp", scores, v)

    # Chunk states: what the last document of each chunk writes, and how much of the past stays.
    kept_k = k * jnp.where(last_run[..., None, None], to_end, 0.0)
    written = product("bnjhk,bnjhp->bnhkp", kept_k, v)
    from_start = jnp.where(first_run[..., None, None], from_start, 0.0)
    # A GPU would otherwise run the gradient of the scan below anew for each token of a chunk.
    stays = jax.lax.optimization_barrier(from_start[:, :, -1])

    def combine(left, right):
        return left[0] * right[0], left[1] * right[0][..., None] + right[1]

    stays = jnp.concatenate([jnp.ones_like(stays[:, :1]), stays], axis=1)
    written = jnp.concatenate([initial_state_BHKP[:, None], written], axis=1)
    _, states = jax.lax.associative_scan(combine, (stays, written), axis=1)

    # What earlier chunks left behind reaches the tokens of the chunk's first document.
    y += product("bnihk,bnhkp->bnihp", q * from_start, states[:, :-1])
    return y.reshape(batch, -1, heads, value_dim)[:, :length], states[:, -1]


def _halves(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which log decays to sum for each token, and which pairs a size of halves is for.

    Returns:
        [sizes of halves + 2, C, C], 1 for what is summed: between a token and the boundary of its
        two halves for each size; then from the chunk's start to a token, and from it to the end.
        [sizes of halves, C, C], True for a query in the right and a key in the left of two halves.
    """
    place = np.arange(size)
    half = 1 << np.arange((size - 1).bit_length())[:, None]
    both = place // (2 * half)
    boundary = both * 2 * half + half  # the first token of the right half
    right = (place >= boundary)[..., None]
    to_left = (place <= place[:, None]) & (place >= boundary[..., None])
    to_right = (place > place[:, None]) & (place < boundary[..., None])
    from_start, to_end = place <= place[:, None], place > place[:, None]
    summed = np.concatenate([np.where(right, to_left, to_right), [from_start, to_end]])
    pairs = right & ~right.swapaxes(1, 2) & (both[..., None] == both[:, None])
    return summed, pairs
