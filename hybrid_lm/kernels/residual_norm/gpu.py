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
from hybrid_lm.kernels.rows_gpu import ROWS, by_rows, mean_product, rows_of


def _gradients(x, scale, dresidual, dnormed, dx, dscale, *, tile, epsilon):
    """Of rows in halves: up to 256 channels in bfloat16 are one warp's, so sums need no barrier."""
    program, half = pl.program_id(0), x.shape[1] // 2
    tokens_of = rows_of(program, x.shape[0], tile)
    cuts = pl.ds(0, half), pl.ds(half, half)
    scales = [scale[cut][None, :] for cut in cuts]

    def rows(i, sums):
        tokens = tokens_of(i)

        def halves(ref):
            return [ref[tokens, cut].astype(jnp.float32) for cut in cuts]

        xs, dys, dresiduals = halves(x), halves(dnormed), halves(dresidual)
        dunits = [dy * s for dy, s in zip(dys, scales, strict=True)]
        inverse_T1 = jax.lax.rsqrt(mean_product(xs, xs) + epsilon)
        share_T1 = mean_product(dunits, xs) * inverse_T1
        units = [x_TD * inverse_T1 for x_TD in xs]
        for cut, direct, d, u in zip(cuts, dresiduals, dunits, units, strict=True):
            dx[tokens, cut] = (direct + inverse_T1 * (d - u * share_T1)).astype(dx.dtype)
        return [s + dy * u for s, dy, u in zip(sums, dys, units, strict=True)]

    sums = [jnp.zeros((tile, half), jnp.float32)] * 2
    for cut, sum_TD in zip(cuts, jax.lax.fori_loop(0, ROWS // tile, rows, sums), strict=True):
        dscale[program, cut] = jnp.sum(sum_TD, axis=0)


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
    options = {"channels": 512, "warps": 2, "epsilon": epsilon, "interpret": interpret}
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
