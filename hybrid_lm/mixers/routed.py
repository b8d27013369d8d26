"""Sparse attention on learned subsets: a block of tokens chooses the earlier blocks it reads."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.block_attention import Tiles, block_attention, slices
from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.mixers.attention import AttentionMixer
from hybrid_lm.mixers.base import Context, MixerConfig, State, register
from hybrid_lm.mixers.block_sparse import BlockSparse


@register("routed")
@dataclass(frozen=True)
class Routed(BlockSparse):
    """Softmax attention to the latest blocks and to the ``top_k`` earlier ones of highest score

    ``s_jb = q_first(j) . mean(k over block b) / sqrt(K)``, ``q_first(j)`` the query of the first
    token of block j (its mean over the query heads that share a key/value head).

    Mixture of block attention (MoBA, Lu et al. 2025, arXiv 2502.13189, equations 2 to 6) scores
    blocks like this for every single token. As in Native Sparse Attention (Yuan et al. 2025, arXiv
    2502.11089, section 3.3) many queries share a choice here, so that keys are read in blocks; but
    a choice by all queries of a block would let its first token know its last. The first token is
    all that a block's tokens have in common in their past and present: the choice is causal, and
    known as soon as the block begins.

    Choosing has no gradient. With ``gated``, keys of a chosen block count ``sigmoid(s_jb)`` times,
    as experts of a mixture are multiplied by their gate to train the router (Shazeer et al. 2017,
    arXiv 1701.06538, section 2): the score learns how much a block is worth. Without, blocks are
    chosen as in MoBA and equal full attention when all are chosen. Of blocks of equal score the
    earlier is chosen.
    """

    top_k: int = 4
    """Earlier blocks that are chosen."""
    gated: bool = True
    """Weigh the chosen blocks by the sigmoid of their score."""

    def build(self, width: int, rngs: nnx.Rngs) -> "RoutedMixer":
        return RoutedMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        kv_heads, head_dim = self.attention().resolved(width)
        earlier, latest = self.latest(length)
        keys = float(np.mean(latest + np.minimum(earlier, self.top_k) * self.block_size))
        scores = 2 * kv_heads * head_dim * float(np.mean(earlier)) / self.block_size
        return self.flops_for(width, keys) + scores

    def limit(self, length: int) -> tuple[MixerConfig, MixerConfig]:
        blocks = -(-length // self.block_size)
        return dataclasses.replace(self, top_k=blocks, gated=False), self.attention()


class RoutedMixer(AttentionMixer):
    """State: that of attention without a window, and ``query`` [B, H, K], the query of the first
    token of the latest token's block.
    """

    def __init__(self, config: Routed, width: int, rngs: nnx.Rngs):
        super().__init__(config.attention(), width, rngs)
        self.routing = config

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        query = jnp.zeros((batch, self.config.heads, self.head_dim), dtype)
        return super().initial_state(batch, dtype, capacity) | {"query": query}

    def _attend(
        self,
        q_BLHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        starts_BL: jax.Array | None,
        ctx: Context,
        state: State | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        (batch, length), keys = q_BLHK.shape[:2], k_BSGK.shape[1]
        routing = self.routing
        tiles = Tiles.of(starts_BL, batch, length, keys, routing.block_size)

        def query_BTHK(place_BT: jax.Array) -> jax.Array:
            """Queries at places among the L, those before the row from the state."""
            place_BT11 = place_BT[..., None, None]
            taken = jnp.take_along_axis(q_BLHK, jnp.clip(place_BT11, 0, length - 1), axis=1)
            if state is None:
                return taken
            return jnp.where(place_BT11 < 0, state["query"][:, None].astype(taken.dtype), taken)

        last_B1 = length - 1 - tiles.within_BL[:, -1:] % routing.block_size
        kept = {"query": query_BTHK(last_B1)[:, 0].astype(ctx.dtype)}
        if keys <= routing.block_size:  # One block holds all.
            return super()._attend(q_BLHK, k_BSGK, v_BSGK, starts_BL, ctx, state)[0], kept
        first_BTHK = query_BTHK(tiles.first_BT - (keys - length))
        chosen_BTGM, score_BTGM = self._choose(first_BTHK, k_BSGK, tiles)
        y_BLHK = block_attention(
            q_BLHK,
            k_BSGK,
            v_BSGK,
            tiles,
            chosen_BTGM,
            jax.nn.log_sigmoid(score_BTGM) if routing.gated else None,
            local_blocks=routing.local_blocks,
            implementation=ctx.implementation.block_attention,
        )
        return y_BLHK, kept

    def _choose(
        self, first_BTHK: jax.Array, k_BSGK: jax.Array, tiles: Tiles
    ) -> tuple[jax.Array, jax.Array]:
        """Numbers of the chosen blocks (-1 where there are fewer) and their scores (0 there)."""
        batch, count = first_BTHK.shape[:2]
        wide = jnp.promote_types(k_BSGK.dtype, jnp.float32)
        first_BTGRK = first_BTHK.reshape(batch, count, self.kv_heads, -1, self.head_dim)
        first_BTGK = jnp.mean(first_BTGRK, axis=3, dtype=wide)
        shape_BGF = (batch, self.kv_heads, tiles.finished_BF.shape[1])
        k_BGSK = jnp.moveaxis(k_BSGK, 2, 1)
        if tiles.aligned:  # The blocks follow each other.
            k_BGSK = k_BGSK[:, :, : shape_BGF[2] * tiles.block_size]
            k_BGFCK = k_BGSK.reshape(*shape_BGF, tiles.block_size, self.head_dim)
        else:
            first_BGF = jnp.broadcast_to(tiles.finished_BF[:, None], shape_BGF)
            k_BGFCK = slices(k_BGSK, first_BGF, tiles.block_size)
        mean_BGFK = jnp.mean(k_BGFCK, axis=3, dtype=wide)
        scores = einsum_f32("btgk,bgfk->btgf", first_BTGK, mean_BGFK) / self.head_dim**0.5
        number_BTF = jnp.arange(shape_BGF[2]) - tiles.base_BT[..., None]
        last_BT1 = tiles.number_BT[..., None] - self.routing.local_blocks
        is_earlier_BT1F = ((number_BTF >= 0) & (number_BTF <= last_BT1))[:, :, None]
        scores = jnp.where(is_earlier_BT1F, scores, -jnp.inf)
        most = min(self.routing.top_k, shape_BGF[2])
        score_BTGM, index_BTGM = jax.lax.top_k(scores, most)
        number_BTGM = index_BTGM - tiles.base_BT[..., None, None]
        there_BTGM = score_BTGM > -jnp.inf
        return jnp.where(there_BTGM, number_BTGM, -1), jnp.where(there_BTGM, score_BTGM, 0)
