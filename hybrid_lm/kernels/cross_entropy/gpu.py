"""One pass over the logits, as a Pallas kernel (Triton backend): a program holds a token's."""

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton

_LOGITS_PER_WARP = 1024
_VOCABULARIES = tuple(2**n for n in range(7, 15))


def _kernel(logits, targets, counts, nll, dlogits):
    t = pl.program_id(0)
    logits_V, counted = logits[t, :], counts[t] != 0
    is_target_V = jnp.arange(logits_V.shape[0]) == targets[t]
    most = jnp.max(logits_V)
    powers_V = jnp.exp(logits_V - most)
    total = jnp.sum(powers_V)
    target = jnp.sum(jnp.where(is_target_V, logits_V, 0.0))
    nll[t] = jnp.where(counted, jnp.log(total) + most - target, 0.0)
    dlogits_V = jnp.where(counted, powers_V / total - jnp.where(is_target_V, 1.0, 0.0), 0.0)
    dlogits[t, :] = dlogits_V.astype(dlogits.dtype)


def obstacle(logits_BCV: jax.Array) -> str | None:
    """Why the kernel cannot run on these logits; None if it can."""
    vocab_size = logits_BCV.shape[-1]
    if vocab_size not in _VOCABULARIES:
        return f"a vocabulary of {vocab_size} is not a power of 2 from 128 to 16384"
    return pallas_triton.obstacle(logits_BCV)


def cross_entropy(
    logits_BCV, targets_BC, counts_BC, dtype, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.cross_entropy.cross_entropy`."""
    vocab_size = logits_BCV.shape[-1]
    logits_TV = logits_BCV.reshape(-1, vocab_size)
    nll_T, dlogits_TV = pallas_triton.call(
        _kernel,
        logits_TV.shape[:1],
        (
            jax.ShapeDtypeStruct(logits_TV.shape[:1], jnp.float32),
            jax.ShapeDtypeStruct(logits_TV.shape, dtype),
        ),
        *(logits_TV, targets_BC.reshape(-1), counts_BC.reshape(-1).astype(jnp.int32)),
        warps=min(max(vocab_size // _LOGITS_PER_WARP, 1), 16),
        interpret=interpret,
    )
    return nll_T.reshape(targets_BC.shape), dlogits_TV.reshape(logits_BCV.shape)
