"""Cross-entropy without holding the logits of a whole row."""

import jax
import jax.numpy as jnp


def token_nll(
    readout_BLD: jax.Array,
    embedding_VD: jax.Array,
    targets_BL: jax.Array,
    *,
    chunk_size: int = 1024,
) -> jax.Array:
    """``-log softmax(readout . embedding^T)[target]`` per token -> nll_BL, in nats.

    Computed in float32 (float64 if given).

    The logits exist for ``chunk_size`` positions at a time, in the forward and, recomputed, in the
    backward pass.
    """
    batch, length, _ = readout_BLD.shape
    size = min(chunk_size, length)
    wide = jnp.promote_types(readout_BLD.dtype, jnp.float32)

    def cut(x):
        x = jnp.pad(x, [(0, 0), (0, -length % size)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(batch, -1, size, *x.shape[2:]), 1, 0)

    @jax.checkpoint
    def chunk(args):
        readout_BCD, targets_BC = args
        weight_VD = embedding_VD.astype(readout_BCD.dtype)
        logits_BCV = jnp.einsum("bcd,vd->bcv", readout_BCD, weight_VD, preferred_element_type=wide)
        target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits_BCV, axis=-1) - target_BC

    nll_nBC = jax.lax.map(chunk, (cut(readout_BLD), cut(targets_BL)))
    return jnp.moveaxis(nll_nBC, 0, 1).reshape(batch, -1)[:, :length]
