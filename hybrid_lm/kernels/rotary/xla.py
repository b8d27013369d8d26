"""The definition; on GPUs XLA makes two passes over memory of it forward, and several backward."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hybrid_lm.kernels.precision import project
from hybrid_lm.kernels.residual_norm.xla import rms_norm


def turns(
    positions_BL: jax.Array, half: int, theta: float, dtype: DTypeLike
) -> tuple[jax.Array, jax.Array]:
    """cos and sin of ``position * theta^(-k / half)``, k = 0 .. half - 1: [B, L, half]."""
    frequency_K = theta ** (-jnp.arange(half, dtype=dtype) / half)
    angle_BLK = positions_BL[:, :, None].astype(dtype) * frequency_K
    return jnp.cos(angle_BLK), jnp.sin(angle_BLK)


def rotate(x_BLHK: jax.Array, positions_BL: jax.Array, theta: float) -> jax.Array:
    """Rotary position embedding: pairs (k, k + K/2) turn by ``position * theta^(-2k/K)``.

    Su et al. 2021 (arXiv 2104.09864), equation 34, in float32.
    """
    half = x_BLHK.shape[-1] // 2
    wide = jnp.promote_types(x_BLHK.dtype, jnp.float32)
    cos, sin = (t[:, :, None] for t in turns(positions_BL, half, theta, wide))
    left, right = x_BLHK[..., :half], x_BLHK[..., half:]
    turned = [left * cos - right * sin, right * cos + left * sin]
    return jnp.concatenate(turned, axis=-1).astype(x_BLHK.dtype)


def queries_and_keys(
    x_BLD, weights, scales, positions_BL, theta: float, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.rotary.queries_and_keys`."""
    both = [project("bld,dhk->blhk", x_BLD, weight_DHK) for weight_DHK in weights]
    q_BLHK, k_BLGK = (
        rotate(rms_norm(a_BLHK, scale_K, epsilon), positions_BL, theta)
        for a_BLHK, scale_K in zip(both, scales, strict=True)
    )
    return q_BLHK, k_BLGK
