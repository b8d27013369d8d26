"""One product for each tap, fused by XLA."""

from itertools import accumulate
from typing import Any

import jax
import jax.numpy as jnp


def seen_before(resets_BL: jax.Array, width: int) -> jax.Array:
    """How many of the W - 1 tokens before a token it sees: those of its document. int32 [B, L].

    Tokens before the row count as of the document that the row starts with.
    """
    length = resets_BL.shape[1]
    seen_BL = jnp.full(resets_BL.shape, width - 1, jnp.int32)
    for back in reversed(range(width - 1)):
        started_BL = jnp.pad(resets_BL, ((0, 0), (back, 0)))[:, :length]
        seen_BL = jnp.where(started_BL, back, seen_BL)
    return seen_BL


def outputs(
    x_BLE: jax.Array,
    weight_WE: jax.Array,
    bias_E: jax.Array,
    seen_BL: jax.Array | None,
    past_BWE: jax.Array,
    *,
    silu: bool,
) -> jax.Array:
    """y_BLE; ``seen_BL`` None: every token sees all W - 1 before it."""
    width, length = weight_WE.shape[0], x_BLE.shape[1]
    wide = jnp.promote_types(x_BLE.dtype, jnp.float32)
    padded = jnp.concatenate([past_BWE, x_BLE], axis=1)
    y_BLE = bias_E + x_BLE.astype(wide) * weight_WE[-1]
    for back in range(1, width):
        earlier_BLE = padded[:, width - 1 - back : width - 1 - back + length]
        if seen_BL is not None:
            earlier_BLE = jnp.where((seen_BL >= back)[..., None], earlier_BLE, 0)
        y_BLE += earlier_BLE.astype(wide) * weight_WE[-1 - back]
    return (jax.nn.silu(y_BLE) if silu else y_BLE).astype(x_BLE.dtype)


def in_parts(y_BLE: jax.Array, parts: tuple[int, ...] | None) -> Any:
    """A list of arrays with so many channels; ``y_BLE`` itself for None."""
    if parts is None:
        return y_BLE
    return jnp.split(y_BLE, list(accumulate(parts[:-1])), axis=-1)


def last_inputs(x_BLE: jax.Array, seen_BL: jax.Array | None, past_BWE: jax.Array) -> jax.Array:
    """The last W - 1 inputs, 0 where they are not of the last token's document."""
    missing = past_BWE.shape[1]
    tail_BWE = x_BLE[:, max(x_BLE.shape[1] - missing, 0) :]
    last_BWE = jnp.concatenate([past_BWE, tail_BWE], axis=1)[:, tail_BWE.shape[1] :]
    if seen_BL is None:
        return last_BWE
    return jnp.where(of_last_document(seen_BL, missing)[..., None], last_BWE, 0)


def of_last_document(seen_BL: jax.Array, count: int) -> jax.Array:
    """Which of the last ``count`` tokens are of the last token's document: bool [B, count]."""
    return seen_BL[:, -1:] >= jnp.arange(count)[::-1]


def causal_conv(
    x_BLE: jax.Array,
    weight_WE: jax.Array,
    bias_E: jax.Array,
    resets_BL: jax.Array | None,
    past_BWE: jax.Array,
    *,
    silu: bool,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.causal_conv.causal_conv`."""
    seen_BL = None if resets_BL is None else seen_before(resets_BL, weight_WE.shape[0])
    y_BLE = outputs(x_BLE, weight_WE, bias_E, seen_BL, past_BWE, silu=silu)
    return y_BLE, last_inputs(x_BLE, seen_BL, past_BWE)
