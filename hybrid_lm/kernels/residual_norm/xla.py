"""The definition; on GPUs XLA makes one pass of it forward, but several backward."""

import jax
import jax.numpy as jnp


def rms_norm(x: jax.Array, scale: jax.Array, epsilon: float = 1e-6) -> jax.Array:
    """``x / sqrt(mean(x^2) + epsilon) * scale`` over the last dimension, computed in float32.

    Zhang & Sennrich 2019 (arXiv 1910.07467).
    """
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    inverse = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (wide * inverse * scale).astype(x.dtype)
