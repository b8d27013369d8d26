"""Sums over keys in place of a softmax: what every linear attention shares, whatever its features.

Katharopoulos et al. 2020 (arXiv 2006.16236): ``sum_j (f(q_i) . f(k_j)) v_j`` is a read-out of the
state ``S = sum_j f(k_j) v_j^T``, so it costs the same for every token.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.ssd import ssd
from hybrid_lm.mixers.base import CONTINUES, NO_STATE, Context, State
from hybrid_lm.mixers.heads import HeadsMixer


class KernelizedMixer(HeadsMixer):
    """Projections around `sums` over features of the keys.

    State: ``kv`` [B, H, N, columns], at least float32, for N features and a column per value (and
    one for a normaliser); ``segment`` [B]. A mixer that is not causal has none: ().
    """

    def __init__(
        self,
        key: str,
        width: int,
        rngs: nnx.Rngs,
        *,
        heads: int,
        chunk_size: int,
        causal: bool,
        key_dim: int | None = None,
    ):
        super().__init__(key, width, rngs, heads=heads, key_dim=key_dim)
        self.chunk_size, self.causal = chunk_size, causal

    def resets_BL(self, ctx: Context, state: State | None) -> jax.Array | None:
        """`Context.resets_BL` for this state.

        Raises:
            UserError: if a mixer that sees whole documents is given a state.
        """
        if not self.causal and state is not None:
            raise UserError(NO_STATE)
        return ctx.resets_BL(None if state is None else state["segment"])

    def sums(
        self,
        q_BLHN: jax.Array,
        k_BLHN: jax.Array,
        v_BLHP: jax.Array,
        ctx: Context,
        state: State | None,
        log_decay_BLH: jax.Array | None = None,
    ) -> tuple[jax.Array, State]:
        """``sum_j (q_i . k_j) v_j`` over the tokens of the document up to i, or over all of them.

        ``q`` and ``k`` are features; with a decay, key j counts ``exp(sum of (j, i])``. Returns
        float32 (float64 for float64 inputs).
        """
        resets_BL = self.resets_BL(ctx, state)

        def run(q_BLHN, k_BLHN, v_BLHP, resets_BL, kv):
            return ssd(
                q_BLHN,
                k_BLHN,
                v_BLHP,
                log_decay_BLH,
                resets_BL,
                kv,
                chunk_size=self.chunk_size,
                implementation=ctx.implementation.ssd,
            )

        kv = None if state is None else state["kv"]
        y_BLHP, kv = run(q_BLHN, k_BLHN, v_BLHP, resets_BL, kv)
        if self.causal:
            return y_BLHP, {"kv": kv, "segment": ctx.last_segment_B()}
        # Of later tokens: the same from the other end, one token behind so that none counts twice.
        k_BLHN, v_BLHP = (
            jnp.pad(a[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0))) for a in (k_BLHN, v_BLHP)
        )
        if resets_BL is not None:
            ends_BL = ends_of_documents(resets_BL)
            k_BLHN = jnp.where(ends_BL[..., None, None], 0, k_BLHN)
            resets_BL = jnp.flip(ends_BL, axis=1)
        q_BLHN, k_BLHN, v_BLHP = (jnp.flip(a, axis=1) for a in (q_BLHN, k_BLHN, v_BLHP))
        later_BLHP, _ = run(q_BLHN, k_BLHN, v_BLHP, resets_BL, None)
        return y_BLHP + jnp.flip(later_BLHP, axis=1), ()

    def means(
        self, q_BLHN, k_BLHN, v_BLHP, ctx, state, log_decay_BLH=None, *, floor: float
    ) -> tuple[jax.Array, State]:
        """`sums` over those of ones in place of values, or over ``floor`` where that is more."""
        v1_BLHP = jnp.concatenate([v_BLHP, jnp.ones_like(v_BLHP[..., :1])], axis=-1)
        y1_BLHP, state = self.sums(q_BLHN, k_BLHN, v1_BLHP, ctx, state, log_decay_BLH)
        return y1_BLHP[..., :-1] / jnp.maximum(y1_BLHP[..., -1:], floor), state

    def zero_state(self, batch: int, dtype: DTypeLike, features: int, columns: int) -> State:
        """The state of no tokens."""
        if not self.causal:
            return ()
        shape = (batch, self.heads, features, columns)
        return {
            "kv": jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }


def ends_of_documents(resets_BL: jax.Array) -> jax.Array:
    """True where the next token starts a document, and at the end of the row."""
    return jnp.pad(resets_BL[:, 1:], ((0, 0), (0, 1)), constant_values=True)
