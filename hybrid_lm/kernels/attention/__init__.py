"""Softmax attention over documents: ``y_i = sum_j softmax_j(q_i . k_j / sqrt(K)) v_j``.

Query ``i`` of a row sits at key ``S - L + i`` and sees the keys from the start of its document (and
of its window) up to its own, or, bidirectional, to the end of its document: keys before the row are
a cache.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.attention import cudnn, gpu, reference, xla
from hybrid_lm.kernels.dispatch import choose


def attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGP: jax.Array,
    starts_BL: jax.Array | None = None,
    ends_BL: jax.Array | None = None,
    *,
    window: int | None = None,
    max_segments: int | None = None,
    chunk_size: int = 512,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention of L queries over S >= L keys -> y_BLHP, scores scaled by 1/sqrt(K).

    Args:
        q_BLHK: queries, H a multiple of G (grouped-query attention).
        k_BSGK: keys; the last L belong to the queries' own tokens.
        v_BSGP: values.
        starts_BL: int32 index, among the S keys, of the first key of each query's document;
            None: every row is one document that starts at key 0.
        ends_BL: int32 index of the last key of each query's document, for queries that see what
            comes after them; None: causal.
        window: a query sees itself and the ``window - 1`` keys before it; None: no bound.
        max_segments: promised bound on the documents of a row (see `Context`).
        chunk_size: block of the XLA form, in queries and keys.
        implementation: see `Implementation`.

    Raises:
        UserError: if the named implementation cannot run on these inputs.
    """
    length, keys = q_BLHK.shape[1], k_BSGK.shape[1]
    if window is not None and window >= keys:
        window = None
    obstacles = {
        "pallas": gpu.obstacle(q_BLHK, k_BSGK, v_BSGP, ends_BL, window),
        "cudnn": cudnn.obstacle(q_BLHK, k_BSGK, v_BSGP, starts_BL, ends_BL, window, max_segments),
        "xla": None,
        "reference": None,
    }
    chosen = choose("attention", implementation, obstacles)
    if chosen == "pallas":
        return gpu.attention(q_BLHK, k_BSGK, v_BSGP, starts_BL)
    if chosen == "cudnn":
        return cudnn.attention(
            q_BLHK, k_BSGK, v_BSGP, starts_BL, window=window, max_segments=max_segments
        )
    own_L = jnp.arange(keys - length, keys, dtype=jnp.int32)
    own_BL = jnp.broadcast_to(own_L, q_BLHK.shape[:2])
    last_BL = own_BL if ends_BL is None else ends_BL
    first_BL = jnp.zeros(q_BLHK.shape[:2], jnp.int32) if starts_BL is None else starts_BL
    if window is not None:
        first_BL = jnp.maximum(first_BL, own_BL - (window - 1))
    if chosen == "reference" or length == 1:
        return reference.attention(q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL)
    return xla.attention(q_BLHK, k_BSGK, v_BSGP, first_BL, last_BL, chunk_size)
