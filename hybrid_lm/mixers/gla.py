"""Gated linear attention: linear attention whose key channels decay apart."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.gla import gla
from hybrid_lm.layers import RMSNorm, fan_in, param, project
from hybrid_lm.mixers.base import CONTINUES, Context, MixerConfig, State, register

_TEMPERATURE = 16  # the root of the sigmoid: decays start near 1


@register("gla")
@dataclass(frozen=True)
class GLA(MixerConfig):
    """``S_t = diag(a_t) S_{t-1} + k_t v_t^T``, per head; ``out(norm(S_t^T q_t) * silu(z_t))``.

    ``a = sigmoid(x W1 W2 + b)^(1/16)``, one decay per key channel; q is scaled by K^-1/2.
    Yang et al. 2023 (arXiv 2312.06635), sections 4.1 and 4.4.
    """

    head_dim: int = 256
    """P, value channels of a head, twice its key channels; even, and must divide the width."""
    gate_rank: int = 16
    """Rank of the projection to decays."""
    chunk_size: int = 64
    """Tokens that one matrix product handles."""

    def build(self, width: int, rngs: nnx.Rngs) -> "GLAMixer":
        if self.head_dim % 2 or width % self.head_dim:
            raise UserError(
                f"gla: head_dim {self.head_dim} must be even and divide the width {width}"
            )
        return GLAMixer(self, width, rngs)

    def flops_per_token(self, width: int, length: int) -> float:
        del length
        keys = width // 2
        projections = width * (2 * keys + 3 * width) + self.gate_rank * (width + keys)
        # Per entry of the state: decay, multiply-adds of the write and of the read-out.
        return 2 * projections + 5 * keys * self.head_dim


class GLAMixer(nnx.Module):
    """State: ``kv`` [B, H, K, P], at least float32, ``segment`` [B]."""

    def __init__(self, config: GLA, width: int, rngs: nnx.Rngs):
        self.config = config
        value_dim, rank = config.head_dim, config.gate_rank
        self.heads = heads = width // value_dim
        self.key_dim = key_dim = value_dim // 2
        into_keys = (width, heads, key_dim), ("embed", "heads", None), fan_in(width)
        into_values = (width, heads, value_dim), ("embed", "heads", None), fan_in(width)
        self.q = param(rngs, *into_keys)
        self.k = param(rngs, *into_keys)
        self.v = param(rngs, *into_values)
        self.z = param(rngs, *into_values)
        self.gate_in = param(rngs, (width, rank), ("embed", None), fan_in(width))
        shape = (rank, heads, key_dim)
        self.gate_out = param(rngs, shape, (None, "heads", None), fan_in(rank))
        zeros = nnx.initializers.zeros
        self.gate_bias = param(rngs, shape[1:], ("heads", None), zeros, decay=False)
        self.norm = RMSNorm(value_dim, None, rngs)
        shape = (heads, value_dim, width)
        self.out = param(rngs, shape, ("heads", None, "embed"), fan_in(width))

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        wide = jnp.promote_types(x_BLD.dtype, jnp.float32)
        gate_BLR = project("bld,dr->blr", x_BLD, self.gate_in)
        gate_BLHK = project("blr,rhk->blhk", gate_BLR, self.gate_out).astype(wide)
        y_BLHP, kv = gla(
            project("bld,dhk->blhk", x_BLD, self.q) * self.key_dim**-0.5,
            project("bld,dhk->blhk", x_BLD, self.k),
            project("bld,dhp->blhp", x_BLD, self.v),
            jax.nn.log_sigmoid(gate_BLHK + self.gate_bias[...]) / _TEMPERATURE,
            ctx.resets_BL(None if state is None else state["segment"]),
            None if state is None else state["kv"],
            chunk_size=self.config.chunk_size,
            implementation=ctx.implementation.gla,
        )
        y_BLHP = self.norm(y_BLHP).astype(x_BLD.dtype)
        y_BLHP *= jax.nn.silu(project("bld,dhp->blhp", x_BLD, self.z))
        y_BLD = project("blhp,hpd->bld", y_BLHP, self.out)
        return y_BLD, {"kv": kv, "segment": ctx.last_segment_B()}

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        del capacity
        shape = (batch, self.heads, self.key_dim, self.config.head_dim)
        return {
            "kv": jnp.zeros(shape, jnp.promote_types(dtype, jnp.float32)),
            "segment": jnp.full((batch,), CONTINUES, jnp.int32),
        }
