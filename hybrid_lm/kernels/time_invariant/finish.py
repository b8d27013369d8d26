"""What layers of state spaces do with the outputs: a skip, and GELU."""

import jax
import jax.numpy as jnp

_SCALE, _CUBE = (8 / jnp.pi) ** 0.5, 0.044715


def finish(
    y_BLD: jax.Array, u_BLD: jax.Array, skip_D: jax.Array | None, *, gelu: bool
) -> jax.Array:
    """``y + skip u`` (no skip: y), and its GELU, which is in the dtype of u.

    The GELU of tanh: Hendrycks & Gimpel 2016 (arXiv 1606.08415), section 2.
    """
    if skip_D is not None:
        y_BLD = y_BLD + skip_D * u_BLD
    return jax.nn.gelu(y_BLD.astype(u_BLD.dtype)) if gelu else y_BLD


def _sigmoid(x):
    """Of twice what the tanh is of."""
    return 1 / (1 + jnp.exp(-_SCALE * (x + _CUBE * x * x * x)))


def gelu_of(x: jax.Array) -> jax.Array:
    """``x (1 + tanh(...)) / 2``, in kernels."""
    return x * _sigmoid(x)


def gelu_slope(x: jax.Array) -> jax.Array:
    """Its derivative."""
    sigmoid = _sigmoid(x)
    return sigmoid + x * sigmoid * (1 - sigmoid) * _SCALE * (1 + 3 * _CUBE * x * x)
