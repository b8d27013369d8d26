"""Cross-entropy without holding the logits of a whole batch."""

from functools import partial

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.cross_entropy import cross_entropy

_LOGITS = 2**26  # at a time: enough to fill a GPU, 256 MiB in float32


def token_nll(readout_BLD: jax.Array, embedding_VD: jax.Array, targets_BL: jax.Array) -> jax.Array:
    """``-log softmax(readout . embedding^T)[target]`` per token -> nll_BL, in nats.

    Computed in float32 (float64 if given). The logits exist for some positions at a time, in the
    forward and, recomputed, in the backward pass.
    """
    batch, length, _ = readout_BLD.shape

    @jax.checkpoint
    def chunk(args):
        readout_BCD, targets_BC = args
        logits_BCV = _logits(readout_BCD, embedding_VD)
        target_BC = jnp.take_along_axis(logits_BCV, targets_BC[..., None], axis=-1)[..., 0]
        return jax.nn.logsumexp(logits_BCV, axis=-1) - target_BC

    size = _positions(batch, length, embedding_VD.shape[0])
    nll_nBC = jax.lax.map(chunk, (_cut(readout_BLD, size), _cut(targets_BL, size)))
    return _join(nll_nBC, length)


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def summed_nll(
    readout_BLD: jax.Array,
    embedding_VD: jax.Array,
    targets_BL: jax.Array,
    counts_BL: jax.Array,
    implementation: str | None = None,
    unroll: bool = False,
) -> jax.Array:
    """`token_nll` summed over the tokens where the bool ``counts`` is True.

    The gradients are found together with the logits, which are never made a second time;
    ``implementation`` (see `Implementation`) is of what comes between. ``unroll``: compile every
    chunk of positions by itself, so that their gradients are not copied into a stack.
    """
    del implementation, unroll
    nll_BL = token_nll(readout_BLD, embedding_VD, targets_BL)
    return jnp.sum(jnp.where(counts_BL, nll_BL, 0.0))


def _forward(readout_BLD, embedding_VD, targets_BL, counts_BL, implementation, unroll):
    batch, length, _ = readout_BLD.shape
    size = _positions(batch, length, embedding_VD.shape[0])

    def step(total, args):
        readout_BCD, targets_BC, counts_BC = args
        nll_BC, dlogits_BCV = cross_entropy(
            _logits(readout_BCD, embedding_VD),
            targets_BC,
            counts_BC,
            readout_BCD.dtype,
            implementation=implementation,
        )
        weight_VD = embedding_VD.astype(readout_BCD.dtype)
        dreadout_BCD = _einsum("bcv,vd->bcd", dlogits_BCV, weight_VD)
        dembedding_VD = _einsum("bcv,bcd->vd", dlogits_BCV, readout_BCD)
        return (total[0] + jnp.sum(nll_BC), total[1] + dembedding_VD), dreadout_BCD.astype(
            readout_BCD.dtype
        )

    wide = jnp.promote_types(readout_BLD.dtype, jnp.float32)
    zeros = jnp.zeros((), wide), jnp.zeros(embedding_VD.shape, wide)
    chunks = [_cut(x, size) for x in (readout_BLD, targets_BL, counts_BL)]
    (nll, dembedding_VD), dreadout_nBCD = jax.lax.scan(step, zeros, tuple(chunks), unroll=unroll)
    return nll, (_join(dreadout_nBCD, length), dembedding_VD.astype(embedding_VD.dtype))


def _backward(implementation, unroll, gradients, dnll):
    del implementation, unroll
    return *((dnll * gradient).astype(gradient.dtype) for gradient in gradients), None, None


summed_nll.defvjp(_forward, _backward)


def _logits(readout_BCD: jax.Array, embedding_VD: jax.Array) -> jax.Array:
    return _einsum("bcd,vd->bcv", readout_BCD, embedding_VD.astype(readout_BCD.dtype))


def _einsum(spec: str, a: jax.Array, b: jax.Array) -> jax.Array:
    """Summed, and given, in float32 at least."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return jnp.einsum(spec, a, b, preferred_element_type=wide)


def _positions(batch: int, length: int, vocab_size: int) -> int:
    """How many positions of all rows are taken at a time."""
    return min(max(_LOGITS // (batch * vocab_size), 1), length)


def _cut(x_BL: jax.Array, size: int) -> jax.Array:
    """[B, L, ...] -> [chunks, B, C, ...], filled up with zeros."""
    x = jnp.pad(x_BL, [(0, 0), (0, -x_BL.shape[1] % size)] + [(0, 0)] * (x_BL.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], -1, size, *x.shape[2:]), 1, 0)


def _join(x_nBC: jax.Array, length: int) -> jax.Array:
    """[chunks, B, C, ...] -> [B, L, ...]"""
    x = jnp.moveaxis(x_nBC, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
