"""Blocks in batched matrix products: the latest by windows over the row, the chosen gathered."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.block_attention.tiles import Tiles
from hybrid_lm.kernels.precision import einsum_half

LOW = -1e30  # below any score, and finite so that the maximum of nothing is harmless


class _Softmax(NamedTuple):
    """A softmax over some of a query's keys: ``sum exp(score - top) (v, 1)``."""

    top: jax.Array
    total: jax.Array
    values: jax.Array


def block_attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGP: jax.Array,
    tiles: Tiles,
    chosen_BTGM: jax.Array,
    log_gate_BTGM: jax.Array | None,
    local_blocks: int,
) -> jax.Array:
    """See `hybrid_lm.kernels.block_attention.block_attention`."""
    batch, length, heads, _ = q_BLHK.shape
    groups = k_BSGK.shape[2]
    q_BLGRK = q_BLHK.reshape(batch, length, groups, heads // groups, -1)
    q_BGLRK = jnp.moveaxis(q_BLGRK, 2, 1)
    k_BGSK, v_BGSP = jnp.moveaxis(k_BSGK, 2, 1), jnp.moveaxis(v_BSGP, 2, 1)
    near = _latest(q_BGLRK, k_BGSK, v_BGSP, tiles, local_blocks)
    far = _chosen(q_BGLRK, k_BGSK, v_BGSP, tiles, chosen_BTGM, log_gate_BTGM, local_blocks)
    top = jnp.maximum(near.top, far.top)
    near_scale, far_scale = jnp.exp(near.top - top), jnp.exp(far.top - top)
    values = near.values * near_scale[..., None] + far.values * far_scale[..., None]
    y_BGLRP = values / (near.total * near_scale + far.total * far_scale)[..., None]
    return jnp.moveaxis(y_BGLRP, 1, 2).reshape(*q_BLHK.shape[:3], -1).astype(q_BLHK.dtype)


def _softmax(q_BGnCRK, k_BGnSK, v_BGnSP, seen_BGnCS, bias_BGnS=None) -> _Softmax:
    """Queries of each of n blocks over the keys S of the block -> [B, G, n, C, R]."""
    scores = einsum_half("bgncrk,bgnsk->bgncrs", q_BGnCRK, k_BGnSK) / q_BGnCRK.shape[-1] ** 0.5
    if bias_BGnS is not None:
        scores += bias_BGnS[:, :, :, None, None]
    # XLA may compute them anew, and round them differently, for each of their uses: large scores
    # would then lie far from their own maximum.
    scores = jax.lax.optimization_barrier(jnp.where(seen_BGnCS[..., None, :], scores, LOW))
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1))
    weights = jnp.where(seen_BGnCS[..., None, :], jnp.exp(scores - top[..., None]), 0.0)
    values = einsum_half("bgncrs,bgnsp->bgncrp", weights.astype(v_BGnSP.dtype), v_BGnSP)
    return _Softmax(top, weights.sum(-1), values)


def _pad(x: jax.Array, before: int, after: int, axis: int, value: float = 0) -> jax.Array:
    """Pad, or cut where the width is negative, both ends of an axis."""
    widths = [(before, after, 0) if i == axis else (0, 0, 0) for i in range(x.ndim)]
    padded: Any = jax.lax.pad(x, jnp.asarray(value, x.dtype), widths)
    return padded


def _latest(q_BGLRK, k_BGSK, v_BGSP, tiles: Tiles, local_blocks: int) -> _Softmax:
    """Over the latest blocks: a chunk of queries and the keys that one of them may see."""
    length, keys = q_BGLRK.shape[2], k_BGSK.shape[2]
    block, offset = tiles.block_size, keys - q_BGLRK.shape[2]
    size = min(block, length)
    chunks = -(-length // size)
    pieces = local_blocks if tiles.aligned else local_blocks + 1
    before = (pieces - 1) * block

    def cut(x, axis):
        x = _pad(x, 0, chunks * size - length, axis)
        return x.reshape(*x.shape[:axis], chunks, size, *x.shape[axis + 1 :])

    def windows(x_BGSK):
        x_BGSK = _pad(x_BGSK, before - offset, chunks * size - length, 2)
        if chunks == 1:
            return x_BGSK[:, :, None]
        shifts = [x_BGSK[:, :, i * size :][:, :, : chunks * size] for i in range(pieces)]
        blocks = [x.reshape(*x.shape[:2], chunks, size, -1) for x in shifts]
        return jnp.concatenate(blocks, axis=3)

    skipped_BL = jnp.maximum(tiles.within_BL // block - (local_blocks - 1), 0) * block
    own_nC = cut(jnp.arange(length, dtype=jnp.int32), 0)
    first_BnC = cut(jnp.arange(length) - tiles.within_BL + skipped_BL, 1)
    key_nS = jnp.arange(chunks)[:, None] * size + jnp.arange(-before, size)
    seen_BnCS = (key_nS[:, None] >= first_BnC[..., None]) & (key_nS[:, None] <= own_nC[..., None])
    parts = _softmax(cut(q_BGLRK, 2), windows(k_BGSK), windows(v_BGSP), seen_BnCS[:, None])
    return _Softmax(*(x.reshape(*x.shape[:2], -1, *x.shape[4:])[:, :, :length] for x in parts))


def _chosen(
    q_BGLRK, k_BGSK, v_BGSP, tiles: Tiles, chosen_BTGM, log_gate_BTGM, local_blocks: int
) -> _Softmax:
    """Over the chosen blocks, one tile of queries after another."""
    batch, groups, length = q_BGLRK.shape[:3]
    block, offset = tiles.block_size, k_BGSK.shape[2] - length
    count, most = chosen_BTGM.shape[1], chosen_BTGM.shape[3]
    is_far_BTGM = (chosen_BTGM >= 0) & (
        chosen_BTGM <= (tiles.number_BT - local_blocks)[..., None, None]
    )
    first_BTGM = tiles.start_BT[..., None, None] + chosen_BTGM * block
    first_BGTM = jnp.moveaxis(jnp.where(is_far_BTGM, first_BTGM, 0), 2, 1)

    def gathered(x_BGSK):
        x_BGNCK = slices(x_BGSK, first_BGTM.reshape(batch, groups, -1), block)
        return x_BGNCK.reshape(batch, groups, count, most * block, -1)

    if tiles.aligned:
        q_BGTCRK = _pad(q_BGLRK, -block, (count + 1) * block - length, 2)
        q_BGTCRK = q_BGTCRK.reshape(batch, groups, count, block, *q_BGLRK.shape[3:])
    else:
        flat_BGLF = _pad(q_BGLRK.reshape(batch, groups, length, -1), block, block, 2)
        first_BGT = jnp.broadcast_to(
            (tiles.first_BT - offset + block)[:, None], (batch, groups, count)
        )
        q_BGTCRK = slices(flat_BGLF, first_BGT, block)
        q_BGTCRK = q_BGTCRK.reshape(*q_BGTCRK.shape[:4], *q_BGLRK.shape[3:])
    seen_BGTS = jnp.repeat(jnp.moveaxis(is_far_BTGM, 2, 1), block, axis=-1)
    bias_BGTS = None
    if log_gate_BTGM is not None:
        bias_BGTS = jnp.repeat(jnp.moveaxis(log_gate_BTGM, 2, 1), block, axis=-1)
    seen_BGTCS = jnp.broadcast_to(seen_BGTS[..., None, :], (*q_BGTCRK.shape[:4], most * block))
    parts = _softmax(q_BGTCRK, gathered(k_BGSK), gathered(v_BGSP), seen_BGTCS, bias_BGTS)
    flat = [x.reshape(batch, groups, count * block, *x.shape[4:]) for x in parts]
    empty = (LOW, 0, 0)
    if tiles.aligned:
        after = length - (count + 1) * block
        return _Softmax(*(_pad(x, block, after, 2, e) for x, e in zip(flat, empty, strict=True)))
    slot_BL = jnp.maximum(tiles.tile_BL, 0) * block + tiles.within_BL % block

    def of_query(x, nothing):
        shape = (batch, 1, length, *[1] * (x.ndim - 3))
        taken = jnp.take_along_axis(x, slot_BL.reshape(shape), axis=2)
        return jnp.where((tiles.tile_BL >= 0).reshape(shape), taken, nothing)

    return _Softmax(*map(of_query, flat, empty))


def slices(x_BGSK: jax.Array, first_BGN: jax.Array, size: int) -> jax.Array:
    """``x[:, :, first : first + size]`` for N firsts -> [B, G, N, size, K].

    The gradient sums over the slices that hold a row in float32 at least.
    """
    x_BGNCK: Any = _slices(x_BGSK, first_BGN, size)
    return x_BGNCK


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _slices(x_BGSK, first_BGN, size):

    def cut(x_SK, first):
        return jax.lax.dynamic_slice_in_dim(x_SK, first, size)

    return jax.vmap(jax.vmap(jax.vmap(cut, (None, 0))))(x_BGSK, first_BGN)


def _slices_forward(x_BGSK, first_BGN, size):
    return _slices(x_BGSK, first_BGN, size), (x_BGSK, first_BGN)


def _slices_backward(size, saved, d_BGNCK):
    x_BGSK, first_BGN = saved

    def add(first_N, d_NCK):
        place_NC = first_N[:, None] + jnp.arange(size)
        zero_SK = jnp.zeros(x_BGSK.shape[2:], jnp.promote_types(x_BGSK.dtype, jnp.float32))
        return zero_SK.at[place_NC].add(d_NCK.astype(zero_SK.dtype))

    return jax.vmap(jax.vmap(add))(first_BGN, d_BGNCK).astype(x_BGSK.dtype), None


_slices.defvjp(_slices_forward, _slices_backward)
