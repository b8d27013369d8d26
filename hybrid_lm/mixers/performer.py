"""Performer: softmax attention estimated with positive orthogonal random features (FAVOR+)."""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.precision import einsum_half
from hybrid_lm.layers import RMSNorm
from hybrid_lm.mixers.base import Context, MixerConfig, State, register
from hybrid_lm.mixers.kernelized import KernelizedMixer, ends_of_documents

# Where the features of a query and of all keys share next to nothing, the output fades to 0. The
# square of its inverse, in the gradient, is still finite in float32.
_FLOOR = 1e-18


@register("performer")
@dataclass(frozen=True)
class Performer(MixerConfig):
    """``y_i = sum_{j <= i} (f(q_i) . f(k_j)) v_j / sum_{j <= i} f(q_i) . f(k_j)`` with
    ``f(x)_n = exp(w_n . u - |u|^2 / 2)``, ``u = x / K^(1/4)``: ``f(q) . f(k) / N`` is an unbiased
    estimate of ``exp(q . k / sqrt(K))``.

    Choromanski et al. 2020 (arXiv 2009.14794), lemma 1 and section 2.4: w are the rows of random
    orthogonal K x K matrices, with the lengths of Gaussian vectors. The paper divides features by
    the largest of any query or key, which looks ahead. Here the largest of a query's own features
    cancels in the quotient, and keys are kept relative to the largest so far in their document:
    it is carried in the state, and where it grows, the state shrinks as under a decay.
    """

    heads: int = 8
    """Heads; must divide the width."""
    features: int = 256
    """N, random features of a head. The error falls as 1 / sqrt(N)."""
    qk_norm: bool = True
    """RMS-normalise queries and keys per head: the variance grows as exp(|q + k|^2 / sqrt(K))."""
    seed: int = 0
    """Of the random features, which are not trained."""
    chunk_size: int = 128
    """Tokens that one matrix product handles."""
    causal: bool = True
    """False: a token sees its whole document; there is no state."""

    def build(self, width: int, rngs: nnx.Rngs) -> "PerformerMixer":
        return PerformerMixer(self, width, rngs)

    def is_causal(self) -> bool:
        return self.causal

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        head_dim = width // self.heads
        random_features = 4 * width * self.features
        # Per entry of the state: decay, multiply-adds of the write and of the read-out.
        entries = self.heads * self.features * (head_dim + 1)
        sums = 5 * entries if self.causal else 8 * entries
        return 8 * width * width + random_features + sums


class PerformerMixer(KernelizedMixer):
    """State: ``kv`` [B, H, N, P + 1] (last column: of the normaliser), relative to exp of
    ``largest`` [B, H], the largest exponent of the document's keys; ``segment`` [B].
    """

    def __init__(self, config: Performer, width: int, rngs: nnx.Rngs):
        super().__init__(
            config.key,
            width,
            rngs,
            heads=config.heads,
            chunk_size=config.chunk_size,
            causal=config.causal,
        )
        self.config = config
        if config.qk_norm:
            self.q_norm = RMSNorm(self.head_dim, None, rngs)
            self.k_norm = RMSNorm(self.head_dim, None, rngs)

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        q_BLHK, k_BLHK, v_BLHP = self.projected(x_BLD)
        if self.config.qk_norm:
            q_BLHK, k_BLHK = self.q_norm(q_BLHK), self.k_norm(k_BLHK)
        q_BLHN, _ = self._exponents(q_BLHK)
        k_BLHN, half_square_BLH1 = self._exponents(k_BLHK)
        k_BLHN -= half_square_BLH1
        # No gradient: how far features are scaled changes no output.
        largest_BLHN = jax.lax.stop_gradient(q_BLHN.max(-1, keepdims=True))
        key_BLH = jax.lax.stop_gradient(k_BLHN.max(-1))
        scale_BLH, log_decay_BLH = self._scales(key_BLH, ctx, state)
        y_BLHP, next_state = self.means(
            jnp.exp(q_BLHN - largest_BLHN).astype(x_BLD.dtype),
            jnp.exp(k_BLHN - scale_BLH[..., None]).astype(x_BLD.dtype),
            v_BLHP,
            ctx,
            state,
            log_decay_BLH,
            floor=_FLOOR,
        )
        if self.causal:
            next_state["largest"] = scale_BLH[:, -1]
        return self.output(y_BLHP.astype(x_BLD.dtype)), next_state

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        state = self.zero_state(batch, dtype, self.config.features, self.head_dim + 1)
        if self.causal:
            state["largest"] = jnp.full((batch, self.heads), -jnp.inf, state["kv"].dtype)
        return state

    def _exponents(self, x_BLHK: jax.Array) -> tuple[jax.Array, jax.Array]:
        """``w_n . u`` [B, L, H, N] and ``|u|^2 / 2`` [B, L, H, 1] in float32."""
        w_NK = directions(self.config.features, self.head_dim, self.config.seed)
        x_BLHK *= self.head_dim**-0.25
        exponents_BLHN = einsum_half("blhk,nk->blhn", x_BLHK, jnp.asarray(w_NK, x_BLHK.dtype))
        wide_BLHK = x_BLHK.astype(exponents_BLHN.dtype)
        return exponents_BLHN, jnp.sum(wide_BLHK * wide_BLHK, axis=-1, keepdims=True) / 2

    def _scales(
        self, key_BLH: jax.Array, ctx: Context, state: State | None
    ) -> tuple[jax.Array, jax.Array | None]:
        """The largest exponent of the document's keys (so far), and how its growth decays sums."""
        resets_BL = self.resets_BL(ctx, state)
        if state is None:
            before_BH = jnp.full_like(key_BLH[:, 0], -jnp.inf)
        else:
            before_BH = jax.lax.stop_gradient(state["largest"])
        scale_BLH = _running_max(key_BLH, resets_BL, before_BH)
        if not self.causal:
            if resets_BL is not None:
                resets_BL = jnp.flip(ends_of_documents(resets_BL), axis=1)
            later_BLH = _running_max(jnp.flip(key_BLH, axis=1), resets_BL, before_BH)
            return jnp.maximum(scale_BLH, jnp.flip(later_BLH, axis=1)), None
        past_BLH = jnp.concatenate([before_BH[:, None], scale_BLH[:, :-1]], axis=1)
        # Nothing decays where there was nothing, nor at a start, which clears the state.
        nothing_BLH = jnp.isneginf(past_BLH)
        log_decay_BLH = jnp.minimum(jnp.where(nothing_BLH, 0.0, past_BLH - scale_BLH), 0.0)
        return scale_BLH, log_decay_BLH


def _running_max(x_BLH: jax.Array, resets_BL: jax.Array | None, before_BH: jax.Array) -> jax.Array:
    """The largest since the last reset, starting from ``before``."""
    if resets_BL is None:
        resets_BL = jnp.zeros(x_BLH.shape[:2], bool)
    first_BH = jnp.where(resets_BL[:, 0, None], x_BLH[:, 0], jnp.maximum(before_BH, x_BLH[:, 0]))
    x_BLH = jnp.concatenate([first_BH[:, None], x_BLH[:, 1:]], axis=1)

    def join(left, right):
        starts, largest = right
        return left[0] | starts, jnp.where(starts, largest, jnp.maximum(left[1], largest))

    starts_BLH = jnp.broadcast_to(resets_BL[..., None], x_BLH.shape)
    return jax.lax.associative_scan(join, (starts_BLH, x_BLH), axis=1)[1]


@cache
def directions(features: int, dim: int, seed: int) -> np.ndarray:
    """w_NK in float32: blocks of ``dim`` orthogonal rows with the lengths of Gaussian vectors.

    Drawn on the host, so that they are the same on every device and in every dtype.
    """
    rng = np.random.default_rng(seed)
    blocks = -(-features // dim)
    # Rows of an orthogonal matrix are uniform directions once the signs of its QR are unbiased.
    q_nKK, r_nKK = np.linalg.qr(rng.normal(size=(blocks, dim, dim)))
    q_nKK = q_nKK * np.sign(np.diagonal(r_nKK, axis1=1, axis2=2))[:, None, :]
    lengths_N = np.linalg.norm(rng.normal(size=(features, dim)), axis=1)
    rows_NK = q_nKK.transpose(0, 2, 1).reshape(blocks * dim, dim)[:features]
    return (rows_NK * lengths_N[:, None]).astype(np.float32)
