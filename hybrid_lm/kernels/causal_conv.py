"""Causal depthwise convolution over documents, in front of both Mambas."""

import jax
import jax.numpy as jnp


def causal_conv(
    x_BLE: jax.Array,
    weight_WE: jax.Array,
    bias_E: jax.Array,
    resets_BL: jax.Array | None = None,
    past_BWE: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """``y_t = bias + sum_w weight_w x_{t - (W-1) + w}`` per channel, within the document.

    Args:
        x_BLE: inputs.
        weight_WE: taps, the last one on the token itself.
        resets_BL: True where a document starts.
        past_BWE: the W - 1 inputs before the row; None is zero.

    Returns:
        y_BLE, and the last W - 1 inputs (0 where they are of an earlier document).
    """
    width, length = weight_WE.shape[0], x_BLE.shape[1]
    if past_BWE is None:
        past_BWE = jnp.zeros((x_BLE.shape[0], width - 1, x_BLE.shape[2]), x_BLE.dtype)
    padded = jnp.concatenate([past_BWE.astype(x_BLE.dtype), x_BLE], axis=1)
    start_BL = None
    if resets_BL is not None:
        # Place of the latest start of a document; before the row if there is none in it.
        place_L = jnp.arange(length)
        start_BL = jax.lax.cummax(jnp.where(resets_BL, place_L[None, :], -width), axis=1)
    y_BLE = x_BLE * weight_WE[-1] + bias_E
    for back in range(1, width):
        earlier_BLE = padded[:, width - 1 - back : width - 1 - back + length]
        if start_BL is not None:
            inside_BL = jnp.arange(length)[None, :] - back >= start_BL
            earlier_BLE = jnp.where(inside_BL[..., None], earlier_BLE, 0)
        y_BLE += earlier_BLE * weight_WE[-1 - back]
    past_BWE = padded[:, length:]
    if start_BL is not None:
        past_W = jnp.arange(length - width + 1, length)
        past_BWE = jnp.where((past_W >= start_BL[:, -1:])[..., None], past_BWE, 0)
    return y_BLE, past_BWE
