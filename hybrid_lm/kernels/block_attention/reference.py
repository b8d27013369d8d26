"""The definition: the whole score matrix, masked. The truth."""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.block_attention.tiles import Tiles
from hybrid_lm.kernels.precision import einsum_f32


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
    batch, length, _, _ = q_BLHK.shape
    keys, groups = k_BSGK.shape[1:3]
    size = tiles.block_size
    own_L1 = jnp.arange(keys - length, keys)[:, None]
    within_BLS = jnp.arange(keys) - (own_L1 - tiles.within_BL[..., None])
    number_BLS = within_BLS // size  # of the key's block in the query's document; below 0 outside
    last_BL1 = tiles.within_BL[..., None] // size - local_blocks
    local_BLS = (number_BLS > last_BL1) & (within_BLS <= tiles.within_BL[..., None])
    far_BLS = (number_BLS <= last_BL1)[:, :, None]

    def of_tile(x_BTGM):
        tile_BL11 = jnp.maximum(tiles.tile_BL, 0)[..., None, None]
        return jnp.take_along_axis(x_BTGM, tile_BL11, axis=1)[:, :, :, None]

    is_chosen_BLGSM = of_tile(chosen_BTGM) == number_BLS[:, :, None, :, None]
    seen_BLGS = is_chosen_BLGSM.any(-1) & far_BLS | local_BLS[:, :, None]
    seen_BLGS &= within_BLS[:, :, None] >= 0
    q_BLGRK = q_BLHK.reshape(batch, length, groups, -1, q_BLHK.shape[-1])
    scores = einsum_f32("blgrk,bsgk->blgrs", q_BLGRK, k_BSGK) / q_BLHK.shape[-1] ** 0.5
    if log_gate_BTGM is not None:
        gates_BLGS = jnp.where(is_chosen_BLGSM, of_tile(log_gate_BTGM), 0).sum(-1)
        scores += jnp.where(far_BLS, gates_BLGS, 0)[:, :, :, None]
    weights = jax.nn.softmax(jnp.where(seen_BLGS[:, :, :, None], scores, -jnp.inf), axis=-1)
    y_BLGRP = einsum_f32("blgrs,bsgp->blgrp", weights.astype(v_BSGP.dtype), v_BSGP)
    return y_BLGRP.reshape(*q_BLHK.shape[:3], -1).astype(q_BLHK.dtype)
