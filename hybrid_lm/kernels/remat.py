"""What is worth its memory where layers are recomputed in the backward pass."""

from typing import Any

import jax
from jax.ad_checkpoint import checkpoint_name

_KEPT = "kept"
_CUDNN_ATTENTION = "dot_product_attention_fwd_wrapper"  # what it keeps cannot be named from outside


def keep(x: jax.Array) -> jax.Array:
    """``x``, a kernel's result, marked for `is_kept`."""
    return checkpoint_name(x, _KEPT)


def is_kept(primitive: Any, *args: Any, **params: Any) -> bool:
    """Policy of `jax.checkpoint`: results of matrix products, of attention, and what is marked."""
    policies = jax.checkpoint_policies
    return (
        policies.dots_with_no_batch_dims_saveable(primitive, *args, **params)
        or policies.save_only_these_names(_KEPT)(primitive, *args, **params)
        or primitive.name == _CUDNN_ATTENTION
    )
