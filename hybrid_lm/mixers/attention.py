"""Softmax attention: grouped queries, rotary positions, normalised queries and keys, a window."""

import dataclasses
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.attention import attention
from hybrid_lm.kernels.rotary import queries_and_keys
from hybrid_lm.kernels.rotary.xla import rotate
from hybrid_lm.layers import RMSNorm, fan_in, param, project
from hybrid_lm.mixers.base import (
    CONTINUES,
    NO_STATE,
    Context,
    MixerConfig,
    State,
    per_head,
    register,
)


@register("attention")
@dataclass(frozen=True)
class Attention(MixerConfig):
    """``y_i = sum_{j <= i} softmax_j(q_i . k_j / sqrt(K)) v_j``, heads of grouped queries.

    Vaswani et al. 2017 (arXiv 1706.03762); grouped queries: Ainslie et al. 2023 (arXiv 2305.13245);
    rotary positions: Su et al. 2021 (arXiv 2104.09864); query-key norm: Henry et al. 2020
    (arXiv 2010.04245); window: Beltagy et al. 2020 (arXiv 2004.05150).
    """

    heads: int = 8
    """Query heads."""
    kv_heads: int | None = None
    """Key/value heads; must divide heads. None: as many as query heads."""
    head_dim: int | None = None
    """Dimension of a head. None: width / heads."""
    window: int | None = None
    """See only this many latest tokens, itself included. None: all."""
    rope_theta: float | None = 10_000.0
    """Base of the rotary position embedding. None: no positions (NoPE)."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head."""
    chunk_size: int = 512
    """Block of queries and keys in the XLA form."""
    causal: bool = True
    """False: a token sees its whole document."""

    def build(self, width: int, rngs: nnx.Rngs) -> "AttentionMixer":
        return AttentionMixer(self, width, rngs)

    def resolved(self, width: int) -> tuple[int, int]:
        """Key/value heads and head dimension for a model width."""
        kv_heads = self.kv_heads or self.heads
        if self.heads % kv_heads:
            raise UserError(f"attention: kv_heads {kv_heads} does not divide heads {self.heads}")
        head_dim = self.head_dim or per_head(self.key, self.heads, width)
        if self.rope_theta is not None and head_dim % 2:
            raise UserError(f"attention: rotary positions need an even head_dim, not {head_dim}")
        if self.window is not None and not self.causal:
            raise UserError("attention: a window looks back; leave it out where causal is False")
        return kv_heads, head_dim

    def is_subquadratic(self) -> bool:
        return self.window is not None

    def is_causal(self) -> bool:
        return self.causal

    def flops_per_token(self, width: int, length: int) -> float:
        kv_heads, head_dim = self.resolved(width)
        projections = 2 * width * head_dim * (2 * self.heads + 2 * kv_heads)
        window = min(self.window or length, length)
        # Token i sees min(i + 1, window) keys.
        mean_keys = (window * (window + 1) / 2 + (length - window) * window) / length
        if not self.causal:
            mean_keys = length
        return projections + 4 * self.heads * head_dim * mean_keys

    def limit(self, length: int) -> tuple[MixerConfig, MixerConfig]:
        full = dataclasses.replace(self, window=None)
        return dataclasses.replace(self, window=length), full


class AttentionMixer(nnx.Module):
    """State: ``k``, ``v`` [B, S, G, K], the last S tokens (right-aligned); ``seen`` [B], how many
    tokens of the current document came so far, counted up to S + 1; ``segment`` [B].

    S is ``window - 1`` with a window, else `Context.capacity`. A document that outgrows a full
    cache of fixed capacity gives NaN, never a silently shortened context.
    """

    def __init__(self, config: Attention, width: int, rngs: nnx.Rngs):
        self.config = config
        self.kv_heads, self.head_dim = config.resolved(width)
        heads, kv_heads, dim = config.heads, self.kv_heads, self.head_dim
        init = fan_in(width)
        self.q = param(rngs, (width, heads, dim), ("embed", "heads", None), init)
        self.k = param(rngs, (width, kv_heads, dim), ("embed", "heads", None), init)
        self.v = param(rngs, (width, kv_heads, dim), ("embed", "heads", None), init)
        self.out = param(rngs, (heads, dim, width), ("heads", None, "embed"), fan_in(heads * dim))
        if config.qk_norm:
            self.q_norm = RMSNorm(dim, None, rngs)
            self.k_norm = RMSNorm(dim, None, rngs)

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        config, length = self.config, x_BLD.shape[1]
        if state is not None and not config.causal:
            raise UserError(NO_STATE)
        q_BLHK, k_BLGK = self._queries_and_keys(x_BLD, ctx)
        v_BLGK = project("bld,dgk->blgk", x_BLD, self.v)

        starts_BL = self._starts_BL(ctx, state, length)
        if state is None:
            k_BSGK, v_BSGK = k_BLGK, v_BLGK
        else:
            k_BSGK = jnp.concatenate([state["k"].astype(k_BLGK.dtype), k_BLGK], axis=1)
            v_BSGK = jnp.concatenate([state["v"].astype(v_BLGK.dtype), v_BLGK], axis=1)
        y_BLHK, kept = self._attend(q_BLHK, k_BSGK, v_BSGK, starts_BL, ctx, state)
        if state is not None and config.window is None:
            overflow_B = state["seen"] > state["k"].shape[1]
            lost_BL = overflow_B[:, None] & (starts_BL == 0)
            y_BLHK = jnp.where(lost_BL[..., None, None], jnp.nan, y_BLHK)
        y_BLD = project("blhk,hkd->bld", y_BLHK, self.out)
        if not config.causal:
            return y_BLD, ()
        return y_BLD, self._next_state(ctx, k_BSGK, v_BSGK, starts_BL) | kept

    def _queries_and_keys(self, x_BLD: jax.Array, ctx: Context) -> tuple[jax.Array, jax.Array]:
        """With the norms and the positions of the config."""
        theta, positions_BL = self.config.rope_theta, ctx.positions_BL
        if self.config.qk_norm and theta is not None:
            return queries_and_keys(
                x_BLD,
                (self.q[...], self.k[...]),
                (self.q_norm.scale[...], self.k_norm.scale[...]),
                positions_BL,
                theta,
                implementation=ctx.implementation.rotary,
            )
        q_BLHK = project("bld,dhk->blhk", x_BLD, self.q)
        k_BLGK = project("bld,dgk->blgk", x_BLD, self.k)
        if self.config.qk_norm:
            return self.q_norm(q_BLHK), self.k_norm(k_BLGK)
        if theta is None:
            return q_BLHK, k_BLGK
        return rotate(q_BLHK, positions_BL, theta), rotate(k_BLGK, positions_BL, theta)

    def _attend(
        self,
        q_BLHK: jax.Array,
        k_BSGK: jax.Array,
        v_BSGK: jax.Array,
        starts_BL: jax.Array | None,
        ctx: Context,
        state: State | None,
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Outputs of the heads, and what the state holds beside keys and values.

        Another choice of the keys that a query sees overrides this.
        """
        del state
        y_BLHK = attention(
            q_BLHK,
            k_BSGK,
            v_BSGK,
            starts_BL,
            None if self.config.causal else ctx.ends_BL(),
            window=self.config.window,
            max_segments=ctx.max_segments,
            chunk_size=self.config.chunk_size,
            implementation=ctx.implementation.attention,
        )
        return y_BLHK, {}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        if not self.config.causal:
            return ()
        keys = capacity if self.config.window is None else self.config.window - 1
        empty = jnp.zeros((batch, keys, self.kv_heads, self.head_dim), dtype)
        none = jnp.zeros((batch,), jnp.int32)
        return {"k": empty, "v": empty, "seen": none, "segment": none + CONTINUES}

    @staticmethod
    def _starts_BL(ctx: Context, state: State | None, length: int) -> jax.Array | None:
        """Index among the S = cache + L keys of the first key of each token's document."""
        resets_BL = ctx.resets_BL(None if state is None else state["segment"])
        if state is None:
            if resets_BL is None:
                return None
            place_L = jnp.arange(length, dtype=jnp.int32)
            return jax.lax.cummax(jnp.where(resets_BL, place_L[None, :], 0), axis=1)
        cached = state["k"].shape[1]
        oldest_B = cached - jnp.minimum(state["seen"], cached)
        if resets_BL is None:
            return jnp.broadcast_to(oldest_B[:, None], (oldest_B.shape[0], length))
        place_L = jnp.arange(cached, cached + length, dtype=jnp.int32)
        return jax.lax.cummax(jnp.where(resets_BL, place_L[None, :], oldest_B[:, None]), axis=1)

    def _next_state(
        self, ctx: Context, k_BSGK: jax.Array, v_BSGK: jax.Array, starts_BL: jax.Array | None
    ) -> State:
        keys = k_BSGK.shape[1]
        if self.config.window is not None:
            capacity = self.config.window - 1
        else:
            capacity = keys if ctx.capacity is None else ctx.capacity

        def fit(x_BSGK: jax.Array) -> jax.Array:
            """The last ``capacity`` keys, zeros on the left where there are fewer."""
            missing = max(capacity - keys, 0)
            padded = jnp.pad(x_BSGK, ((0, 0), (missing, 0), (0, 0), (0, 0)))
            return padded[:, padded.shape[1] - capacity :].astype(ctx.dtype)

        first_B = 0 if starts_BL is None else starts_BL[:, -1]
        seen_B = jnp.broadcast_to(jnp.int32(keys) - first_B, (k_BSGK.shape[0],))
        seen_B = jnp.minimum(seen_B, capacity + 1)
        state = {"k": fit(k_BSGK), "v": fit(v_BSGK), "seen": seen_B}
        return state | {"segment": ctx.last_segment_B()}
