"""The iteration of `hybrid_lm.kernels.pseudo_inverse.xla` as Pallas kernels for NVIDIA GPUs.

One program takes a matrix through all iterations on chip, in TF32 products. Forward it leaves the Z
before each; backward it walks through them in reverse.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton

_SIZES = (16, 32, 64)

dot = partial(pallas_triton.dot, tf32=True)


def _terms(a_MM, z_MM):
    """E, ``E + E^2 / 4`` and ``E + E^2 + E^3 / 4``."""
    place = jnp.arange(a_MM.shape[0])
    e_MM = jnp.where(place[:, None] == place[None, :], 1.0, 0.0) - dot(a_MM, z_MM)
    inner_MM = e_MM + dot(e_MM, e_MM) / 4
    return e_MM, inner_MM, e_MM + dot(e_MM, inner_MM)


def _iterate(a, start, inverse, *saved, iterations):
    n = pl.program_id(0)
    a_MM = a[n, :, :]

    def step(i, z_MM):
        for ref in saved:
            ref[n, i, :, :] = z_MM
        return z_MM + dot(z_MM, _terms(a_MM, z_MM)[2])

    inverse[n, :, :] = jax.lax.fori_loop(0, iterations, step, start[n, :, :])


def _iterate_gradients(a, saved, dinverse, da, dstart, *, iterations):
    n = pl.program_id(0)
    a_MM = a[n, :, :]

    def step(i, sums):
        da_MM, dz_MM = sums
        z_MM = saved[n, iterations - 1 - i, :, :]
        e_MM, inner_MM, factor_MM = _terms(a_MM, z_MM)
        dfactor_MM = dot(z_MM, dz_MM, trans_a=True)
        dz_MM += dot(dz_MM, factor_MM, trans_b=True)
        dinner_MM = dot(e_MM, dfactor_MM, trans_a=True)
        de_MM = dfactor_MM + dinner_MM + dot(dfactor_MM, inner_MM, trans_b=True)
        de_MM += dot(dinner_MM, e_MM, trans_b=True) / 4 + dot(e_MM, dinner_MM, trans_a=True) / 4
        da_MM -= dot(de_MM, z_MM, trans_b=True)
        return da_MM, dz_MM - dot(a_MM, de_MM, trans_a=True)

    sums = jnp.zeros(a_MM.shape, jnp.float32), dinverse[n, :, :]
    da[n, :, :], dstart[n, :, :] = jax.lax.fori_loop(0, iterations, step, sums)


def _run(kernel, outputs, *operands, iterations: int, interpret: bool):
    """Run a kernel on every matrix; operands are [N, ..., M, M]."""
    return pallas_triton.call(
        partial(kernel, iterations=iterations),
        (operands[0].shape[0],),
        outputs,
        *operands,
        warps=4,
        interpret=interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _inverse(a_NMM, start_NMM, iterations: int, interpret: bool):
    inverse = jax.ShapeDtypeStruct(a_NMM.shape, a_NMM.dtype)
    return _run(_iterate, inverse, a_NMM, start_NMM, iterations=iterations, interpret=interpret)


def _forward(a_NMM, start_NMM, iterations, interpret):
    count, size, _ = a_NMM.shape
    inverse = jax.ShapeDtypeStruct(a_NMM.shape, a_NMM.dtype)
    saved = jax.ShapeDtypeStruct((count, iterations, size, size), a_NMM.dtype)
    options = {"iterations": iterations, "interpret": interpret}
    inverse_NMM, saved = _run(_iterate, (inverse, saved), a_NMM, start_NMM, **options)
    return inverse_NMM, (a_NMM, saved)


def _backward(iterations, interpret, residuals, dinverse_NMM):
    like = jax.ShapeDtypeStruct(dinverse_NMM.shape, dinverse_NMM.dtype)
    options = {"iterations": iterations, "interpret": interpret}
    return tuple(_run(_iterate_gradients, (like, like), *residuals, dinverse_NMM, **options))


_inverse.defvjp(_forward, _backward)


def obstacle(a: jax.Array, exact: bool) -> str | None:
    """Why the kernels cannot run on these matrices; None if they can."""
    if a.shape[-1] not in _SIZES:
        return f"matrices of {a.shape[-1]} x {a.shape[-1]}"
    if exact:
        return "its products are of TF32"
    return pallas_triton.obstacle(a)


def iterate(a, start, iterations: int, *, interpret: bool = False) -> jax.Array:
    """Z after ``iterations`` from ``start``."""
    size = a.shape[-1]
    operands = a.reshape(-1, size, size), start.reshape(-1, size, size)
    inverse_NMM: Any = _inverse(*operands, iterations, interpret)
    return inverse_NMM.reshape(a.shape)
