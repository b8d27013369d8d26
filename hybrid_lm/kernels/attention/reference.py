"""Attention as its definition: the whole score matrix. The truth, and the decoding step."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import einsum_f32


def attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGP: jax.Array,
    first_BL: jax.Array,
    last_BL: jax.Array,
) -> jax.Array:
    """Query i sees keys ``first_BL[:, i] .. last_BL[:, i]`` -> y_BLHP."""
    batch, length, _, _ = q_BLHK.shape
    keys, kv_heads = k_BSGK.shape[1:3]
    q_BLGRK = q_BLHK.reshape(batch, length, kv_heads, -1, q_BLHK.shape[-1])
    scores = einsum_f32("blgrk,bsgk->bgrls", q_BLGRK, k_BSGK) / q_BLHK.shape[-1] ** 0.5
    key_S = jnp.arange(keys)
    seen_BLS = (key_S >= first_BL[:, :, None]) & (key_S <= last_BL[:, :, None])
    weights = jax.nn.softmax(jnp.where(seen_BLS[:, None, None], scores, -jnp.inf), axis=-1)
    y_BLGRP = einsum_f32("bgrls,bsgp->blgrp", weights.astype(v_BSGP.dtype), v_BSGP)
    return y_BLGRP.reshape(*q_BLHK.shape[:3], -1).astype(q_BLHK.dtype)
