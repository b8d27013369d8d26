"""The convolution as its definition, one token at a time. The truth."""

import jax
import jax.numpy as jnp


def causal_conv(x_BLE, weight_WE, bias_E, resets_BL, past_BWE, *, silu):
    """See `hybrid_lm.kernels.causal_conv.causal_conv`."""
    wide = jnp.promote_types(x_BLE.dtype, jnp.float32)

    def token(past_BWE, at):
        x_BE, reset_B = at
        if reset_B is not None:
            past_BWE = jnp.where(reset_B[:, None, None], 0, past_BWE)
        inputs_BWE = jnp.concatenate([past_BWE, x_BE[:, None]], axis=1)
        y_BE = bias_E + jnp.sum(inputs_BWE.astype(wide) * weight_WE, axis=1)
        return inputs_BWE[:, 1:], jax.nn.silu(y_BE) if silu else y_BE

    time_major = jax.tree.map(lambda a: jnp.moveaxis(a, 1, 0), (x_BLE, resets_BL))
    past_BWE, y_LBE = jax.lax.scan(token, past_BWE, time_major)
    return jnp.moveaxis(y_LBE, 0, 1).astype(x_BLE.dtype), past_BWE
