"""Forward by XLA; backward one pass over memory, as a Pallas kernel (Triton backend).

A program takes some rows after another; the gradient of the scale is summed in its registers, and
over programs by XLA, in a fixed order.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import rows_gpu
from hybrid_lm.kernels.residual_norm import xla
from hybrid_lm.kernels.rows_gpu import ROWS, by_rows

_TILE = 4096  # channels of rows taken at a time


def _gradients(x, scale, dresidual, dnormed, dx, dscale, *, tile, epsilon):
    program = pl.program_id(0)

    def rows(i, dscale_D):
        tokens = pl.ds(program * ROWS + i * tile, tile)
        x_TD, dy_TD = x[tokens, :].astype(jnp.float32), dnormed[tokens, :].astype(jnp.float32)
        inverse_T1 = jax.lax.rsqrt(jnp.mean(x_TD * x_TD, axis=1) + epsilon)[:, None]
        unit_TD, dunit_TD = x_TD * inverse_T1, dy_TD * scale[...][None, :]
        share_T1 = jnp.mean(dunit_TD * unit_TD, axis=1)[:, None]
        dx_TD = inverse_T1 * (dunit_TD - unit_TD * share_T1)
        dx[tokens, :] = (dresidual[tokens, :].astype(jnp.float32) + dx_TD).astype(dx.dtype)
        return dscale_D + jnp.sum(dy_TD * unit_TD, axis=0)

    zeros_D = jnp.zeros(x.shape[1], jnp.float32)
    dscale[program, :] = jax.lax.fori_loop(0, ROWS // tile, rows, zeros_D)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _residual_norm(x_TD, scale_D, epsilon, interpret):
    del interpret
    return x_TD, xla.rms_norm(x_TD, scale_D, epsilon)


def _forward(x_TD, scale_D, epsilon, interpret):
    return _residual_norm(x_TD, scale_D, epsilon, interpret), (x_TD, scale_D)


def _backward(epsilon, interpret, operands, cotangents):
    x_TD, scale_D = operands
    rows, width = x_TD.shape
    outputs = (
        jax.ShapeDtypeStruct(x_TD.shape, x_TD.dtype),
        jax.ShapeDtypeStruct((rows // ROWS, width), jnp.float32),
    )
    options = {"channels": _TILE, "warps": 8, "epsilon": epsilon, "interpret": interpret}
    dx_TD, dscale_PD = by_rows(_gradients, outputs, x_TD, scale_D, *cotangents, **options)
    return dx_TD, dscale_PD.sum(0)


_residual_norm.defvjp(_forward, _backward)


def obstacle(x_BLD: jax.Array) -> str | None:
    """Why the kernel cannot run on these operands; None if it can."""
    return rows_gpu.obstacle(x_BLD, is_padded=False)


def residual_norm(x_BLD, scale_D, epsilon: float, *, interpret: bool = False):
    """See `hybrid_lm.kernels.residual_norm.residual_norm`."""
    x_TD = x_BLD.reshape(-1, x_BLD.shape[-1])
    both: Any = _residual_norm(x_TD, scale_D, epsilon, interpret)
    return tuple(a_TD.reshape(x_BLD.shape) for a_TD in both)
