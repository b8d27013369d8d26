"""Sums inside the documents of a chunk as a Pallas kernel for NVIDIA GPUs (Triton backend)."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton


def _sums(x, run, sums, *, chunk, reverse):
    head, c, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    tokens, place = pl.ds(c * chunk, chunk), jnp.arange(chunk)
    i, j = place[None, :], place[:, None]
    run_C = run[batch, tokens]
    seen_CC = (i <= j if reverse else i >= j) & (run_C[None, :] == run_C[:, None])
    x_CC = jnp.where(seen_CC, x[batch, head, tokens][:, None], 0.0)
    sums[batch, head, tokens] = jnp.sum(x_CC, axis=0)


def _run(x_BHL, run_BL, chunk: int, interpret: bool, *, reverse: bool):
    batch, heads, length = x_BHL.shape
    return pallas_triton.call(
        partial(_sums, chunk=chunk, reverse=reverse),
        (heads, length // chunk, batch),
        jax.ShapeDtypeStruct(x_BHL.shape, x_BHL.dtype),
        x_BHL,
        run_BL,
        warps=1,
        interpret=interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def document_sums(chunk: int, interpret: bool, x_BHL: jax.Array, run_BL: jax.Array) -> jax.Array:
    """``sum_j x_j`` over the tokens j up to each, of its chunk and of its document.

    Args:
        chunk: tokens of a chunk.
        interpret: run it as plain XLA.
        x_BHL: float32, L a multiple of the chunk.
        run_BL: int32, other in every document of a chunk.
    """
    return _run(x_BHL, run_BL, chunk, interpret, reverse=False)


def _forward(chunk, interpret, x_BHL, run_BL):
    return _run(x_BHL, run_BL, chunk, interpret, reverse=False), run_BL


def _backward(chunk, interpret, run_BL, dsums_BHL):
    return _run(dsums_BHL, run_BL, chunk, interpret, reverse=True), None


document_sums.defvjp(_forward, _backward)
