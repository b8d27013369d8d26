"""The definition; on GPUs XLA makes two passes over memory of its element-wise part."""

import jax

from hybrid_lm.kernels.precision import project


def gated_mlp(x_BLD, gate_DM, up_DM, down_MD) -> jax.Array:
    """See `hybrid_lm.kernels.gated_mlp.gated_mlp`."""
    hidden_BLM = jax.nn.silu(project("bld,dm->blm", x_BLD, gate_DM))
    hidden_BLM *= project("bld,dm->blm", x_BLD, up_DM)
    return project("blm,md->bld", hidden_BLM, down_MD)
