"""cuDNN's fused attention through JAX: dense causal, sliding window and packed documents.

Packed documents use a private JAX function, kept to this file. It takes the START of each segment
and -1 in all unused entries, the last entry always unused; an end offset there gives silently wrong
rows.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.dispatch import on_gpu


def obstacle(q_BLHK, k_BSGK, v_BSGP, starts_BL, ends_BL, window, max_segments) -> str | None:
    """Why cuDNN cannot run on these operands; None if it can."""
    if not on_gpu():
        return "the device is not a GPU"
    if q_BLHK.dtype not in (jnp.bfloat16, jnp.float16):
        return f"it takes bf16 or fp16, not {q_BLHK.dtype}"
    if q_BLHK.shape[1] != k_BSGK.shape[1]:
        return "there is a key/value cache"
    if ends_BL is not None:
        return "a query sees later keys"
    if q_BLHK.shape[1] < 2:
        return "a row of one token"
    if max(q_BLHK.shape[3], v_BSGP.shape[3]) > 128 or q_BLHK.shape[3] % 8 or v_BSGP.shape[3] % 8:
        return "head dimensions must be multiples of 8 up to 128"
    if starts_BL is not None and max_segments is None:
        return "packed rows without a bound on the segments of a row"
    return None


def attention(
    q_BLHK: jax.Array,
    k_BLGK: jax.Array,
    v_BLGP: jax.Array,
    starts_BL: jax.Array | None,
    *,
    window: int | None,
    max_segments: int | None,
) -> jax.Array:
    """Causal attention -> y_BLHP; rows with more than ``max_segments`` segments become NaN."""
    if starts_BL is None:
        return jax.nn.dot_product_attention(
            q_BLHK,
            k_BLGK,
            v_BLGP,
            is_causal=True,
            local_window_size=None if window is None else (window - 1, 0),
            implementation="cudnn",
        )
    assert max_segments is not None, "see obstacle()"
    from jax._src.cudnn import fused_attention_stablehlo as fused

    length = q_BLHK.shape[1]
    is_start_BL = starts_BL == jnp.arange(length)

    def layout(is_start_L):
        """Start and length of each segment, -1 where there are fewer than ``max_segments``."""
        start_M = jnp.nonzero(is_start_L, size=max_segments, fill_value=-1)[0].astype(jnp.int32)
        end_M = jnp.append(start_M[1:], -1)
        end_M = jnp.where(end_M < 0, length, end_M)
        return start_M, jnp.where(start_M < 0, -1, end_M - start_M).astype(jnp.int32)

    start_BM, size_BM = jax.vmap(layout)(is_start_BL)
    offset_BM = jnp.pad(start_BM, ((0, 0), (0, 1)), constant_values=-1)
    # Of the queries, not of the outputs: that costs a pass over memory, this is fused into theirs.
    promise_kept_B = is_start_BL.sum(axis=1) <= max_segments
    q_BLHK = jnp.where(promise_kept_B[:, None, None, None], q_BLHK, jnp.nan)
    y_BLHP: Any = fused.dot_product_attention(
        q_BLHK,
        k_BLGK,
        v_BLGP,
        None,
        None,
        size_BM,
        size_BM,
        offset_BM,
        offset_BM,
        scale=q_BLHK.shape[-1] ** -0.5,
        mask_type=fused.MaskType.PADDING_CAUSAL,
        sliding_window_length=window,
    )
    return y_BLHP
