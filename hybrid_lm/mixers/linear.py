"""Linear attention: kernel feature maps, with and without decay."""

from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.layers import RMSNorm, fan_in, param, project
from hybrid_lm.mixers.base import Context, MixerConfig, State, register
from hybrid_lm.mixers.kernelized import KernelizedMixer

_EPSILON = 1e-6  # keeps the normaliser away from 0 when the relu map finds no key
_GATE_TEMPERATURE = 16


@register("linear")
@dataclass(frozen=True)
class Linear(MixerConfig):
    """``y_i = sum_{j <= i} w_ij v_j / sum_{j <= i} w_ij``, ``w_ij = a_{j+1}..a_i f(q_i) . f(k_j)``.

    Katharopoulos et al. 2020 (arXiv 2006.16236), equations 9 to 12: a recurrence on
    ``S = sum f(k) v^T`` and ``z = sum f(k)``, run in chunks with an associative scan over them.
    The decay a is 1, fixed per head as in RetNet (Sun et al. 2023, arXiv 2307.08621, equation 8),
    or a gate per head and token with the temperature of GLA (Yang et al. 2023, arXiv 2312.06635,
    section 4.4).
    """

    heads: int = 8
    """Heads; must divide the width."""
    feature_map: Literal["elu1", "relu", "exp", "taylor2"] = "elu1"
    """f(x): elu(x) + 1; max(x, 0); softmax over [x, -x] (Hedgehog, arXiv 2402.04347); or
    [1, x / d^(1/4), x (x) x / sqrt(2 d)], whose kernel is exp to second order (Based,
    arXiv 2402.18668)."""
    feature_dim: int = 16
    """d, dimension of a head's queries and keys under taylor2, which squares it."""
    qk_norm: bool = False
    """RMS-normalise queries and keys per head. Under taylor2 the gradients of keys and queries
    far longer than that lose most of their digits: one squared score outweighs all others."""
    decay: Literal["none", "head", "token"] = "none"
    """a: 1; 1 - 2^(-5 - head); or sigmoid(gate(x) + bias)^(1/16)."""
    chunk_size: int = 128
    """Tokens that one matrix product handles."""
    causal: bool = True
    """False: a token sees its whole document; there is no state, and no decay."""

    def build(self, width: int, rngs: nnx.Rngs) -> "LinearMixer":
        if not self.causal and self.decay != "none":
            raise UserError(f"linear: decay {self.decay!r} needs causal=True")
        return LinearMixer(self, width, rngs)

    def is_causal(self) -> bool:
        return self.causal

    def key_dim(self, width: int) -> int:
        """Dimension of a head's queries and keys."""
        return self.feature_dim if self.feature_map == "taylor2" else width // self.heads

    def features(self, width: int) -> int:
        """Features of a query or key."""
        dim = self.key_dim(width)
        return {"exp": 2 * dim, "taylor2": 1 + dim + dim * dim}.get(self.feature_map, dim)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        projections = 2 * width + 2 * self.heads * self.key_dim(width)
        gates = self.heads if self.decay == "token" else 0
        # Per entry of the state: multiply-adds of the write and the read-out, and the decay.
        per_entry = 4 if self.decay == "none" else 5
        entries = self.heads * self.features(width) * (width // self.heads + 1)
        directions = 1 if self.causal else 2
        return 2 * width * (projections + gates) + directions * per_entry * entries


class LinearMixer(KernelizedMixer):
    """State: ``kv`` [B, H, N, P + 1] for N features (last column: z); ``segment`` [B]."""

    def __init__(self, config: Linear, width: int, rngs: nnx.Rngs):
        super().__init__(
            config.key,
            width,
            rngs,
            heads=config.heads,
            chunk_size=config.chunk_size,
            causal=config.causal,
            key_dim=config.key_dim(width),
        )
        self.config = config
        self.features = config.features(width)
        if config.qk_norm:
            self.q_norm = RMSNorm(self.key_dim, None, rngs)
            self.k_norm = RMSNorm(self.key_dim, None, rngs)
        if config.decay == "token":
            zeros = nnx.initializers.zeros
            self.gate = param(rngs, (width, self.heads), ("embed", "heads"), fan_in(width))
            self.gate_bias = param(rngs, (self.heads,), ("heads",), zeros, decay=False)

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        q_BLHK, k_BLHK, v_BLHP = self.projected(x_BLD)
        if self.config.qk_norm:
            q_BLHK, k_BLHK = self.q_norm(q_BLHK), self.k_norm(k_BLHK)
        y_BLHP, state = self.means(
            self._features(q_BLHK),
            self._features(k_BLHK),
            v_BLHP,
            ctx,
            state,
            self._log_decay_BLH(x_BLD),
            floor=_EPSILON,
        )
        return self.output(y_BLHP.astype(x_BLD.dtype)), state

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        return self.zero_state(batch, dtype, self.features, self.head_dim + 1)

    def _features(self, x_BLHK: jax.Array) -> jax.Array:
        name = self.config.feature_map
        if name == "relu":
            return jax.nn.relu(x_BLHK)
        if name == "exp":
            return jax.nn.softmax(jnp.concatenate([x_BLHK, -x_BLHK], axis=-1))
        if name == "taylor2":
            x_BLHK *= self.key_dim**-0.25
            squares = (x_BLHK[..., :, None] * x_BLHK[..., None, :]) * 2**-0.5
            squares = squares.reshape(*x_BLHK.shape[:-1], -1)
            return jnp.concatenate([jnp.ones_like(x_BLHK[..., :1]), x_BLHK, squares], axis=-1)
        # elu(x) + 1, which is exp(x) for x < 0: adding 1 there would lose what is small.
        return jnp.where(x_BLHK > 0, x_BLHK + 1, jnp.exp(jnp.where(x_BLHK > 0, 0, x_BLHK)))

    def _log_decay_BLH(self, x_BLD: jax.Array) -> jax.Array | None:
        wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
        if self.config.decay == "head":
            log_decay_H = jnp.log1p(-(2.0 ** (-5 - jnp.arange(self.heads, dtype=wide))))
            return jnp.broadcast_to(log_decay_H, (*x_BLD.shape[:2], self.heads))
        if self.config.decay == "token":
            gate_BLH = project("bld,dh->blh", x_BLD, self.gate).astype(wide)
            return jax.nn.log_sigmoid(gate_BLH + self.gate_bias[...]) / _GATE_TEMPERATURE
        return None
