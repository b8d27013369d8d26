"""The norm as one pass over memory forward and one backward: Pallas kernels (Triton backend).

A program takes some rows after another; the gradient of the scale is summed in its registers, and
over programs by XLA, in a fixed order.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import rows_gpu
from hybrid_lm.kernels.precision import project
from hybrid_lm.kernels.rows_gpu import ROWS, by_rows, mean_product, rows_of

_HALVES, _QUARTERS = 2, 4


def _cuts(width, pieces):
    """Of a row: sums over it need few barriers, and none where one warp has a piece."""
    return [pl.ds(i * (width // pieces), width // pieces) for i in range(pieces)]


def _gate(y, z, at):
    """y, sigmoid(z) and silu(z) of some rows, float32."""
    y_TE, z_TE = y[at].astype(jnp.float32), z[at].astype(jnp.float32)
    sigmoid_TE = 1 / (1 + jnp.exp(-z_TE))
    return y_TE, sigmoid_TE, z_TE * sigmoid_TE


def _forward_kernel(y, z, scale, out, *, tile, epsilon):
    tokens_of = rows_of(pl.program_id(0), y.shape[0], tile)
    cuts = _cuts(y.shape[1], _HALVES)
    scales = [scale[cut][None, :] for cut in cuts]

    def rows(i, _):
        ats = [(tokens_of(i), cut) for cut in cuts]
        us = [y_TE * silu_TE for y_TE, _, silu_TE in (_gate(y, z, at) for at in ats)]
        inverse_T1 = jax.lax.rsqrt(mean_product(us, us) + epsilon)
        for at, u_TE, scale_1E in zip(ats, us, scales, strict=True):
            out[at] = (u_TE * inverse_T1 * scale_1E).astype(out.dtype)

    jax.lax.fori_loop(0, ROWS // tile, rows, None)


def _backward_kernel(y, z, scale, dout, dy, dz, out, dscale, *, tile, epsilon):
    program, width = pl.program_id(0), y.shape[1]
    tokens_of, cuts = rows_of(program, y.shape[0], tile), _cuts(width, _QUARTERS)
    scales = [scale[cut][None, :] for cut in cuts]

    def rows(i, sums):
        ats = [(tokens_of(i), cut) for cut in cuts]
        gates = [_gate(y, z, at) for at in ats]
        douts = [dout[at].astype(jnp.float32) for at in ats]
        us = [y_TE * silu_TE for y_TE, _, silu_TE in gates]
        dnormeds = [d * s for d, s in zip(douts, scales, strict=True)]
        inverse_T1 = jax.lax.rsqrt(mean_product(us, us) + epsilon)
        share_T1 = mean_product(dnormeds, us) * inverse_T1
        normeds = [u * inverse_T1 for u in us]
        parts = zip(ats, gates, normeds, dnormeds, scales, strict=True)
        for at, (y_TE, sigmoid_TE, silu_TE), normed_TE, dnormed_TE, scale_1E in parts:
            out[at] = (normed_TE * scale_1E).astype(out.dtype)
            du_TE = inverse_T1 * (dnormed_TE - normed_TE * share_T1)
            dy[at] = (du_TE * silu_TE).astype(dy.dtype)
            dz_TE = du_TE * y_TE * (sigmoid_TE + silu_TE * (1 - sigmoid_TE))
            dz[at] = dz_TE.astype(dz.dtype)
        return [s + d * n for s, d, n in zip(sums, douts, normeds, strict=True)]

    sums = [jnp.zeros((tile, width // _QUARTERS), jnp.float32)] * _QUARTERS
    for cut, sum_TE in zip(cuts, jax.lax.fori_loop(0, ROWS // tile, rows, sums), strict=True):
        dscale[program, cut] = jnp.sum(sum_TE, axis=0)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _gated_norm(y_TE, z_TE, scale_E, weight_ED, epsilon, interpret):
    normed = jax.ShapeDtypeStruct(y_TE.shape, y_TE.dtype)
    options = {"channels": 512, "warps": 4, "epsilon": epsilon, "interpret": interpret}
    normed_TE = by_rows(_forward_kernel, normed, y_TE, z_TE, scale_E, **options)
    return project("te,ed->td", normed_TE, weight_ED)


def _forward(*arguments):
    return _gated_norm(*arguments), arguments[:4]


def _backward(epsilon, interpret, operands, dout_TD):
    y_TE, z_TE, scale_E, weight_ED = operands
    like_y, like_z = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (y_TE, z_TE))
    parts = jax.ShapeDtypeStruct((y_TE.shape[0] // ROWS, y_TE.shape[1]), jnp.float32)
    operands = (y_TE, z_TE, scale_E, project("td,ed->te", dout_TD, weight_ED))
    options = {"channels": 1024, "warps": 2, "epsilon": epsilon, "interpret": interpret}
    outputs = (like_y, like_z, like_y, parts)
    dy_TE, dz_TE, normed_TE, dscale_PE = by_rows(_backward_kernel, outputs, *operands, **options)
    dweight_ED = project("te,td->ed", normed_TE, dout_TD).astype(weight_ED.dtype)
    return dy_TE, dz_TE, dscale_PE.sum(0), dweight_ED


_gated_norm.defvjp(_forward, _backward)


def obstacle(y_BLE: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    return rows_gpu.obstacle(y_BLE, is_padded=True)


def gated_norm(
    y_BLE, z_BLE, scale_E, weight_ED, epsilon: float, *, interpret: bool = False
) -> jax.Array:
    """See `hybrid_lm.kernels.gated_norm.gated_norm`; any B and L."""

    def rows(a_BLE):
        a_TE = a_BLE.reshape(-1, a_BLE.shape[-1])
        return jnp.pad(a_TE, ((0, -a_TE.shape[0] % ROWS), (0, 0)))

    operands = (rows(y_BLE), rows(z_BLE), scale_E, weight_ED)
    out_TD: Any = _gated_norm(*operands, epsilon, interpret)
    batch, length, _ = y_BLE.shape
    return out_TD[: batch * length].reshape(batch, length, -1)
