"""Blocks of equal size counted from the start of each document, wherever it starts in a row.

For mixers that compress finished blocks and see the unfinished one token by token. Rows are cut in
chunks no longer than a block, so that at most one block ends in a chunk, and it began in that chunk
or in the one before it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.attention.masked import masked_attention
from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.mixers.base import NO_STATE, Context, State
from hybrid_lm.mixers.heads import HeadsMixer


class BlocksMixer(HeadsMixer):
    """Attention that treats finished blocks as a whole: causal, or to the whole document."""

    def __init__(self, key: str, width: int, rngs: nnx.Rngs, *, heads: int, causal: bool):
        super().__init__(key, width, rngs, heads=heads)
        self.causal = causal

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        qkv = self.projected(x_BLD)
        if self.causal:
            y_BLHK, state = self.to_past(*qkv, ctx, state)
        elif state is None:
            y_BLHK, state = self.to_document(*qkv, ctx), ()
        else:
            raise UserError(NO_STATE)
        return self.output(y_BLHK), state

    def to_past(
        self,
        q_BLHK: jax.Array,
        k_BLHK: jax.Array,
        v_BLHK: jax.Array,
        ctx: Context,
        state: State | None,
    ) -> tuple[jax.Array, State]:
        """What each token finds up to itself, and the next state."""
        raise NotImplementedError

    def to_document(
        self, q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, ctx: Context
    ) -> jax.Array:
        """What each token finds in its whole document."""
        raise NotImplementedError


class Blocks:
    """The blocks of ``size`` tokens in a row of ``length``, cut in n chunks of C tokens.

    Args:
        resets_BL: True where a document starts (see `Context.resets_BL`).
        seen_B: tokens of the current document before the row.

    Attributes:
        place_BnC: place of each token within its block.
        members_BnC2: whether a token belongs to the block that ends in its chunk, and to the block
            that the chunk leaves unfinished.
        ends_Bn: whether a block ends in the chunk.
        firsts_Bn: whether one does that is the first of its document.
        before_BnC: whether a token sees finished blocks, but none that ends in its chunk.
        after_BnC: whether a token sees the block that ends in its chunk.
        counts_Bn: finished blocks of the document up to the one that ends in the chunk (1 where
            none does); one entry more than chunks, the first for the row before.
        ended_BnW: whether a token of a chunk's window (see `windows`) is of the block that ends in
            the chunk.
        own_BnCW: whether it is of the token's own block and not later than the token.
        seen_B: tokens of the last document so far.
    """

    def __init__(
        self,
        size: int,
        length: int,
        resets_BL: jax.Array | None,
        seen_B: jax.Array,
    ):
        self.size, self.length = size, length
        self.chunk = chunk = min(size, length)
        self.chunks = chunks = -(-length // chunk)
        # Without documents all below is constant, and XLA would take long to fold it.
        seen_B = jax.lax.optimization_barrier(seen_B)
        token_L = jnp.arange(length, dtype=jnp.int32)
        start_BL = jnp.broadcast_to(-seen_B[:, None], (seen_B.shape[0], length))
        if resets_BL is not None:
            start_BL = jax.lax.cummax(jnp.where(resets_BL, token_L[None, :], start_BL), axis=1)
        start_BnC = self.cut(start_BL)
        token_nC = jnp.arange(chunks * chunk, dtype=jnp.int32).reshape(1, chunks, chunk)
        real_nC = token_nC < length
        age_BnC = token_nC - start_BnC  # place within the document
        self.place_BnC = age_BnC % size
        block_BnC = token_nC - self.place_BnC  # where the token's block starts
        first_n = token_nC[:, :, 0]
        last_n = jnp.minimum(first_n + chunk, length) - 1
        is_end_BnC = real_nC & (self.place_BnC == size - 1)
        self.ends_Bn = jnp.any(is_end_BnC, axis=2)
        end_Bn = jnp.max(jnp.where(is_end_BnC, token_nC, -2 * size), axis=2)
        ended_Bn = end_Bn - (size - 1)  # where the block that ends in the chunk started
        # Starts of blocks never decrease along a row.
        block_last_Bn = jnp.max(jnp.where(real_nC, block_BnC, -size), axis=2)
        is_open_Bn = end_Bn != last_n
        in_ended_BnC = real_nC & self.ends_Bn[..., None] & (block_BnC == ended_Bn[..., None])
        in_open_BnC = real_nC & is_open_Bn[..., None] & (block_BnC == block_last_Bn[..., None])
        self.members_BnC2 = jnp.stack([in_ended_BnC, in_open_BnC], axis=-1)
        self._ended_from_before_Bn = self.ends_Bn & (ended_Bn < first_n)
        self._open_from_before_B = (is_open_Bn & (block_last_Bn < first_n))[:, -1]
        sees_BnC = age_BnC >= size
        self.after_BnC = sees_BnC & (block_BnC > first_n[..., None])
        self.before_BnC = sees_BnC & ~self.after_BnC
        finished_BnC = (age_BnC + 1) // size
        counts_Bn = jnp.max(jnp.where(is_end_BnC, finished_BnC, 1), axis=2)
        self.firsts_Bn = self.ends_Bn & (counts_Bn == 1)
        self.counts_Bn = jnp.concatenate([seen_B[:, None] // size, counts_Bn], axis=1)
        self.seen_B = length - start_BL[:, -1]
        # The window of a chunk: the tokens that can be in the blocks of its own tokens.
        token_nW = first_n[..., None] - size + jnp.arange(size + chunk, dtype=jnp.int32)
        self.ended_BnW = (token_nW >= ended_Bn[..., None]) & (token_nW <= end_Bn[..., None])
        self.own_BnCW = (token_nW[:, :, None] >= block_BnC[..., None]) & (
            token_nW[:, :, None] <= token_nC[..., None]
        )

    def cut(self, x: jax.Array) -> jax.Array:
        """[B, L, ...] -> [B, n, C, ...], zeros at the end."""
        beyond = self.chunks * self.chunk - self.length
        x = jnp.pad(x, [(0, 0), (0, beyond)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(x.shape[0], self.chunks, self.chunk, *x.shape[2:])

    def windows(self, x: jax.Array, past: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, L, ...] and the ``size - 1`` tokens before them -> [B, n, size + C, ...], and the
        last ``size - 1`` tokens.
        """
        x_S = jnp.concatenate([past.astype(x.dtype), x], axis=1)
        own = self.cut(x)
        earlier = jnp.pad(x_S, [(0, 0), (1, 0)] + [(0, 0)] * (x.ndim - 2))
        earlier = earlier[:, : (self.chunks - 1) * self.chunk + self.size]
        earlier = earlier.reshape(x.shape[0], self.chunks, self.size, *x.shape[2:])
        return jnp.concatenate([earlier, own], axis=2), x_S[:, x_S.shape[1] - (self.size - 1) :]

    def finish(self, sums_Bn2: jax.Array, open_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Sums over the `members_BnC2` of each chunk -> sums over the block that ends in each chunk
        (0 where none does), and over the block that the row leaves unfinished.

        ``open_B`` is the latter of the row before.
        """
        ended_Bn, left_Bn = sums_Bn2[:, :, 0], sums_Bn2[:, :, 1]
        came_Bn = jnp.concatenate([open_B[:, None], left_Bn[:, :-1]], axis=1)
        ended_Bn += jnp.where(like(self._ended_from_before_Bn, came_Bn), came_Bn, 0)
        from_before = like(self._open_from_before_B, open_B)
        return ended_Bn, left_Bn[:, -1] + jnp.where(from_before, came_Bn[:, -1], 0)


class Slots(NamedTuple):
    """What stands for finished blocks: keys, values and which of them are in use.

    ``bias`` is added to the scores of all.
    """

    k_BnMHK: jax.Array
    v_BnMHP: jax.Array
    used_BnM: jax.Array
    bias: float = 0.0


def attend(
    q_BnCHK: jax.Array,
    kv_BnW2HK: jax.Array,
    blocks: Blocks,
    slots: Slots,
    implementation: str | None,
) -> jax.Array:
    """Causal softmax attention to slots and to the tokens of the own block -> y_BnCHP.

    The slots, one entry more than chunks, are those after each chunk's finished block.
    ``implementation``: see `masked_attention`.
    """

    def with_slots(x_BnWHK, slots_BnMHK):
        slots_BnMHK = slots_BnMHK.astype(x_BnWHK.dtype)
        x_BnSHK = jnp.concatenate([x_BnWHK, slots_BnMHK[:, :-1], slots_BnMHK[:, 1:]], axis=2)
        return x_BnSHK.reshape(-1, *x_BnSHK.shape[2:])

    before_BnCM = blocks.before_BnC[..., None] & slots.used_BnM[:, :-1, None]
    after_BnCM = blocks.after_BnC[..., None] & slots.used_BnM[:, 1:, None]
    sees_BnCS = jnp.concatenate([blocks.own_BnCW, before_BnCM, after_BnCM], axis=-1)
    bias_S = jnp.where(jnp.arange(sees_BnCS.shape[-1]) < kv_BnW2HK.shape[2], 0.0, slots.bias)
    sees_BCS = sees_BnCS.reshape(-1, *sees_BnCS.shape[2:])
    y_BCHP = masked_attention(
        q_BnCHK.reshape(-1, *q_BnCHK.shape[2:]),
        with_slots(kv_BnW2HK[:, :, :, 0], slots.k_BnMHK),
        with_slots(kv_BnW2HK[:, :, :, 1], slots.v_BnMHP),
        sees_BCS,
        jnp.broadcast_to(bias_S, sees_BCS.shape) if slots.bias else None,
        implementation=implementation,
    )
    return y_BCHP.reshape(q_BnCHK.shape)


def documents(ctx: Context) -> tuple[jax.Array, jax.Array]:
    """Which of the row's documents each token is in [B, L, S], and its place in it [B, L].

    For mixers that see whole documents; S is `Context.max_segments`, 1 without segment ids.

    Raises:
        UserError: if there are segment ids but no bound on their runs.
    """
    batch, length = ctx.positions_BL.shape
    resets_BL = ctx.resets_BL(None)
    token_BL = jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (batch, length))
    if resets_BL is None:
        return jnp.ones((batch, length, 1), bool), token_BL
    if ctx.max_segments is None:
        raise UserError("a mixer with causal=False takes packed rows only with max_segments")
    number_BL = jnp.cumsum(resets_BL, axis=1) - 1
    start_BL = jax.lax.cummax(jnp.where(resets_BL, token_BL, 0), axis=1)
    return number_BL[..., None] == jnp.arange(ctx.max_segments), token_BL - start_BL


def attend_to_documents(
    q_BLHK: jax.Array, k_BSMHK: jax.Array, v_BSMHP: jax.Array, sees_BLSM: jax.Array
) -> jax.Array:
    """Softmax attention to the M slots of the own document -> y_BLHP; NaN for a token of none."""
    dim = q_BLHK.shape[-1]
    dots = einsum_f32("blhk,bsmhk->blhsm", q_BLHK, k_BSMHK.astype(q_BLHK.dtype)) * dim**-0.5
    scores = jnp.where(sees_BLSM[:, :, None], dots, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=(-2, -1)).astype(q_BLHK.dtype)
    y_BLHP = einsum_f32("blhsm,bsmhp->blhp", weights, v_BSMHP.astype(q_BLHK.dtype))
    return y_BLHP.astype(q_BLHK.dtype)


def like(mask: jax.Array, x: jax.Array) -> jax.Array:
    """The mask with as many dimensions as x, of size 1 at the end."""
    return mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
