"""Softmax attention of few queries to keys that a mask names, for blocks cut from rows."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.dispatch import choose, on_gpu
from hybrid_lm.kernels.precision import einsum_f32


def masked_attention(
    q_BLHK: jax.Array,
    k_BSHK: jax.Array,
    v_BSHP: jax.Array,
    sees_BLS: jax.Array,
    bias_BLS: jax.Array | None = None,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of L queries to the keys they see -> y_BLHP, scores scaled by 1/sqrt(K).

    Args:
        q_BLHK: queries.
        k_BSHK: keys.
        v_BSHP: values.
        sees_BLS: which keys each query sees, at least one.
        bias_BLS: added to the scores; not differentiated.
        implementation: as for `hybrid_lm.kernels.attention.attention`; all but cuDNN are one.
    """
    obstacles = {"cudnn": _obstacle(q_BLHK, k_BSHK, v_BSHP), "xla": None, "reference": None}
    if choose("masked_attention", implementation, obstacles) == "cudnn":
        bias = None if bias_BLS is None else bias_BLS[:, None].astype(q_BLHK.dtype)
        return jax.nn.dot_product_attention(
            q_BLHK, k_BSHK, v_BSHP, bias, sees_BLS[:, None], implementation="cudnn"
        )
    scores_BHLS = einsum_f32("blhk,bshk->bhls", q_BLHK, k_BSHK) * q_BLHK.shape[-1] ** -0.5
    if bias_BLS is not None:
        scores_BHLS += jax.lax.stop_gradient(bias_BLS)[:, None]
    weights_BHLS = jax.nn.softmax(jnp.where(sees_BLS[:, None], scores_BHLS, -jnp.inf), axis=-1)
    y_BLHP = einsum_f32("bhls,bshp->blhp", weights_BHLS.astype(v_BSHP.dtype), v_BSHP)
    return y_BLHP.astype(q_BLHK.dtype)


def _obstacle(q_BLHK, k_BSHK, v_BSHP) -> str | None:
    """Why cuDNN cannot run on these operands; None if it can."""
    if not on_gpu():
        return "the device is not a GPU"
    if q_BLHK.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bf16 or fp16, not {q_BLHK.dtype}"
    if q_BLHK.shape[1] % 2 or k_BSHK.shape[1] % 2:
        return "odd numbers of queries or keys"
    if max(q_BLHK.shape[3], v_BSHP.shape[3]) > 128 or q_BLHK.shape[3] % 8 or v_BSHP.shape[3] % 8:
        return "head dimensions must be multiples of 8 up to 128"
    return None
