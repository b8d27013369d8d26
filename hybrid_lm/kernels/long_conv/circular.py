"""Convolution on a circle, by Fourier transforms."""

import jax
import jax.numpy as jnp


def circular(u_DL: jax.Array, kernel_DL: jax.Array, size: int) -> jax.Array:
    """``y_t = sum_k kernel_k u_{(t-k) mod size}`` over the last dimension: [..., size].

    Both are cut or padded with zeros to ``size``. Every output depends on every input, if only by
    its rounding.
    """
    spectrum = jnp.fft.rfft(u_DL, size) * jnp.fft.rfft(kernel_DL, size)
    return jnp.fft.irfft(spectrum, size)
