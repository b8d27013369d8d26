"""Bucket attention as its definition, one token at a time. The truth, and the decoding step."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.bucket_attention.rings import LOW, Rings, Shape, Softmax, merged
from hybrid_lm.kernels.precision import einsum_f32


def bucket_attention(q_BLHK, k_BLHK, v_BLHP, bucket_BLHR, resets_BL, rings, shape: Shape):
    """See `hybrid_lm.kernels.bucket_attention.bucket_attention`."""
    batch, _, heads, size = k_BLHK.shape
    if rings is None:
        sizes_BHR = (batch, heads, bucket_BLHR.shape[-1])
        rings = Rings.empty(sizes_BHR, shape, size, v_BLHP.shape[-1], k_BLHK.dtype)
    if resets_BL is None:
        resets_BL = jnp.zeros(k_BLHK.shape[:2], bool)

    def of_round(ring: Rings, q_K, k_K, v_P, bucket):
        keys_WK = jnp.concatenate([ring.k_BHRNWK[bucket].astype(k_K.dtype), k_K[None]])
        values_WP = jnp.concatenate([ring.v_BHRNWP[bucket].astype(v_P.dtype), v_P[None]])
        count = ring.count_BHRN[bucket]
        scores_W = einsum_f32("wk,k->w", keys_WK, q_K) / size**0.5
        if not shape.sees_itself:
            scores_W = scores_W.at[-1].set(LOW)
        seen_W = jnp.arange(shape.window + 1) >= shape.window - count
        scores_W = jax.lax.optimization_barrier(jnp.where(seen_W, scores_W, LOW))
        top = jax.lax.stop_gradient(scores_W.max())
        weights_W = jnp.where(seen_W, jnp.exp(scores_W - top), 0.0)
        values_P = einsum_f32("w,wp->p", weights_W.astype(v_P.dtype), values_WP)
        ring = Rings(
            ring.k_BHRNWK.at[bucket].set(keys_WK[1:].astype(ring.k_BHRNWK.dtype)),
            ring.v_BHRNWP.at[bucket].set(values_WP[1:].astype(ring.v_BHRNWP.dtype)),
            ring.count_BHRN.at[bucket].set(jnp.minimum(count + 1, shape.window)),
        )
        return ring, Softmax(top, weights_W.sum(), values_P)

    def of_head(ring_R, q_K, k_K, v_P, bucket_R):
        ring_R, rounds = jax.vmap(of_round, (0, None, None, None, 0))(
            ring_R, q_K, k_K, v_P, bucket_R
        )
        return ring_R, merged(rounds)

    def step(rings, token):
        *operands, reset_B = token

        def kept(ring):
            return jnp.where(reset_B.reshape(-1, *[1] * (ring.ndim - 1)), 0, ring)

        return jax.vmap(jax.vmap(of_head))(jax.tree.map(kept, rings), *operands)

    operands = (q_BLHK, k_BLHK, v_BLHP, bucket_BLHR, resets_BL)
    rings, y_LBHP = jax.lax.scan(step, rings, tuple(jnp.moveaxis(x, 1, 0) for x in operands))
    return jnp.moveaxis(y_LBHP, 0, 1).astype(q_BLHK.dtype), rings
