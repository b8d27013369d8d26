"""Convolution on a circle, by Fourier transforms."""

from functools import partial

import jax
import jax.numpy as jnp


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def circular(u_NDL: jax.Array, kernel_1DL: jax.Array, size: int) -> jax.Array:
    """``y_t = sum_k kernel_k u_{(t-k) mod size}`` over the last dimension: [..., size].

    Both are cut or padded with zeros to ``size``; other dimensions of the kernel are u's or 1.
    Every output depends on every input, if only by its rounding. One transform after the other, for
    the sake of `in_turn`.
    """
    u_NDZ, kernel_1DZ = _together(jnp.fft.rfft, size, u_NDL, kernel_1DL)
    return jnp.fft.irfft(u_NDZ * kernel_1DZ, size)


def _forward(u_NDL, kernel_1DL, size):
    return circular(u_NDL, kernel_1DL, size), (u_NDL, kernel_1DL)


def _backward(size, operands, dy_NDL):
    u_NDL, kernel_1DL = operands
    u_NDZ, kernel_1DZ, dy_NDZ = _together(jnp.fft.rfft, size, u_NDL, kernel_1DL, dy_NDL)
    shared = tuple(axis for axis, many in enumerate(kernel_1DL.shape[:-1]) if many == 1)
    dkernel_1DZ = jnp.sum(dy_NDZ * u_NDZ.conj(), axis=shared, keepdims=True)
    du, dkernel = _together(jnp.fft.irfft, size, dy_NDZ * kernel_1DZ.conj(), dkernel_1DZ)
    return _fit(du, u_NDL.shape[-1]), _fit(dkernel, kernel_1DL.shape[-1])


circular.defvjp(_forward, _backward)


def _together(transform, size, *signals):
    """One transform of all signals."""
    count = signals[0].shape[-1] if transform is jnp.fft.irfft else size
    rows = [_fit(signal, count).reshape(-1, count) for signal in signals]
    done = transform(jnp.concatenate(rows), size)
    ends = [sum(len(row) for row in rows[:n]) for n in range(1, len(rows))]
    parts = jnp.split(done, ends)
    return [part.reshape(*x.shape[:-1], -1) for part, x in zip(parts, signals, strict=True)]


def _fit(x: jax.Array, length: int) -> jax.Array:
    """Cut or padded with zeros at the end of the last dimension."""
    missing = max(0, length - x.shape[-1])
    return jnp.pad(x[..., :length], [(0, 0)] * (x.ndim - 1) + [(0, missing)])


@jax.custom_vjp
def in_turn(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    """The same arrays, but on a CPU none is there before all are; nor are their gradients.

    Transforms that do not need each other's results run at the same time there, and as many as
    there are threads wait for each other for ever (XLA of jax 0.11.2: each waits for a free thread
    of the pool that it holds a thread of).
    """
    if jax.default_backend() != "cpu":
        return arrays
    # Nothing is larger than infinity, which the compiler does not know. An optimization barrier
    # would be gone when the order of operations is decided.
    never = jnp.any(jnp.stack([jnp.max(array) > jnp.inf for array in arrays]))
    return tuple(jnp.where(never, 0, array) for array in arrays)


in_turn.defvjp(lambda *arrays: (in_turn(*arrays), None), lambda _, d_arrays: in_turn(*d_arrays))
