"""One layer: a mixer and a gated MLP, each on the normalised residual stream."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from hybrid_lm.kernels.dispatch import mesh_devices
from hybrid_lm.kernels.gated_mlp import gated_mlp
from hybrid_lm.kernels.remat import keep
from hybrid_lm.kernels.residual_norm import residual_norm
from hybrid_lm.layers import RMSNorm, fan_in, param
from hybrid_lm.mixers import Context, MixerConfig
from hybrid_lm.sharding import constrain


class Absence(NamedTuple):
    """What the mixer of a block gives where it is to be absent.

    Attributes:
        keep: bool; False where the mixer is absent.
        instead_D: its output then, the same at every token.
    """

    keep: jax.Array
    instead_D: jax.Array


class GatedMLP(nnx.Module):
    """``down(silu(gate x) * up x)`` (SwiGLU; Shazeer 2020, arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.gate = param(rngs, (width, hidden), ("embed", "mlp"), fan_in(width))
        self.up = param(rngs, (width, hidden), ("embed", "mlp"), fan_in(width))
        self.down = param(rngs, (hidden, width), ("mlp", "embed"), fan_in(hidden))

    def __call__(self, x_BLD: jax.Array, ctx: Context) -> jax.Array:
        return gated_mlp(
            x_BLD,
            self.gate[...],
            self.up[...],
            self.down[...],
            recomputes=ctx.recomputes,
            implementation=ctx.implementation.gated_mlp,
        )


class Block(nnx.Module):
    """``x + mixer(norm(x))``, then ``x + mlp(norm(x))``."""

    def __init__(self, width: int, mlp_width: int, mixer: MixerConfig, rngs: nnx.Rngs):
        self.mixer_norm = RMSNorm(width, None, rngs)
        self.mixer = mixer.build(width, rngs)
        self.has_mlp = mlp_width > 0
        if self.has_mlp:
            self.mlp_norm = RMSNorm(width, None, rngs)
            self.mlp = GatedMLP(width, mlp_width, rngs)

    def __call__(
        self,
        x_BLD: jax.Array,
        ctx: Context,
        state: Any,
        absence: Absence | None = None,
        observe: bool = False,
    ) -> tuple[jax.Array, Any, jax.Array | None]:
        """x_BLD, the next state and, with ``observe``, the mixer's mean output over the row, BD."""

        def mix(normed_BLD: jax.Array) -> tuple[jax.Array, Any]:
            return self.mixer(normed_BLD, ctx, state)

        def norm(x_BLD: jax.Array, scale: nnx.Param) -> tuple[jax.Array, jax.Array]:
            implementation = ctx.implementation.residual_norm
            return residual_norm(x_BLD, scale[...], implementation=implementation)

        x_BLD, normed_BLD = norm(x_BLD, self.mixer_norm.scale)
        if absence is None:
            y_BLD, state = mix(normed_BLD)
        else:
            y_BLD, state = jax.lax.cond(
                absence.keep, mix, lambda x: _instead(mix, x, absence.instead_D), normed_BLD
            )
        mean_BD = jnp.mean(y_BLD, axis=1, dtype=jnp.float32) if observe else None
        x_BLD = keep(_add(x_BLD, y_BLD))
        if self.has_mlp:
            with jax.named_scope("mlp"):
                x_BLD, normed_BLD = norm(x_BLD, self.mlp_norm.scale)
                x_BLD = _add(x_BLD, self.mlp(normed_BLD, ctx))
        return constrain(x_BLD, ("batch", "length", None)), state, mean_BD


def _add(x_BLD: jax.Array, y_BLD: jax.Array) -> jax.Array:
    """``x + y``, as matrices where nothing is sharded.

    The product that y is takes in the addition. Given x in another shape than its own, XLA does not
    see that x is also kept, lets the sum overwrite it, and copies it before.
    """
    if mesh_devices() > 1:
        return x_BLD + y_BLD
    width = x_BLD.shape[-1]
    return (x_BLD.reshape(-1, width) + y_BLD.reshape(-1, width)).reshape(x_BLD.shape)


def _instead(mix, x_BLD: jax.Array, y_D: jax.Array):
    """``y_D`` at every token and a state of zeros, in the shapes of what the mixer would return."""
    y_BLD, state = jax.eval_shape(mix, x_BLD)
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), state)
    return jnp.broadcast_to(y_D.astype(y_BLD.dtype), y_BLD.shape), zeros
