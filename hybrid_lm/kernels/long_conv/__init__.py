"""Causal depthwise convolution with a filter that may be as long as the document.

``y_t = sum_k filter_k u_{t-k}`` per channel, over the tokens of t's document. A document starts
with an empty past, so that rows are packed exactly.
"""

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.long_conv import reference, xla
from hybrid_lm.kernels.long_conv.xla import flops_per_input

__all__ = ["flops_per_input", "long_conv"]


def long_conv(
    u_BLD: jax.Array,
    filter_MD: jax.Array,
    resets_BL: jax.Array | None = None,
    past_BSD: jax.Array | None = None,
    *,
    chunk_size: int = 128,
    implementation: str | None = None,
) -> jax.Array:
    """Convolve the rows with the filter.

    Args:
        u_BLD: inputs; computed in float32 (float64 if given).
        filter_MD: M taps, the first one on the token itself.
        resets_BL: True where a document starts; None: nowhere.
        past_BSD: the S inputs before the row, 0 where they are of an earlier document; None is
            none.
        chunk_size: from how many tokens on the XLA form transforms instead of multiplying.
        implementation: see `Implementation`.

    Returns:
        y_BLD.
    """
    wide = jnp.result_type(u_BLD, filter_MD, jnp.float32)
    if past_BSD is None:
        past_BSD = jnp.zeros_like(u_BLD[:, :0])
    operands = u_BLD.astype(wide), filter_MD.astype(wide), resets_BL, past_BSD.astype(wide)
    if choose("long_conv", implementation, {"xla": None, "reference": None}) == "reference":
        return reference.long_conv(*operands)
    return xla.long_conv(*operands, chunk_size=chunk_size)
