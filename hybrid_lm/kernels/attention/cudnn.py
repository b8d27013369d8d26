"""cuDNN's fused attention through JAX: dense causal, sliding window and packed documents.

Packed documents use a private JAX function, kept to this file. It takes the START of each segment
and -1 in all unused entries, the last entry always unused; an end offset there gives silently wrong
rows.
"""

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.dispatch import on_gpu
from hybrid_lm.kernels.remat import keep


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
    number_BL = jnp.cumsum(starts_BL == jnp.arange(length), axis=1, dtype=jnp.int32)
    kept_B = number_BL[:, -1] <= max_segments
    # A row that breaks the promise is laid out as one segment in which every query sees a key that
    # is NaN. Queries or outputs that are NaN would be a pass over memory; keys are changed in place
    # where there are two or more of them (to change one, XLA copies them all).
    number_BL = jnp.where(kept_B[:, None], number_BL, 1)
    spoil_BLGK = jnp.where(kept_B, 0, jnp.nan)[:, None, None, None].astype(k_BLGK.dtype)
    some_keys = k_BLGK.at[:, :: min(window or length, length // 2)]
    k_BLGK = keep(some_keys.add(spoil_BLGK, indices_are_sorted=True, unique_indices=True))

    is_of_BLM = number_BL[..., None] == jnp.arange(1, max_segments + 1)
    size_BM = jnp.sum(is_of_BLM, axis=1, dtype=jnp.int32)
    start_BM = jnp.cumsum(size_BM, axis=1) - size_BM
    start_BM, size_BM = (jnp.where(size_BM > 0, x_BM, -1) for x_BM in (start_BM, size_BM))
    offset_BM = jnp.pad(start_BM, ((0, 0), (0, 1)), constant_values=-1)
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
