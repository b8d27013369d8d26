"""Parameters, projections and norms shared by the mixers and the model."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_lm.kernels import precision
from hybrid_lm.kernels.residual_norm.xla import rms_norm

Initializer = Callable[..., jax.Array]


def fan_in(size: int) -> Initializer:
    """Truncated normal with standard deviation 1/sqrt(size), for ``size`` summed inputs."""
    return nnx.initializers.truncated_normal(stddev=size**-0.5)


def symmetric_uniform(bound: float) -> Initializer:
    """Uniform on [-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: jnp.dtype) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    init: Initializer,
    *,
    decay: bool = True,
) -> nnx.Param:
    """A float32 parameter.

    Args:
        axes: logical axis of each dimension (see `hybrid_lm.sharding`); None is never sharded.
        init: ``init(key, shape, dtype)``.
        decay: whether weight decay applies (not for norms, biases, A, D and step parameters).
    """
    if len(axes) != len(shape):
        raise ValueError(f"{len(axes)} axes for a parameter of shape {shape}")
    return nnx.Param(init(rngs.params(), shape, jnp.float32), axes=axes, decay=decay)


def project(spec: str, x: jax.Array, weight: nnx.Param) -> jax.Array:
    """`hybrid_lm.kernels.precision.project` with a parameter of a module."""
    return precision.project(spec, x, weight[...])


def gated_linear_unit(x_BLE: jax.Array, out: nnx.Param, gate: nnx.Param) -> jax.Array:
    """``(x out) sigmoid(x gate)``: [B, L, D]. Dauphin et al. 2017 (arXiv 1612.08083), section 2."""
    # The kernels of state spaces have channels first. Products take either order, and this way the
    # gradient has it too. As one product: XLA would merge two, and copy their cotangents for it.
    both_E2D = jnp.stack([out[...], gate[...]], axis=1)
    return _gated(precision.project("ebl,efd->blfd", x_BLE.transpose(2, 0, 1), both_E2D))


@jax.checkpoint  # neither the sigmoid nor what its gradient is of is worth a pass over memory
def _gated(both_BL2D: jax.Array) -> jax.Array:
    return both_BL2D[:, :, 0] * jax.nn.sigmoid(both_BL2D[:, :, 1])


def unit(x: jax.Array, *, length: float = 1.0, epsilon: float = 1e-6) -> jax.Array:
    """``length x / sqrt(|x|^2 + epsilon)`` over the last dimension, computed in float32."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    inverse = jax.lax.rsqrt(jnp.sum(wide * wide, axis=-1, keepdims=True) + epsilon)
    return (length * wide * inverse).astype(x.dtype)


class RMSNorm(nnx.Module):
    """`rms_norm` with a learned scale."""

    def __init__(self, size: int, axis: str | None, rngs: nnx.Rngs):
        self.scale = param(rngs, (size,), (axis,), nnx.initializers.ones, decay=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...])
