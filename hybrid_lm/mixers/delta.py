"""DeltaNet: linear attention whose state replaces what it holds for a key."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.kernels.causal_conv import causal_conv
from hybrid_lm.kernels.delta_rule import delta_rule
from hybrid_lm.layers import RMSNorm, fan_in, param, project, symmetric_uniform, unit
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, per_head, register


@register("delta")
@dataclass(frozen=True)
class Delta(MixerConfig):
    """``S_t = (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T``, ``y_t = norm(S_t^T q_t)``, per head.

    q, k and v pass a short convolution and silu, q and k are then of length K^-1/2 and 1;
    ``b = sigmoid(.)``. Yang et al. 2024 (arXiv 2406.06484), sections 2.2 and 3.4.
    """

    heads: int = 8
    """Heads; must divide the width."""
    conv_width: int = 4
    """Taps of the causal convolutions."""
    chunk_size: int = 64
    """Tokens that one matrix product handles."""

    def build(self, width: int, rngs: nnx.Rngs) -> "DeltaMixer":
        return DeltaMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        projections = width * (4 * width + self.heads)
        # Per entry of the state: multiply-adds of what is found, of the write and of the read-out.
        recurrence = 6 * width * (width // self.heads)
        return 2 * projections + 2 * self.conv_width * 3 * width + recurrence


class DeltaMixer(nnx.Module):
    """State: ``conv`` [B, W - 1, H (2 K + P)] inputs, ``kv`` [B, H, K, P], at least float32,
    ``segment`` [B].

    ``expand`` is P / K. A delta rule with more than that overrides `log_decay_BLH` and `gated`.
    """

    def __init__(self, config: Delta, width: int, rngs: nnx.Rngs, *, expand: int = 1):
        self.config = config
        heads = config.heads
        self.key_dim = key_dim = per_head(config.key, heads, width)
        self.value_dim = value_dim = expand * key_dim
        self.inputs = DeltaInputs(width, heads, key_dim, value_dim, config.conv_width, rngs=rngs)
        self.beta = param(rngs, (width, heads), ("embed", "heads"), fan_in(width))
        self.norm = RMSNorm(value_dim, None, rngs)
        shape = (heads, value_dim, width)
        self.out = param(rngs, shape, ("heads", None, "embed"), fan_in(heads * value_dim))

    def log_decay_BLH(self, x_BLD: jax.Array) -> jax.Array | None:
        """Log of the decay of the state, in at least float32; None where it never decays."""
        del x_BLD
        return None

    def gated(self, y_BLHP: jax.Array, x_BLD: jax.Array) -> jax.Array:
        """What is done to the normalised read-out before the output projection."""
        del x_BLD
        return y_BLHP

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        resets_BL = ctx.resets_BL(None if state is None else state["segment"])
        past = None if state is None else state["conv"]
        (q_BLHK, k_BLHK, v_BLHP), conv = self.inputs(x_BLD, ctx, resets_BL, past)
        wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
        y_BLHP, kv = delta_rule(
            q_BLHK,
            k_BLHK,
            v_BLHP,
            jax.nn.sigmoid(project("bld,dh->blh", x_BLD, self.beta).astype(wide)),
            self.log_decay_BLH(x_BLD),
            resets_BL,
            None if state is None else state["kv"],
            chunk_size=self.config.chunk_size,
            implementation=ctx.implementation.delta_rule,
        )
        y_BLHP = self.gated(self.norm(y_BLHP).astype(x_BLD.dtype), x_BLD)
        y_BLD = project("blhp,hpd->bld", y_BLHP, self.out)
        return y_BLD, {"conv": conv, "kv": kv, "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        shape = (batch, self.config.heads, self.key_dim, self.value_dim)
        return {
            "conv": self.inputs.initial_state(batch, dtype),
            "kv": jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }


class DeltaInputs(nnx.Module):
    """Queries, keys and values of a delta rule: projection, convolution, silu, unit length."""

    def __init__(
        self,
        width: int,
        heads: int,
        key_dim: int,
        value_dim: int,
        conv_width: int,
        *,
        rngs: nnx.Rngs,
    ):
        self.key_dim = key_dim
        channels = (heads, 2 * key_dim + value_dim)  # of a head: q, k, v
        by_taps = symmetric_uniform(conv_width**-0.5)
        self.qkv = param(rngs, (width, *channels), ("embed", "heads", None), fan_in(width))
        self.conv = param(rngs, (conv_width, *channels), (None, "heads", None), by_taps)

    def __call__(
        self,
        x_BLD: jax.Array,
        ctx: Context,
        resets_BL: jax.Array | None,
        past_BWE: jax.Array | None,
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], jax.Array]:
        """(q_BLHK of length K^-1/2, k_BLHK of length 1, v_BLHP), and the last inputs."""
        taps, heads, channels = self.conv.shape
        batch, length, _ = x_BLD.shape
        inputs_BLE = project("bld,dhc->blhc", x_BLD, self.qkv).reshape(batch, length, -1)
        y_BLE, past_BWE = causal_conv(
            inputs_BLE,
            self.conv[...].reshape(taps, -1),
            None,
            resets_BL,
            past_BWE,
            silu=True,
            implementation=ctx.implementation.causal_conv,
        )
        y_BLHC = y_BLE.reshape(batch, length, heads, channels)
        q_BLHK, k_BLHK, v_BLHP = jnp.split(y_BLHC, [self.key_dim, 2 * self.key_dim], axis=-1)
        return (unit(q_BLHK, length=self.key_dim**-0.5), unit(k_BLHK), v_BLHP), past_BWE

    def initial_state(self, batch: int, dtype: DTypeLike) -> jax.Array:
        taps, heads, channels = self.conv.shape
        return jnp.zeros((batch, taps - 1, heads * channels), dtype)
