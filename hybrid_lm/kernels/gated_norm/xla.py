"""The definition; XLA makes several passes over memory of it, forward and backward."""

import jax
import jax.numpy as jnp


def gated_norm(y_BLE, z_BLE, scale_E, epsilon: float) -> jax.Array:
    """See `hybrid_lm.kernels.gated_norm.gated_norm`."""
    wide = jnp.promote_types(y_BLE.dtype, jnp.float32)
    u_BLE = y_BLE.astype(wide) * jax.nn.silu(z_BLE.astype(wide))
    inverse_BL1 = jax.lax.rsqrt(jnp.mean(u_BLE * u_BLE, axis=-1, keepdims=True) + epsilon)
    return (u_BLE * inverse_BL1 * scale_E).astype(y_BLE.dtype)
