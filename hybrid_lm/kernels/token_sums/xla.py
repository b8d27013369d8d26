"""A matrix product with one-hot rows."""

import jax
import jax.numpy as jnp

_CHUNK = 1024  # positions whose one-hot rows exist at a time


def token_sums(values_BLD: jax.Array, tokens_BL: jax.Array, vocab_size: int) -> jax.Array:
    """See `hybrid_lm.kernels.token_sums.token_sums`."""
    length = tokens_BL.shape[1]
    size = min(_CHUNK, length)
    wide = jnp.promote_types(values_BLD.dtype, jnp.float32)

    def chunk(sum_VD, start):
        values_BCD = jax.lax.dynamic_slice_in_dim(values_BLD, start, size, axis=1)
        tokens_BC = jax.lax.dynamic_slice_in_dim(tokens_BL, start, size, axis=1)
        one_hot_BCV = jax.nn.one_hot(tokens_BC, vocab_size, dtype=values_BCD.dtype)
        part_VD = jnp.einsum(
            "bcv,bcd->vd",
            one_hot_BCV,
            values_BCD,
            precision=jax.lax.Precision.HIGHEST,
            preferred_element_type=wide,
        )
        return sum_VD + part_VD, None

    padding = -length % size
    tokens_BL = jnp.pad(tokens_BL, ((0, 0), (0, padding)))
    values_BLD = jnp.pad(values_BLD, ((0, 0), (0, padding), (0, 0)))
    zeros_VD = jnp.zeros((vocab_size, values_BLD.shape[-1]), wide)
    return jax.lax.scan(chunk, zeros_VD, jnp.arange(0, length, size))[0]
