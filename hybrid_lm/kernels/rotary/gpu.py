"""One product, and one pass over memory forward and one backward: Pallas kernels (Triton backend).

A program takes some tokens after others, all heads of them: they share the angles. The gradients of
the norms' scales are summed in its registers, and over programs by XLA, in a fixed order.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.precision import project
from hybrid_lm.kernels.remat import keep
from hybrid_lm.kernels.rotary import xla
from hybrid_lm.kernels.rows_gpu import ROWS, mean_product, rows_of

_TILE = 2048  # channels of tokens taken at a time
_WARPS = 4
_DIMS = (32, 64, 128, 256)


def _together(parts) -> int:
    """Heads taken at a time: a power of 2, as Triton's tiles are, that divides both counts."""
    count = math.gcd(*(part.shape[1] for part in parts))
    return min(count & -count, _TILE // parts[0].shape[2])


def _heads(parts):
    """Of every set of heads taken together: of queries (0) or keys (1), there, and among all."""
    together, first = _together(parts), 0
    for kind, part in enumerate(parts):
        for own in range(0, part.shape[1], together):
            yield kind, pl.ds(own, together), pl.ds(first + own, together)
        first += part.shape[1]


def _halves(ref, tokens, heads):
    """Both halves of the channels of some tokens' heads, float32."""
    half = ref.shape[-1] // 2
    cuts = pl.ds(0, half), pl.ds(half, half)
    return [ref[tokens, heads, cut].astype(jnp.float32) for cut in cuts]


def _store_halves(ref, tokens, heads, halves):
    half = ref.shape[-1] // 2
    for i, values in enumerate(halves):
        ref[tokens, heads, pl.ds(i * half, half)] = values.astype(ref.dtype)


def _scales(scale, kind):
    half = scale.shape[1] // 2
    return [scale[kind, pl.ds(i * half, half)][None, None, :] for i in range(2)]


def _turns(cos, sin, tokens, heads):
    """Of some tokens, loaded for every head as its channels are: nothing is handed over."""
    shape = (tokens.size, heads, cos.shape[1])
    at = [jax.lax.broadcasted_iota(jnp.int32, shape, axis) for axis in (0, 2)]
    return [ref[tokens.start + at[0], at[1]] for ref in (cos, sin)]


def _forward_kernel(x, scale, cos, sin, *outs, tile, epsilon):
    tokens_of = rows_of(pl.program_id(0), x.shape[0], tile)

    def turn(i, _):
        tokens = tokens_of(i)
        cos_THK, sin_THK = _turns(cos, sin, tokens, _together(outs))
        for kind, own, heads in _heads(outs):
            halves = _halves(x, tokens, heads)
            inverse_TH1 = jax.lax.rsqrt(mean_product(halves, halves) + epsilon)
            scales = _scales(scale, kind)
            left, right = (a * inverse_TH1 * s for a, s in zip(halves, scales, strict=True))
            turned = left * cos_THK - right * sin_THK, right * cos_THK + left * sin_THK
            _store_halves(outs[kind], tokens, own, turned)

    jax.lax.fori_loop(0, ROWS // tile, turn, None)


def _backward_kernel(x, scale, cos, sin, *refs, tile, epsilon):
    *douts, dx, dscale = refs
    program, half, together = pl.program_id(0), x.shape[2] // 2, _together(douts)
    tokens_of = rows_of(program, x.shape[0], tile)

    def turn_back(i, sums):
        tokens = tokens_of(i)
        cos_THK, sin_THK = _turns(cos, sin, tokens, together)
        sums = [list(of_kind) for of_kind in sums]
        for kind, own, heads in _heads(douts):
            halves, (dleft, dright) = _halves(x, tokens, heads), _halves(douts[kind], tokens, own)
            dturned = dleft * cos_THK + dright * sin_THK, dright * cos_THK - dleft * sin_THK
            inverse_TH1 = jax.lax.rsqrt(mean_product(halves, halves) + epsilon)
            units = [a * inverse_TH1 for a in halves]
            for h, (d, u) in enumerate(zip(dturned, units, strict=True)):
                sums[kind][h] += d * u
            dunits = [d * s for d, s in zip(dturned, _scales(scale, kind), strict=True)]
            share_TH1 = mean_product(dunits, halves) * inverse_TH1
            pairs = zip(dunits, units, strict=True)
            _store_halves(dx, tokens, heads, [inverse_TH1 * (d - u * share_TH1) for d, u in pairs])
        return sums

    zeros = [[jnp.zeros((tile, together, half), jnp.float32)] * 2] * 2
    sums = jax.lax.fori_loop(0, ROWS // tile, turn_back, zeros)
    for kind, halves in enumerate(sums):
        for h, sum_THK in enumerate(halves):
            dscale[program, kind, pl.ds(h * half, half)] = jnp.sum(jnp.sum(sum_THK, axis=0), axis=0)


def _call(kernel, parts, outputs, *operands, epsilon, interpret):
    tokens, _, dim = operands[0].shape
    tile = min(max(_TILE // (_together(parts) * dim), 1), ROWS)
    return pallas_triton.call(
        partial(kernel, tile=tile, epsilon=epsilon),
        (tokens // ROWS,),
        outputs,
        *operands,
        warps=_WARPS,
        interpret=interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _norm_and_rotate(x_THK, scale_2K, cos_TK, sin_TK, heads, epsilon, interpret):
    """Queries and keys, so many ``heads`` of x each."""
    tokens, _, dim = x_THK.shape
    outs = [jax.ShapeDtypeStruct((tokens, count, dim), x_THK.dtype) for count in heads]
    operands = (x_THK, scale_2K, cos_TK, sin_TK)
    return _call(_forward_kernel, outs, outs, *operands, epsilon=epsilon, interpret=interpret)


def _forward(*arguments):
    return jax.tree.map(keep, _norm_and_rotate(*arguments)), arguments[:4]


def _backward(heads, epsilon, interpret, operands, douts):
    del heads
    x_THK = operands[0]
    sums = jax.ShapeDtypeStruct((x_THK.shape[0] // ROWS, 2, x_THK.shape[2]), jnp.float32)
    outputs = (jax.ShapeDtypeStruct(x_THK.shape, x_THK.dtype), sums)
    options = {"epsilon": epsilon, "interpret": interpret}
    dx_THK, dscale_P2K = _call(_backward_kernel, douts, outputs, *operands, *douts, **options)
    return dx_THK, dscale_P2K.sum(0), None, None


_norm_and_rotate.defvjp(_forward, _backward)


def obstacle(x_BLD: jax.Array, weight_DHK: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    if weight_DHK.shape[-1] not in _DIMS:
        return f"heads of {weight_DHK.shape[-1]} channels"
    if x_BLD.shape[0] * x_BLD.shape[1] % ROWS:
        return f"tokens must be a multiple of {ROWS}"
    return pallas_triton.obstacle(x_BLD)


def queries_and_keys(
    x_BLD, weights, scales, positions_BL, theta: float, epsilon: float, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.rotary.queries_and_keys`."""
    batch, length, _ = x_BLD.shape
    both_BLHK = project("bld,dhk->blhk", x_BLD, jnp.concatenate(weights, axis=1))
    half = both_BLHK.shape[-1] // 2
    turns = xla.turns(positions_BL, half, theta, jnp.float32)
    cos_TK, sin_TK = (t.reshape(-1, half) for t in turns)
    both_THK = both_BLHK.reshape(-1, *both_BLHK.shape[2:])
    heads = tuple(weight_DHK.shape[1] for weight_DHK in weights)
    parts: Any = _norm_and_rotate(
        both_THK, jnp.stack(scales), cos_TK, sin_TK, heads, epsilon, interpret
    )
    q_BLHK, k_BLGK = (part.reshape(batch, length, *part.shape[1:]) for part in parts)
    return q_BLHK, k_BLGK
