"""One pass over memory forward and one backward, as Pallas kernels (Triton backend).

A program takes some tokens of one head. The gradient of the norm's scale is summed over programs by
XLA, in a fixed order.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.remat import keep
from hybrid_lm.kernels.rotary import xla

_TOKENS = 64  # of a program
_DIMS = (32, 64, 128, 256)


def _halves(ref, tokens, head):
    """Both halves of the channels of some tokens' head, float32."""
    half = ref.shape[-1] // 2
    cuts = pl.ds(0, half), pl.ds(half, half)
    return [ref[tokens, head, cut].astype(jnp.float32) for cut in cuts]


def _store_halves(ref, tokens, head, halves):
    half = ref.shape[-1] // 2
    for i, values in enumerate(halves):
        ref[tokens, head, pl.ds(i * half, half)] = values.astype(ref.dtype)


def _scales(scale):
    half = scale.shape[0] // 2
    return [scale[pl.ds(i * half, half)][None, :] for i in range(2)]


def _mean(halves_a, halves_b):
    """Of the products, over all channels: [T, 1]."""
    total_T = sum(jnp.sum(a * b, axis=1) for a, b in zip(halves_a, halves_b, strict=True))
    return (total_T / (2 * halves_a[0].shape[1]))[:, None]


def _forward_kernel(x, scale, cos, sin, out, *, epsilon):
    tokens, head = pl.ds(pl.program_id(0) * _TOKENS, _TOKENS), pl.program_id(1)
    halves = _halves(x, tokens, head)
    inverse_T1 = jax.lax.rsqrt(_mean(halves, halves) + epsilon)
    left, right = (a * inverse_T1 * s for a, s in zip(halves, _scales(scale), strict=True))
    cos_TK, sin_TK = cos[tokens, :], sin[tokens, :]
    turned = left * cos_TK - right * sin_TK, right * cos_TK + left * sin_TK
    _store_halves(out, tokens, head, turned)


def _backward_kernel(x, scale, cos, sin, dout, dx, dscale, *, epsilon):
    program, head = pl.program_id(0), pl.program_id(1)
    tokens = pl.ds(program * _TOKENS, _TOKENS)
    halves, (dleft, dright) = _halves(x, tokens, head), _halves(dout, tokens, head)
    cos_TK, sin_TK = cos[tokens, :], sin[tokens, :]
    dturned = dleft * cos_TK + dright * sin_TK, dright * cos_TK - dleft * sin_TK
    inverse_T1 = jax.lax.rsqrt(_mean(halves, halves) + epsilon)
    units = [a * inverse_T1 for a in halves]
    half = units[0].shape[1]
    for i in range(2):
        dscale[program, head, pl.ds(i * half, half)] = jnp.sum(dturned[i] * units[i], axis=0)
    dunits = [d * s for d, s in zip(dturned, _scales(scale), strict=True)]
    share_T1 = _mean(dunits, units)
    gradients = [inverse_T1 * (d - u * share_T1) for d, u in zip(dunits, units, strict=True)]
    _store_halves(dx, tokens, head, gradients)


def _call(kernel, outputs, *operands, epsilon, interpret):
    tokens, heads, _ = operands[0].shape
    return pallas_triton.call(
        partial(kernel, epsilon=epsilon),
        (tokens // _TOKENS, heads),
        outputs,
        *operands,
        warps=4,
        interpret=interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _norm_and_rotate(x_THK, scale_K, cos_TK, sin_TK, epsilon, interpret):
    out = jax.ShapeDtypeStruct(x_THK.shape, x_THK.dtype)
    operands = (x_THK, scale_K, cos_TK, sin_TK)
    return _call(_forward_kernel, out, *operands, epsilon=epsilon, interpret=interpret)


def _forward(*arguments):
    return keep(_norm_and_rotate(*arguments)), arguments[:4]


def _backward(epsilon, interpret, operands, dout_THK):
    tokens, heads, dim = dout_THK.shape
    parts = jax.ShapeDtypeStruct((tokens // _TOKENS, heads, dim), jnp.float32)
    outputs = (jax.ShapeDtypeStruct(dout_THK.shape, dout_THK.dtype), parts)
    dx_THK, dscale_PHK = _call(
        _backward_kernel, outputs, *operands, dout_THK, epsilon=epsilon, interpret=interpret
    )
    return dx_THK, dscale_PHK.sum((0, 1)), None, None


_norm_and_rotate.defvjp(_forward, _backward)


def obstacle(x_BLHK: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    if x_BLHK.shape[-1] not in _DIMS:
        return f"heads of {x_BLHK.shape[-1]} channels"
    if x_BLHK.shape[0] * x_BLHK.shape[1] % _TOKENS:
        return f"tokens must be a multiple of {_TOKENS}"
    return pallas_triton.obstacle(x_BLHK)


def norm_and_rotate(
    x_BLHK, scale_K, positions_BL, theta: float, epsilon: float, *, interpret: bool = False
) -> jax.Array:
    """See `hybrid_lm.kernels.rotary.norm_and_rotate`."""
    half = x_BLHK.shape[-1] // 2
    turns = xla.turns(positions_BL, half, theta, jnp.float32)
    x_THK = x_BLHK.reshape(-1, *x_BLHK.shape[2:])
    cos_TK, sin_TK = (t.reshape(-1, half) for t in turns)
    out_THK: Any = _norm_and_rotate(x_THK, scale_K, cos_TK, sin_TK, epsilon, interpret)
    return out_THK.reshape(x_BLHK.shape)
