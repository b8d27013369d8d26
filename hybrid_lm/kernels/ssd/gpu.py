"""State-space duality as Pallas kernels for NVIDIA GPUs (Triton backend).

A walk over the chunks (`hybrid_lm.kernels.spans`) has the state of a head in registers and leaves
the state before each of them; backwards it goes in reverse with the cotangent of the state. All
else is done for all chunks side by side (`hybrid_lm.kernels.chunked_gpu`).
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import chunked_gpu, pallas_triton
from hybrid_lm.kernels.chunked_gpu import Factors, Scales, Sizes, padded
from hybrid_lm.kernels.pallas_triton import dot
from hybrid_lm.kernels.remat import keep
from hybrid_lm.kernels.spans import walk
from hybrid_lm.kernels.ssd import gpu_gradients

_CHUNK = 64
_LEAST_COLUMNS = 16  # that a matrix product takes
_PARTS = 1024  # parts of heads, chunk by chunk, that fill it


def _written(k, v, *weights, batch, head, tokens, block, share):
    """``k^T (weight v)``, the product of all weights."""
    rows, columns = block
    v_CP, weight_C = v[batch, tokens, head, columns], weights[0][batch, head, tokens]
    for weight in weights[1:]:
        weight_C *= weight[batch, head, tokens]
    v_CP = (v_CP * weight_C[:, None]).astype(v_CP.dtype)
    return dot(k[batch, tokens, head // share, rows], v_CP, trans_a=True)


def _walk(k, v, weights, stays, start_BHNP, sizes: Sizes, *, reverse: bool):
    """The state before (in reverse: after) each chunk, [B, chunks, H, N, P], and the last one."""
    return walk(
        partial(_written, share=sizes.share),
        (k, v, *weights),
        stays[..., None],
        start_BHNP,
        chunk=sizes.chunk,
        dtype=v.dtype,
        reverse=reverse,
        interpret=sizes.interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(6,))
def _ssd(q, k, v, factors: Factors, scales: Scales | None, start_BHNP, sizes: Sizes):
    """Outputs in the dtype of v, and the last state."""
    return _ssd_forward(q, k, v, factors, scales, start_BHNP, sizes)[0]


def _ssd_forward(q, k, v, factors, scales, start_BHNP, sizes):
    weights = (factors.to_end, *(scales or ())[:1])
    before, last = _walk(k, v, weights, factors.stays, start_BHNP, sizes, reverse=False)
    before = keep(before)
    y = keep(chunked_gpu.outputs(q, k, v, factors, before, sizes, scales))
    return (y, last), (q, k, v, factors, scales, before)


def _ssd_backward(sizes, residuals, cotangents):
    q, k, v, factors, scales, before = residuals
    dy, dlast = cotangents
    reads = (q, dy, (factors.from_start,), factors.stays)
    after, dstart = _walk(*reads, dlast, sizes, reverse=True)
    of = gpu_gradients if gpu_gradients.is_worth(before, sizes) else chunked_gpu
    return *of.gradients(q, k, v, factors, before, after, dy, sizes, scales), dstart


_ssd.defvjp(_ssd_forward, _ssd_backward)


def obstacle(k_BLGN: jax.Array, v_BLHP: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    n, width = k_BLGN.shape[-1], v_BLHP.shape[-1]
    most = _power_of_two(width)
    if most < width and v_BLHP.dtype == jnp.float32:
        return f"float32 and {width} columns of values"
    if reason := chunked_gpu.states_obstacle(n, most):
        return reason
    return pallas_triton.obstacle(v_BLHP)


def _power_of_two(width: int) -> int:
    """The largest that is not above ``width``."""
    return 1 << (width.bit_length() - 1)


def ssd(
    q_BLGN: jax.Array,
    k_BLGN: jax.Array,
    v_BLHP: jax.Array,
    log_decay_BLH: jax.Array | None,
    resets_BL: jax.Array | None,
    initial_state_BHNP: jax.Array,
    strength_BLH: jax.Array | None = None,
    skip_H: jax.Array | None = None,
    *,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.ssd.ssd`; any L.

    Columns of values do not see each other: what is above a power of two, as the column of ones of
    a normaliser is, goes through the kernels by itself.
    """
    batch, length, heads, width = v_BLHP.shape
    groups = k_BLGN.shape[2]
    share = heads // groups
    chunks = -(-length // _CHUNK)
    parts = 1
    while batch * chunks * groups * parts < _PARTS and share % (2 * parts) == 0:
        parts *= 2

    pad = partial(padded, multiple=_CHUNK)
    v, log_decay, resets = jax.tree.map(pad, (v_BLHP, log_decay_BLH, resets_BL))
    strength = None if strength_BLH is None else pad(strength_BLH)
    operands = log_decay, strength, resets
    factors, strength = chunked_gpu.gpu_factors(
        *operands, v.shape[:3], _CHUNK, interpret, exact=v.dtype == jnp.float32
    )
    sizes = Sizes(_CHUNK, share, parts, interpret)
    scales = None
    if strength is not None or skip_H is not None:
        if strength is None:
            strength = jnp.ones(factors.from_start.shape, jnp.float32)
        if skip_H is None:
            skip_H = jnp.zeros(heads, jnp.float32)
        scales = Scales(strength, skip_H)
    q, k, most = pad(q_BLGN), pad(k_BLGN), _power_of_two(width)

    def columns(first: int, last: int) -> tuple[jax.Array, jax.Array]:
        def some(x):
            missing = max(pl.next_power_of_2(last - first), _LEAST_COLUMNS) - (last - first)
            return jnp.pad(x[..., first:last], [(0, 0)] * (x.ndim - 1) + [(0, missing)])

        operands = (q, k, some(v), factors, scales, some(initial_state_BHNP))
        y, state = _ssd(*operands, sizes)  # pyright: ignore[reportGeneralTypeIssues]
        return y[:, :length, :, : last - first], state[..., : last - first]

    y, last = columns(0, most)
    if most < width:
        rest = columns(most, width)
        y, last = (jnp.concatenate(x, axis=-1) for x in zip((y, last), rest, strict=True))
    return y.astype(jnp.float32), last
