"""The definition; XLA makes several passes over memory of it, forward and backward."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.precision import project
from hybrid_lm.kernels.residual_norm.xla import rms_norm


def gated_norm(y_BLE, z_BLE, scale_E, weight_ED, epsilon: float) -> jax.Array:
    """See `hybrid_lm.kernels.gated_norm.gated_norm`."""
    wide = jnp.promote_types(y_BLE.dtype, jnp.float32)
    u_BLE = y_BLE.astype(wide) * jax.nn.silu(z_BLE.astype(wide))
    normed_BLE = rms_norm(u_BLE, scale_E, epsilon).astype(y_BLE.dtype)
    return project("ble,ed->bld", normed_BLE, weight_ED)
