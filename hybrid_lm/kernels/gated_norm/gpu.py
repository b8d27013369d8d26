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
from hybrid_lm.kernels.rows_gpu import ROWS, by_rows

_TILE = 2048  # channels of rows taken at a time
_WARPS = 4


def _gate(y, z, tokens):
    """y, z and sigmoid(z) of some rows, float32."""
    y_TE, z_TE = y[tokens, :].astype(jnp.float32), z[tokens, :].astype(jnp.float32)
    return y_TE, z_TE, 1 / (1 + jnp.exp(-z_TE))


def _forward_kernel(y, z, scale, out, *, tile, epsilon):
    first = pl.program_id(0) * ROWS

    def rows(i, _):
        tokens = pl.ds(first + i * tile, tile)
        y_TE, z_TE, sigmoid_TE = _gate(y, z, tokens)
        u_TE = y_TE * z_TE * sigmoid_TE
        inverse_T = jax.lax.rsqrt(jnp.mean(u_TE * u_TE, axis=1) + epsilon)
        out[tokens, :] = (u_TE * inverse_T[:, None] * scale[...][None, :]).astype(out.dtype)

    jax.lax.fori_loop(0, ROWS // tile, rows, None)


def _backward_kernel(y, z, scale, dout, dy, dz, out, dscale, *, tile, epsilon):
    program = pl.program_id(0)

    def rows(i, dscale_E):
        tokens = pl.ds(program * ROWS + i * tile, tile)
        y_TE, z_TE, sigmoid_TE = _gate(y, z, tokens)
        silu_TE = z_TE * sigmoid_TE
        u_TE = y_TE * silu_TE
        inverse_T1 = jax.lax.rsqrt(jnp.mean(u_TE * u_TE, axis=1) + epsilon)[:, None]
        normed_TE, dout_TE = u_TE * inverse_T1, dout[tokens, :].astype(jnp.float32)
        out[tokens, :] = (normed_TE * scale[...][None, :]).astype(out.dtype)
        dnormed_TE = dout_TE * scale[...][None, :]
        share_T1 = jnp.mean(dnormed_TE * normed_TE, axis=1)[:, None]
        du_TE = inverse_T1 * (dnormed_TE - normed_TE * share_T1)
        dy[tokens, :] = (du_TE * silu_TE).astype(dy.dtype)
        dz_TE = du_TE * y_TE * (sigmoid_TE + silu_TE * (1 - sigmoid_TE))
        dz[tokens, :] = dz_TE.astype(dz.dtype)
        return dscale_E + jnp.sum(dout_TE * normed_TE, axis=0)

    zeros_E = jnp.zeros(y.shape[1], jnp.float32)
    dscale[program, :] = jax.lax.fori_loop(0, ROWS // tile, rows, zeros_E)


_call = partial(by_rows, channels=_TILE, warps=_WARPS)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _gated_norm(y_TE, z_TE, scale_E, weight_ED, epsilon, interpret):
    normed = jax.ShapeDtypeStruct(y_TE.shape, y_TE.dtype)
    operands = (y_TE, z_TE, scale_E)
    normed_TE = _call(_forward_kernel, normed, *operands, epsilon=epsilon, interpret=interpret)
    return project("te,ed->td", normed_TE, weight_ED)


def _forward(*arguments):
    return _gated_norm(*arguments), arguments[:4]


def _backward(epsilon, interpret, operands, dout_TD):
    y_TE, z_TE, scale_E, weight_ED = operands
    like_y, like_z = (jax.ShapeDtypeStruct(a.shape, a.dtype) for a in (y_TE, z_TE))
    parts = jax.ShapeDtypeStruct((y_TE.shape[0] // ROWS, y_TE.shape[1]), jnp.float32)
    dy_TE, dz_TE, normed_TE, dscale_PE = _call(
        _backward_kernel,
        (like_y, like_z, like_y, parts),
        *(y_TE, z_TE, scale_E, project("td,ed->te", dout_TD, weight_ED)),
        epsilon=epsilon,
        interpret=interpret,
    )
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
