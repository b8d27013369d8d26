"""Blocks that double: what the left half of a block adds to its right half, at once.

One Fourier transform over the row would let later tokens, and other documents, into the last bits
of earlier outputs. Here the first half of every block of 2, 4, 8, ... halves reaches the second
half, which is later in all its tokens: every pair of tokens further apart than a few taps meets in
exactly one block. Only the document that crosses the middle of a block is let through. The time is
O(L log^2 min(L, M)), and no array is longer than the row but for the Toeplitz matrices of small
blocks.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.causal_conv.xla import causal_conv
from hybrid_lm.kernels.long_conv import reference
from hybrid_lm.kernels.long_conv.circular import circular, in_turn
from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.kernels.toeplitz import toeplitz

NEAR = 8
"""Taps that are added up one by one, and tokens of the smallest half."""


def flops_per_input(length: int, taps: int, chunk_size: int) -> float:
    """Floating-point operations per number of a row of ``length`` tokens."""
    flops = 2.0 * min(NEAR, taps)
    for half in _halves(length, taps):
        share = 1 if half >= taps - 1 else 1 / 2  # of the blocks of that size reach others
        if half < chunk_size:
            flops += share * 2 * half
        else:
            # Of 2H real numbers each: one transform of the filter, and two of H complex products.
            transform = 5 * half * math.log2(2 * half)
            flops += transform / length + share * (2 * transform / half + 6)
    return flops


def _halves(length: int, taps: int) -> list[int]:
    """Tokens of half a block, for the blocks of each size that a row of ``length`` is cut into.

    The last half, if the row is longer than the filter, is at least as long as the filter reaches.
    """
    found, half = [], NEAR
    while half < length:
        found.append(half)
        if half >= taps - 1:
            break
        half *= 2
    return found


def long_conv(
    u_BLD: jax.Array,
    filter_MD: jax.Array,
    resets_BL: jax.Array | None,
    past_BSD: jax.Array,
    *,
    chunk_size: int,
) -> jax.Array:
    """See `hybrid_lm.kernels.long_conv.long_conv`."""
    length, taps, earlier = u_BLD.shape[1], len(filter_MD), past_BSD.shape[1]
    if length == 1:
        return reference.long_conv(u_BLD, filter_MD, resets_BL, past_BSD)
    near_WD, zero_D = filter_MD[:NEAR][::-1], jnp.zeros_like(filter_MD[0])
    padded = jnp.pad(past_BSD, ((0, 0), (NEAR, 0), (0, 0)))
    near_past = padded[:, padded.shape[1] - len(near_WD) + 1 :]
    y_BLD, _ = causal_conv(u_BLD, near_WD, zero_D, resets_BL, near_past, silu=False)
    if taps <= NEAR:
        return y_BLD

    far_MD = filter_MD.at[:NEAR].set(0)
    u_BDL, starts_BL = jnp.swapaxes(u_BLD, 1, 2), None
    if resets_BL is not None:  # where each token's document starts, -1: before the row
        place_L = jnp.arange(length, dtype=jnp.int32)
        starts_BL = jax.lax.cummax(jnp.where(resets_BL, place_L[None], -1), axis=1)
    y_BDL = jnp.swapaxes(y_BLD, 1, 2)
    for half in _halves(length, taps):
        if half >= chunk_size:
            y_BDL, u_BDL, far_MD = in_turn(y_BDL, u_BDL, far_MD)
        y_BDL += _from_left(u_BDL, far_MD, starts_BL, half, half >= taps - 1, half < chunk_size)
    if earlier:
        y_BDL, past_BSD, far_MD = in_turn(y_BDL, past_BSD, far_MD)
        reached = min(length, taps - 1)
        half = 1 << (max(earlier, reached) - 1).bit_length()
        past_BD1H = jnp.swapaxes(jnp.pad(past_BSD, ((0, 0), (half - earlier, 0), (0, 0))), 1, 2)
        add_BDL = _next(past_BD1H[:, :, None], far_MD, half < chunk_size)[:, :, 0, :reached]
        if starts_BL is not None:
            add_BDL = jnp.where((starts_BL[:, None, :reached] < 0), add_BDL, 0)
        y_BDL += jnp.pad(add_BDL, ((0, 0), (0, 0), (0, length - reached)))
    return jnp.swapaxes(y_BDL, 1, 2)


# The transforms of every size of block at once would be the row many times over.
@partial(jax.checkpoint, static_argnums=(3, 4, 5))
def _from_left(
    u_BDL: jax.Array,
    far_MD: jax.Array,
    starts_BL: jax.Array | None,
    half: int,
    to_all: bool,
    multiply: bool,
) -> jax.Array:
    """What blocks of ``half`` tokens add to the next: all of them, or every other (left halves)."""
    batch, width, length = u_BDL.shape
    stride = 1 if to_all else 2
    blocks = -(-length // (stride * half)) * stride
    missing = blocks * half - length
    u_BDnH = jnp.pad(u_BDL, ((0, 0), (0, 0), (0, missing))).reshape(batch, width, blocks, half)
    left_BDnH = u_BDnH[:, :, : blocks - 1 : stride]
    if starts_BL is None:
        y_BDnH = _next(left_BDnH, far_MD, multiply)
    else:
        starts = jnp.pad(starts_BL, ((0, 0), (0, missing)), constant_values=length)
        starts_BnH = starts.reshape(batch, blocks, half)[:, 1::stride]
        middle_n1 = half * jnp.arange(1, blocks, stride)[:, None]
        crosses_BnH = middle_n1 - half + jnp.arange(half) >= starts_BnH[..., :1]
        y_BDnH = _next(jnp.where(crosses_BnH[:, None], left_BDnH, 0), far_MD, multiply)
        y_BDnH = jnp.where((starts_BnH < middle_n1)[:, None], y_BDnH, 0)
    zeros_between = ((0, 0, 0), (0, 0, 0), (1, 0, stride - 1), (0, 0, 0))
    y_BDnH = jax.lax.pad(y_BDnH, jnp.zeros((), y_BDnH.dtype), zeros_between)
    return y_BDnH.reshape(batch, width, -1)[:, :, :length]


def _next(left_BDnH: jax.Array, far_MD: jax.Array, multiply: bool) -> jax.Array:
    """What blocks of H tokens add to the H tokens after them: [B, D, n, H]."""
    half = left_BDnH.shape[-1]
    taps_KD = jnp.pad(far_MD[: 2 * half], ((0, max(0, 2 * half - len(far_MD))), (0, 0)))
    if multiply:
        across_HHD = toeplitz(jnp.roll(taps_KD, -half, axis=0))
        return einsum_f32("jid,bdnj->bdni", across_HHD, left_BDnH)
    y_BDnK: jax.Array = circular(left_BDnH, taps_KD.T[None, :, None], 2 * half)
    return y_BDnK[..., half:]
