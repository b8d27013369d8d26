"""Softmax attention inside hash buckets, each token to the latest tokens of its own bucket.

In every one of R rounds a token lies in one of N buckets. It sees the latest W earlier tokens of
its document and bucket, wherever other tokens lie, and itself. The rounds are merged by their
normalisers: one softmax over all that was seen, in which a token seen in two rounds counts twice.
"""

import jax

from hybrid_lm.kernels.bucket_attention import reference, xla
from hybrid_lm.kernels.bucket_attention.rings import Rings, Shape
from hybrid_lm.kernels.dispatch import choose


def bucket_attention(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHP: jax.Array,
    bucket_BLHR: jax.Array,
    resets_BL: jax.Array | None = None,
    rings: Rings | None = None,
    *,
    shape: Shape,
    max_segments: int | None = None,
    chunk_size: int = 32,
    implementation: str | None = None,
) -> tuple[jax.Array, Rings | None]:
    """Attention in buckets -> y_BLHP and the rings after the row; scores scaled by 1/sqrt(K).

    Args:
        q_BLHK: queries.
        k_BLHK: keys.
        v_BLHP: values.
        bucket_BLHR: int32 bucket of each token in each round.
        resets_BL: True where a document starts; None: nowhere.
        rings: the latest keys and values before the row; None is nothing.
        shape: what a token sees.
        max_segments: promised bound on the documents of a row; a row that breaks it becomes NaN.
            None is no promise: memory then grows with ``L chunk_size`` in rows of documents.
        chunk_size: queries that one matrix product handles in the XLA form.
        implementation: see `Implementation`.
    """
    length = q_BLHK.shape[1]
    step = None if shape.causal else "it goes step by step and sees nothing that follows"
    chosen = choose("bucket_attention", implementation, {"xla": None, "reference": step})
    if shape.causal and (chosen == "reference" or length == 1):
        return reference.bucket_attention(
            q_BLHK, k_BLHK, v_BLHP, bucket_BLHR, resets_BL, rings, shape
        )
    documents = 1
    if resets_BL is not None:
        documents = min(length if max_segments is None else max_segments, length) + 1
    chunk_size = min(chunk_size, length)
    return xla.bucket_attention(
        q_BLHK, k_BLHK, v_BLHP, bucket_BLHR, resets_BL, rings, shape, documents, chunk_size
    )


__all__ = ["Rings", "Shape", "bucket_attention"]
