"""Random feature attention: a Gaussian kernel from random Fourier features, with a recency gate."""

from dataclasses import dataclass
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.precision import einsum_f32
from hybrid_lm.layers import fan_in, param, project, unit
from hybrid_lm.mixers.base import Context, MixerConfig, State, register
from hybrid_lm.mixers.kernelized import KernelizedMixer

# The estimated kernel may be negative; a pair's true one is at least exp(-2) for scales of 1.
_FLOOR = 0.1


@register("rfa")
@dataclass(frozen=True)
class RFA(MixerConfig):
    """``y_t = S_t^T f(q_t) / max(z_t . f(q_t), 0.1)`` with ``S_t = S_{t-1} + f(k_t) v_t^T``, or
    ``S_t = g_t S_{t-1} + (1 - g_t) f(k_t) v_t^T`` with the gate; z is the same with 1 for v.

    ``f(x) = [sin(w_n . u), cos(w_n . u)] / sqrt(N)`` for ``u = x / |x|`` and ``w_n = sigma * w'_n``
    with Gaussian w', so that ``f(q) . f(k)`` estimates ``exp(-|sigma * (u_q - u_k)|^2 / 2)``, which
    is softmax attention of unit queries and keys, at a learned scale sigma per head and dimension
    (1 at the start). ``g_t = sigmoid(gate(x_t) + bias)`` per head. Peng et al. 2021
    (arXiv 2103.02143), sections 3.1 and 3.2. An estimated normaliser may be negative; like the
    authors' code, this keeps it above a floor.
    """

    heads: int = 8
    """Heads; must divide the width."""
    features: int = 64
    """N, random frequencies of a head; each gives a sine and a cosine."""
    gate: bool = False
    """Forget: weigh what is past by a learned gate per head and token."""
    seed: int = 0
    """Of the random frequencies, which are not trained."""
    chunk_size: int = 128
    """Tokens that one matrix product handles."""

    def build(self, width: int, rngs: nnx.Rngs) -> "RFAMixer":
        return RFAMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        random_features = 4 * width * self.features
        # Per entry of the state: multiply-adds of the write and of the read-out, and the gate.
        entries = self.heads * 2 * self.features * (width // self.heads + 1)
        projections = 8 * width * width + (2 * width * self.heads if self.gate else 0)
        return projections + random_features + (5 if self.gate else 4) * entries


class RFAMixer(KernelizedMixer):
    """State: ``kv`` [B, H, 2 N, P + 1] (last column: z); ``segment`` [B]."""

    def __init__(self, config: RFA, width: int, rngs: nnx.Rngs):
        super().__init__(
            config.key, width, rngs, heads=config.heads, chunk_size=config.chunk_size, causal=True
        )
        self.config = config
        scale = (config.heads, self.head_dim)
        self.sigma = param(rngs, scale, ("heads", None), nnx.initializers.ones, decay=False)
        if config.gate:
            zeros = nnx.initializers.zeros
            self.gate = param(rngs, (width, self.heads), ("embed", "heads"), fan_in(width))
            self.gate_bias = param(rngs, (self.heads,), ("heads",), zeros, decay=False)

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        q_BLHK, k_BLHK, v_BLHP = self.projected(x_BLD)
        q_BLHN, k_BLHN, log_decay_BLH = self._features(q_BLHK), self._features(k_BLHK), None
        if self.config.gate:
            gate_BLH = project("bld,dh->blh", x_BLD, self.gate).astype(q_BLHN.dtype)
            gate_BLH += self.gate_bias[...]
            log_decay_BLH = jax.nn.log_sigmoid(gate_BLH)
            k_BLHN *= jax.nn.sigmoid(-gate_BLH)[..., None]
        y_BLHP, state = self.means(
            q_BLHN.astype(x_BLD.dtype),
            k_BLHN.astype(x_BLD.dtype),
            v_BLHP,
            ctx,
            state,
            log_decay_BLH,
            floor=_FLOOR,
        )
        return self.output(y_BLHP.astype(x_BLD.dtype)), state

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        return self.zero_state(batch, dtype, 2 * self.config.features, self.head_dim + 1)

    def _features(self, x_BLHK: jax.Array) -> jax.Array:
        """f(x) [B, L, H, 2 N] in float32."""
        config = self.config
        w_HNK = frequencies(config.heads, config.features, self.head_dim, config.seed)
        w_HNK = (self.sigma[...][:, None] * w_HNK).astype(x_BLHK.dtype)
        angle_BLHN = einsum_f32("blhk,hnk->blhn", unit(x_BLHK), w_HNK)
        waves = [jnp.sin(angle_BLHN), jnp.cos(angle_BLHN)]
        return jnp.concatenate(waves, axis=-1) * config.features**-0.5


@cache
def frequencies(heads: int, features: int, dim: int, seed: int) -> np.ndarray:
    """w'_HNK in float32, drawn on the host: the same on every device and in every dtype."""
    return np.random.default_rng(seed).normal(size=(heads, features, dim)).astype(np.float32)
