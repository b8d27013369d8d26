"""The gated MLP: ``(silu(x W_gate) * (x W_up)) W_down`` (SwiGLU; Shazeer 2020, arXiv 2002.05202).

All in one operation, so that the first two products can be one, and so can those of their
gradients; and as the gradient of the last weight may need the hidden layer made again: the pass
over memory that finds the cotangents of gate and up has it at hand.
"""

import jax

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.gated_mlp import gpu, xla


def gated_mlp(
    x_BLD: jax.Array,
    gate_DM: jax.Array,
    up_DM: jax.Array,
    down_MD: jax.Array,
    *,
    recomputes: bool = False,
    implementation: str | None = None,
) -> jax.Array:
    """``(silu(x W_gate) * (x W_up)) W_down``: [B, L, D] in the dtype of x.

    Args:
        gate_DM, up_DM, down_MD: float32; multiplied with in the dtype of x.
        recomputes: the backward pass makes the hidden layer [B, L, M] again where the kernels run.
            Elsewhere that is for `jax.checkpoint` to say.
        implementation: see `Implementation`.
    """
    obstacles = {"pallas": gpu.obstacle(x_BLD, gate_DM), "xla": None, "reference": None}
    chosen = choose("gated_mlp", implementation, obstacles)
    if chosen == "pallas":
        return gpu.gated_mlp(x_BLD, gate_DM, up_DM, down_MD, recomputes)
    return xla.gated_mlp(x_BLD, gate_DM, up_DM, down_MD)
