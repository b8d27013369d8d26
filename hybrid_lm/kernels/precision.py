"""Matrix products that accumulate in float32 and mean it."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp


def einsum_f32(spec: str, *operands: jax.Array, exact: bool = True) -> jax.Array:
    """``jnp.einsum`` with a float32 result (float64 for float64 operands).

    float32 operands use full float32 products (GPUs would take TF32, TPUs bfloat16 passes), unless
    not ``exact``, where they come from half precision: then TF32 on GPUs. Half-precision operands
    use the matrix units and accumulate in float32.
    """
    dtype = jnp.result_type(*operands)
    wide = jnp.promote_types(dtype, jnp.float32)
    precision = _precision(dtype) if exact else jax.lax.Precision.HIGH
    return jnp.einsum(spec, *operands, precision=precision, preferred_element_type=wide)


def _precision(dtype: jnp.dtype) -> jax.lax.Precision | None:
    """Full products where the operands are no less than float32."""
    is_wide = jnp.promote_types(dtype, jnp.float32) == dtype
    return jax.lax.Precision.HIGHEST if is_wide else None


def project(spec: str, x: jax.Array, weight: jax.Array) -> jax.Array:
    """``jnp.einsum`` of activations with a parameter, in the dtype of the activations.

    float32 takes full float32 products.
    """
    exact = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else None
    return jnp.einsum(spec, x, weight.astype(x.dtype), precision=exact)


def einsum_half(spec: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """`einsum_f32` of two operands whose gradients are products in the operands' dtype too.

    Those of `einsum_f32` are of float32 cotangents: half-precision operands are then copied to
    float32, and multiplied at half the speed.
    """
    product: Any = _einsum_half(spec, x, y)
    return product


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum_half(spec, x, y):
    return einsum_f32(spec, x, y)


def _einsum_half_forward(spec, x, y):
    return einsum_f32(spec, x, y), (x, y)


def _einsum_half_backward(spec, operands, cotangent):
    dtype = jnp.result_type(*operands)
    _, pull = jax.vjp(lambda x, y: jnp.einsum(spec, x, y, precision=_precision(dtype)), *operands)
    return pull(cotangent.astype(dtype))


_einsum_half.defvjp(_einsum_half_forward, _einsum_half_backward)


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
