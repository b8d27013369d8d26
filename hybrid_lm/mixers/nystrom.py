"""Nyströmformer: softmax attention through landmarks, made causal."""

import dataclasses
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.block_scan import LOW, carry, merge
from hybrid_lm.kernels.precision import einsum_f32, einsum_half
from hybrid_lm.kernels.pseudo_inverse import pseudo_inverse
from hybrid_lm.mixers.attention import Attention
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


@register("nystrom")
@dataclass(frozen=True)
class Nystrom(MixerConfig):
    """Softmax attention to the query's own block, and to landmarks in place of the earlier ones.

    A landmark (q', k') is the mean of a finished block's queries and keys; the last M of the
    document are kept. The scores ``q_i . k'_m + log(block_size)`` join those of the own block's
    tokens in one softmax, and the landmarks' values are ``W = pinv(A) G V`` with
    ``A = softmax(Q' K'^T)``, ``G = softmax(Q' K^T)``: equation 13 of Xiong et al. 2021 (arXiv
    2102.03902), its pseudo-inverse by equation 15. To look nowhere ahead and keep no old keys,
    row m of A and of G is normalised over what came since landmark m's block began, up to the
    last finished block.

    With blocks of one token and landmarks for all, and a converged inverse, it is softmax
    attention; so it is with one block as long as the document.
    """

    heads: int = 8
    """Heads; must divide the width."""
    landmarks: int = 64
    """M, finished blocks that are kept."""
    block_size: int = 128
    """Tokens that share a landmark, counted from the start of the document."""
    pinv_iterations: int = 6
    """Steps towards the pseudo-inverse."""
    causal: bool = True
    """Whether a query sees nothing later. False: the original, M landmarks of equal size for all of
    the document, and no tokens."""

    def build(self, width: int, rngs: nnx.Rngs) -> "NystromMixer":
        return NystromMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        marks, chunk = self.landmarks, min(self.block_size, length)
        window, chunks = self.block_size + chunk, -(-length // chunk)
        inverse = self.pinv_iterations * 4 * 2 * self.heads * marks**3
        of_landmarks = 4 * marks * marks * width + inverse
        if not self.causal:
            return 8 * width * width + 12 * width * marks + of_landmarks / length
        seen = 4 * width * (window + 2 * marks)
        per_row = (chunks + 1) * of_landmarks + chunks * 4 * width * marks * window
        return 8 * width * width + 8 * width + seen + per_row / length

    def is_causal(self) -> bool:
        return self.causal

    def limit(self, length: int) -> tuple[MixerConfig, MixerConfig] | None:
        if not self.causal:
            return None
        full = Attention(heads=self.heads, rope_theta=None, qk_norm=False)
        return dataclasses.replace(self, block_size=length), full


class NystromMixer(BlocksMixer):
    """State: ``kv`` [B, block_size - 1, 2, H, K], the last keys and values; in at least float32
    ``open`` [B, 2, H, K], sums of queries and keys of the unfinished block, ``landmarks``
    [B, M, 2, H, K] in a ring, ``values`` [B, M, H, K] and ``log_mass`` [B, M, H], their rows of
    ``G V`` and its normaliser; ``seen`` [B], tokens of the document so far; ``segment`` [B].
    None if not causal.
    """

    def __init__(self, config: Nystrom, width: int, rngs: nnx.Rngs):
        super().__init__(config.key, width, rngs, heads=config.heads, causal=config.causal)
        self.config = config

    def to_past(
        self,
        q_BLHK: jax.Array,
        k_BLHK: jax.Array,
        v_BLHK: jax.Array,
        ctx: Context,
        state: State | None,
    ) -> tuple[jax.Array, State]:
        config, (batch, length, _, _), dtype = self.config, q_BLHK.shape, q_BLHK.dtype
        resets_BL = ctx.resets_BL(None if state is None else state["segment"])
        held = self.initial_state(batch, dtype) if state is None else state
        blocks = Blocks(config.block_size, length, resets_BL, held["seen"])

        qk_BnC2HK = blocks.cut(jnp.stack([q_BLHK, k_BLHK], axis=2))
        members = blocks.members_BnC2[..., None, None, None]
        wide = jnp.promote_types(dtype, jnp.float32)
        sums = jnp.sum(jnp.where(members, qk_BnC2HK[:, :, :, None], 0), axis=2, dtype=wide)
        ended, open_ = blocks.finish(sums, held["open"])
        # Landmark l of a document is kept in slot l mod M.
        slot_M = jnp.arange(config.landmarks)
        written_BnM = slot_M == ((blocks.counts_Bn[:, 1:] - 1) % config.landmarks)[..., None]
        written_BnM &= blocks.ends_Bn[..., None]
        keeps_BnM = ~(written_BnM | blocks.firsts_Bn[..., None])
        mean = (ended / config.block_size)[:, :, None]
        mean = jnp.where(like(written_BnM, mean), mean, 0)
        named = ctx.implementation.block_scan
        marks = carry(keeps_BnM, mean, held["landmarks"], implementation=named)
        newest_Bn1 = blocks.counts_Bn[..., None] - 1
        number_BnM = newest_Bn1 - (newest_Bn1 - slot_M) % config.landmarks  # < 0: an empty slot

        kv_BnW2HK, past = blocks.windows(jnp.stack([k_BLHK, v_BLHK], axis=2), held["kv"])
        scores = einsum_half(
            "bnmhk,bnwhk->bnmhw",
            marks[:, 1:, :, 0].astype(dtype),
            kv_BnW2HK[:, :, :, 0],
        )
        sees = blocks.ended_BnW[:, :, None] & (number_BnM[:, 1:, :, None] >= 0)
        scores = jnp.where(sees[:, :, :, None], scores * self.head_dim**-0.5, LOW)
        weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
        values = einsum_half("bnmhw,bnwhp->bnmhp", weights, kv_BnW2HK[:, :, :, 1])
        log_mass = jax.nn.logsumexp(scores, axis=-1)
        starts = held["log_mass"], held["values"]
        log_mass, values = merge(keeps_BnM, log_mass, values, *starts, implementation=named)

        later = number_BnM[..., :, None] <= number_BnM[..., None, :]
        exact = dtype == wide
        a = self._softmax(marks, later & (number_BnM[..., :, None] >= 0), exact)
        inverse = self._inverse(a, exact, ctx)
        w_BnMHP = einsum_f32("bnhlm,bnmhp->bnlhp", inverse, values, exact=exact)
        slots = Slots(marks[:, :, :, 1], w_BnMHP, number_BnM >= 0, math.log(config.block_size))
        named = ctx.implementation.attention
        y_BnCHK = attend(blocks.cut(q_BLHK), kv_BnW2HK, blocks, slots, named)
        y_BLHK = y_BnCHK.reshape(batch, -1, *q_BLHK.shape[2:])[:, :length]
        kept = {"landmarks": marks[:, -1], "values": values[:, -1], "log_mass": log_mass[:, -1]}
        kept |= {"kv": past, "open": open_, "seen": blocks.seen_B}
        return y_BLHK, kept | {"segment": ctx.last_segment_B()}

    def to_document(
        self, q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, ctx: Context
    ) -> jax.Array:
        marks, dtype = self.config.landmarks, q_BLHK.dtype
        wide = jnp.promote_types(dtype, jnp.float32)
        own_BLS, place_BL = documents(ctx)
        size_BL = jnp.sum(own_BLS * own_BLS.sum(axis=1)[:, None], axis=2)
        landmark_BL = place_BL * marks // jnp.maximum(size_BL, 1)
        members_BLSM = (
            own_BLS[..., None] & (landmark_BL[..., None] == jnp.arange(marks))[:, :, None]
        )
        tokens_BSM = members_BLSM.sum(axis=1)
        qk_BL2HK = jnp.stack([q_BLHK, k_BLHK], axis=2).astype(wide)
        sums = einsum_f32("blsm,blzhk->bsmzhk", members_BLSM.astype(wide), qk_BL2HK)
        means = sums / like(jnp.maximum(tokens_BSM, 1), sums)
        scores = einsum_f32("bsmhk,blhk->bshml", means[:, :, :, 0].astype(dtype), k_BLHK)
        sees = jnp.moveaxis(own_BLS, 1, 2)[:, :, None, None]
        scores = jnp.where(sees, scores * self.head_dim**-0.5, LOW)
        weights = jax.nn.softmax(scores, axis=-1).astype(dtype)
        values = einsum_f32("bshml,blhp->bshmp", weights, v_BLHK)
        used_BSM = tokens_BSM > 0
        exact = dtype == wide
        a = self._softmax(means, used_BSM[..., :, None] & used_BSM[..., None, :], exact)
        inverse = self._inverse(a, exact, ctx)
        w_BSMHP = einsum_f32("bshlm,bshmp->bslhp", inverse, values, exact=exact)
        sees_BLSM = own_BLS[..., None] & used_BSM[:, None]
        return attend_to_documents(q_BLHK, means[:, :, :, 1], w_BSMHP, sees_BLSM)

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        if not self.config.causal:
            return ()
        config, wide = self.config, jnp.promote_types(dtype, jnp.float32)
        heads, marks = config.heads, config.landmarks
        none = jnp.zeros((batch,), jnp.int32)
        return {
            "kv": jnp.zeros((batch, config.block_size - 1, 2, heads, self.head_dim), dtype),
            "open": jnp.zeros((batch, 2, heads, self.head_dim), wide),
            "landmarks": jnp.zeros((batch, marks, 2, heads, self.head_dim), wide),
            "values": jnp.zeros((batch, marks, heads, self.head_dim), wide),
            "log_mass": jnp.full((batch, marks, heads), LOW, wide),
            "seen": none,
            "segment": none + CONTINUES,
        }

    def _softmax(self, marks: jax.Array, sees_BnMM: jax.Array, exact: bool) -> jax.Array:
        """A [B, n, H, M, M] of landmarks [B, n, M, 2, H, K]; 0 where not seen."""
        q, k = marks[:, :, :, 0], marks[:, :, :, 1]
        scores = einsum_f32("bnlhk,bnmhk->bnhlm", q, k, exact=exact)
        sees = sees_BnMM[:, :, None]
        scores = jnp.where(sees, scores * self.head_dim**-0.5, LOW)
        return jnp.where(sees, jax.nn.softmax(scores, axis=-1), 0)

    def _inverse(self, a: jax.Array, exact: bool, ctx: Context) -> jax.Array:
        named = ctx.implementation.pseudo_inverse
        return pseudo_inverse(a, self.config.pinv_iterations, exact=exact, implementation=named)
