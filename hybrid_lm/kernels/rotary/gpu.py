"""One pass over memory forward and one backward, as Pallas kernels (Triton backend).

A program takes some tokens after others, all heads of them at once: they share the angles. The
gradient of the norm's scale is summed over programs by XLA, in a fixed order.
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
_TILE = 4096  # channels of tokens taken at a time
_WARPS = 4
_DIMS = (32, 64, 128, 256)


def _heads(heads: int) -> int:
    """Of a program: a power of 2, as Triton's tiles are."""
    return heads & -heads


def _halves(ref, tokens, heads):
    """Both halves of the channels of some tokens' heads, float32."""
    half = ref.shape[-1] // 2
    cuts = pl.ds(0, half), pl.ds(half, half)
    return [ref[tokens, heads, cut].astype(jnp.float32) for cut in cuts]


def _store_halves(ref, tokens, heads, halves):
    half = ref.shape[-1] // 2
    for i, values in enumerate(halves):
        ref[tokens, heads, pl.ds(i * half, half)] = values.astype(ref.dtype)


def _scales(scale):
    half = scale.shape[0] // 2
    return [scale[pl.ds(i * half, half)][None, None, :] for i in range(2)]


def _mean(halves_a, halves_b):
    """Of the products, over all channels: [T, H, 1]."""
    total_TH = sum(jnp.sum(a * b, axis=2) for a, b in zip(halves_a, halves_b, strict=True))
    return (total_TH / (2 * halves_a[0].shape[2]))[:, :, None]


def _tiles(x, tile):
    """The program's heads, and of every tile its tokens."""
    count = _heads(x.shape[1])
    first = pl.program_id(0) * _TOKENS
    return pl.ds(pl.program_id(1) * count, count), lambda i: pl.ds(first + i * tile, tile)


def _forward_kernel(x, scale, cos, sin, out, *, tile, epsilon):
    heads, tokens_of = _tiles(x, tile)

    def turn(i, _):
        tokens = tokens_of(i)
        halves = _halves(x, tokens, heads)
        inverse_TH1 = jax.lax.rsqrt(_mean(halves, halves) + epsilon)
        left, right = (a * inverse_TH1 * s for a, s in zip(halves, _scales(scale), strict=True))
        cos_T1K, sin_T1K = cos[tokens, :][:, None, :], sin[tokens, :][:, None, :]
        turned = left * cos_T1K - right * sin_T1K, right * cos_T1K + left * sin_T1K
        _store_halves(out, tokens, heads, turned)

    jax.lax.fori_loop(0, _TOKENS // tile, turn, None)


def _backward_kernel(x, scale, cos, sin, dout, dx, dscale, *, tile, epsilon):
    heads, tokens_of = _tiles(x, tile)
    half = x.shape[2] // 2

    def turn_back(i, sums):
        tokens = tokens_of(i)
        halves, (dleft, dright) = _halves(x, tokens, heads), _halves(dout, tokens, heads)
        cos_T1K, sin_T1K = cos[tokens, :][:, None, :], sin[tokens, :][:, None, :]
        dturned = dleft * cos_T1K + dright * sin_T1K, dright * cos_T1K - dleft * sin_T1K
        inverse_TH1 = jax.lax.rsqrt(_mean(halves, halves) + epsilon)
        units = [a * inverse_TH1 for a in halves]
        sums = [
            s + jnp.sum(jnp.sum(d * u, axis=0), axis=0)
            for s, d, u in zip(sums, dturned, units, strict=True)
        ]
        dunits = [d * s for d, s in zip(dturned, _scales(scale), strict=True)]
        share_TH1 = _mean(dunits, units)
        gradients = [inverse_TH1 * (d - u * share_TH1) for d, u in zip(dunits, units, strict=True)]
        _store_halves(dx, tokens, heads, gradients)
        return sums

    zeros = [jnp.zeros(half, jnp.float32)] * 2
    sums = jax.lax.fori_loop(0, _TOKENS // tile, turn_back, zeros)
    for i, sum_K in enumerate(sums):
        dscale[pl.program_id(0), pl.program_id(1), pl.ds(i * half, half)] = sum_K


def _call(kernel, outputs, *operands, epsilon, interpret):
    tokens, heads, dim = operands[0].shape
    together = _heads(heads)
    tile = min(max(_TILE // (together * dim), 1), _TOKENS)
    return pallas_triton.call(
        partial(kernel, tile=tile, epsilon=epsilon),
        (tokens // _TOKENS, heads // together),
        outputs,
        *operands,
        warps=_WARPS,
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
    parts = jax.ShapeDtypeStruct((tokens // _TOKENS, heads // _heads(heads), dim), jnp.float32)
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
