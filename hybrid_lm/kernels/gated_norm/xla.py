"""The definition; XLA makes several passes over memory of it, forward and backward."""

import jax
import jax.numpy as jnp


def gated_norm(y_BLE, x_BLE, z_BLE, skip_E, scale_E, epsilon: float) -> jax.Array:
    """See `hybrid_lm.kernels.gated_norm.gated_norm`."""
    wide = jnp.promote_types(x_BLE.dtype, jnp.float32)
    y, x, z = (a.astype(wide) for a in (y_BLE, x_BLE, z_BLE))
    u_BLE = (y + skip_E * x) * jax.nn.silu(z)
    inverse_BL1 = jax.lax.rsqrt(jnp.mean(u_BLE * u_BLE, axis=-1, keepdims=True) + epsilon)
    return (u_BLE * inverse_BL1 * scale_E).astype(x_BLE.dtype)
