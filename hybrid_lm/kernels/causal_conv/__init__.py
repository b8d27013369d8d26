"""Causal depthwise convolution of a few taps over documents, in front of both Mambas."""

from typing import Any

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.causal_conv import gpu, reference, xla
from hybrid_lm.kernels.dispatch import choose


def causal_conv(
    x_BLE: jax.Array,
    weight_WE: jax.Array,
    bias_E: jax.Array | None = None,
    resets_BL: jax.Array | None = None,
    past_BWE: jax.Array | None = None,
    *,
    silu: bool = False,
    parts: tuple[int, ...] | None = None,
    implementation: str | None = None,
) -> tuple[Any, jax.Array]:
    """``y_t = bias + sum_w weight_w x_{t - (W-1) + w}`` per channel, within the document.

    Args:
        x_BLE: inputs; channels behind the E of the weight are of no account.
        weight_WE: taps, the last one on the token itself.
        bias_E: None is zero.
        resets_BL: True where a document starts.
        past_BWE: the W - 1 inputs before the row; None is zero.
        silu: give ``silu(y_t)``.
        parts: widths of the arrays that the channels of y are given in, as a list; None: one array.
        implementation: see `Implementation`.

    Returns:
        y_BLE in the dtype of x, summed in at least float32, and the last W - 1 inputs (0 where they
        are of an earlier document).
    """
    obstacles = {"pallas": gpu.obstacle(x_BLE, weight_WE), "xla": None, "reference": None}
    chosen = choose("causal_conv", implementation, obstacles)
    width, inner = weight_WE.shape
    if past_BWE is None:
        past_BWE = jnp.zeros((x_BLE.shape[0], width - 1, inner), x_BLE.dtype)
    if bias_E is None:
        bias_E = jnp.zeros(inner, weight_WE.dtype)
    operands = (weight_WE, bias_E, resets_BL, past_BWE.astype(x_BLE.dtype))
    if chosen == "pallas":
        return gpu.causal_conv(x_BLE, *operands, silu=silu, parts=parts)
    run = {"xla": xla, "reference": reference}[chosen].causal_conv
    y_BLE, last_BWE = run(x_BLE[..., :inner], *operands, silu=silu)
    return xla.in_parts(y_BLE, parts), last_BWE
