"""Matrix products that accumulate in float32 and mean it."""

import jax
import jax.numpy as jnp


def einsum_f32(spec: str, *operands: jax.Array) -> jax.Array:
    """``jnp.einsum`` with a float32 result (float64 for float64 operands).

    float32 operands use full float32 products (GPUs would take TF32, TPUs bfloat16 passes);
    half-precision operands use the matrix units and accumulate in float32.
    """
    dtype = jnp.result_type(*operands)
    exact = jnp.promote_types(dtype, jnp.float32) == dtype
    return jnp.einsum(
        spec,
        *operands,
        precision=jax.lax.Precision.HIGHEST if exact else None,
        preferred_element_type=jnp.promote_types(dtype, jnp.float32),
    )


def matrix_power(a_DMM: jax.Array, exponent: int) -> jax.Array:
    """``a^exponent`` by repeated squaring."""
    result = None
    while True:
        if exponent % 2:
            result = a_DMM if result is None else einsum_f32("dlm,dmn->dln", result, a_DMM)
        exponent //= 2
        if not exponent:
            assert result is not None, "the last bit of an exponent is 1"
            return result
        a_DMM = einsum_f32("dlm,dmn->dln", a_DMM, a_DMM)
