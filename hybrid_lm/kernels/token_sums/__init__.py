"""Rows summed by the token they are of: the gradient of a table that tokens were looked up in.

A scatter-add serialises where many tokens share a row, as the bytes of real text do (on an H100 it
took a fifth of a step), adds in the dtype of the activations, and in no fixed order.
"""

import jax

from hybrid_lm.kernels.dispatch import choose
from hybrid_lm.kernels.token_sums import gpu, reference, xla


def token_sums(
    values_BLD: jax.Array,
    tokens_BL: jax.Array,
    vocab_size: int,
    *,
    implementation: str | None = None,
) -> jax.Array:
    """``sum_bl [tokens_bl = v] values_bl`` -> sums_VD in float32 (float64 if given).

    Args:
        tokens_BL: integers from 0 to ``vocab_size - 1``.
        implementation: see `Implementation`.
    """
    obstacles = {"pallas": gpu.obstacle(values_BLD), "xla": None, "reference": None}
    chosen = choose("token_sums", implementation, obstacles)
    run = {"pallas": gpu, "xla": xla, "reference": reference}[chosen].token_sums
    return run(values_BLD, tokens_BL, vocab_size)
