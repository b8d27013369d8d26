"""Linformer: low rank over the length, made causal."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.block_scan import carry
from hybrid_lm.kernels.precision import einsum_f32, einsum_half
from hybrid_lm.layers import param, project
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, register
from hybrid_lm.mixers.blocks import (
    Blocks,
    BlocksMixer,
    Slots,
    attend,
    attend_to_documents,
    documents,
    like,
)


@register("linformer")
@dataclass(frozen=True)
class Linformer(MixerConfig):
    """Softmax attention to M slots and to the tokens of the query's own block.

    Slot m has the key ``mean_b sum_j E_jm k_bj`` and the value ``mean_b sum_j F_jm v_bj`` over the
    finished blocks b of the document. Wang et al. 2020 (arXiv 2006.04768), equation 7, project
    keys and values over the whole length; here the same E and F of one block serve all blocks, so
    that no output looks ahead and any length runs. A block as long as the document makes it full
    attention.
    """

    heads: int = 8
    """Heads; must divide the width."""
    block_size: int = 128
    """Tokens that E and F project at once, counted from the start of the document."""
    slots: int = 64
    """M, what the finished blocks are projected to."""
    causal: bool = True
    """Whether a query sees nothing later. False: the slots hold all blocks of the document, and a
    query sees no tokens (the original, if the document is no longer than a block)."""

    def build(self, width: int, rngs: nnx.Rngs) -> "LinformerMixer":
        return LinformerMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        window = self.block_size + min(self.block_size, length)
        look_up = 4 * self.heads * self.slots * self.block_size
        seen = window + 4 * self.slots if self.causal else 2 * self.slots
        return 8 * width * width + look_up + 4 * width * seen

    def is_causal(self) -> bool:
        return self.causal


class LinformerMixer(BlocksMixer):
    """State: ``kv`` [B, block_size - 1, 2, H, K], the last keys and values; in at least float32
    ``slots`` and ``open`` [B, 2, H, M, K], sums over the finished blocks and the unfinished one;
    ``seen`` [B], tokens of the document so far; ``segment`` [B]. None if not causal.
    """

    def __init__(self, config: Linformer, width: int, rngs: nnx.Rngs):
        super().__init__(config.key, width, rngs, heads=config.heads, causal=config.causal)
        self.config = config
        normal = nnx.initializers.normal(config.slots**-0.5)
        projections = (config.block_size, 2, config.heads, config.slots)
        self.projections = param(rngs, projections, (None, None, "heads", None), normal)

    def to_past(
        self,
        q_BLHK: jax.Array,
        k_BLHK: jax.Array,
        v_BLHK: jax.Array,
        ctx: Context,
        state: State | None,
    ) -> tuple[jax.Array, State]:
        kv_BL2HK = jnp.stack([k_BLHK, v_BLHK], axis=2)
        config, (batch, length, _, _) = self.config, q_BLHK.shape
        resets_BL = ctx.resets_BL(None if state is None else state["segment"])
        held = self.initial_state(batch, q_BLHK.dtype) if state is None else state
        blocks = Blocks(config.block_size, length, resets_BL, held["seen"])
        factors = self._factors(blocks.place_BnC, q_BLHK.dtype)
        members = blocks.members_BnC2[..., None, None, None].astype(q_BLHK.dtype)
        sums = einsum_half(
            "bncxzhm,bnczhk->bnxzhmk", factors[:, :, :, None] * members, blocks.cut(kv_BL2HK)
        )
        ended, open_ = blocks.finish(sums, held["open"])
        named = ctx.implementation.block_scan
        totals = carry(~blocks.firsts_Bn, ended, held["slots"], implementation=named)
        mean = totals / like(jnp.maximum(blocks.counts_Bn, 1), totals)
        mean = jnp.swapaxes(mean, 3, 4).astype(q_BLHK.dtype)
        used_BnM = jnp.ones((*blocks.counts_Bn.shape, config.slots), bool)
        kv_BnW2HK, past = blocks.windows(kv_BL2HK, held["kv"])
        slots = Slots(mean[:, :, 0], mean[:, :, 1], used_BnM)
        named = ctx.implementation.attention
        y_BnCHK = attend(blocks.cut(q_BLHK), kv_BnW2HK, blocks, slots, named)
        y_BLHK = y_BnCHK.reshape(batch, -1, *q_BLHK.shape[2:])[:, :length]
        next_state = {"kv": past, "slots": totals[:, -1], "open": open_, "seen": blocks.seen_B}
        return y_BLHK, next_state | {"segment": ctx.last_segment_B()}

    def to_document(
        self, q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, ctx: Context
    ) -> jax.Array:
        kv_BL2HK = jnp.stack([k_BLHK, v_BLHK], axis=2)
        own_BLS, place_BL = documents(ctx)
        factors = self._factors(place_BL % self.config.block_size, q_BLHK.dtype)
        of_documents = factors[:, :, None] * own_BLS[..., None, None, None].astype(factors.dtype)
        sums = einsum_f32("blszhm,blzhk->bszmhk", of_documents, kv_BL2HK)
        blocks_BS = -(-own_BLS.sum(axis=1) // self.config.block_size)
        mean = sums / like(jnp.maximum(blocks_BS, 1), sums)
        return attend_to_documents(q_BLHK, mean[:, :, 0], mean[:, :, 1], own_BLS[..., None])

    def _factors(self, place: jax.Array, dtype: DTypeLike) -> jax.Array:
        """E and F at the places of tokens: [..., 2, H, M]."""
        # A product with ones and zeros: the gradient of a look-up would be a scatter.
        one_hot = jax.nn.one_hot(place, self.config.block_size, dtype=dtype)
        return project("...j,jzhm->...zhm", one_hot, self.projections)

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        config = self.config
        if not config.causal:
            return ()
        kv_shape = (batch, config.block_size - 1, 2, config.heads, self.head_dim)
        slots_shape = (batch, 2, config.heads, config.slots, self.head_dim)
        zeros = jnp.zeros(slots_shape, jnp.promote_types(dtype, jnp.float32))
        none = jnp.zeros((batch,), jnp.int32)
        kv = jnp.zeros(kv_shape, dtype)
        return {"kv": kv, "slots": zeros, "open": zeros, "seen": none, "segment": none + CONTINUES}
