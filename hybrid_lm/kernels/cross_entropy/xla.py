"""The definition; XLA reads the logits three times for it."""

import jax
import jax.numpy as jnp


def cross_entropy(logits_BCV, targets_BC, counts_BC, dtype) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.cross_entropy.cross_entropy`."""
    total_BC = jax.nn.logsumexp(logits_BCV, axis=-1)
    target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
    nll_BC = jnp.where(counts_BC, total_BC - target_BC, 0.0)
    is_target_BCV = targets_BC[..., None] == jnp.arange(logits_BCV.shape[-1])
    dlogits_BCV = jnp.exp(logits_BCV - total_BC[..., None]) - is_target_BCV
    return nll_BC, jnp.where(counts_BC[..., None], dlogits_BCV, 0.0).astype(dtype)
