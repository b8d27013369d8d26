"""Time-invariant state spaces in chunks as Pallas kernels for NVIDIA GPUs (Triton backend).

A channel is a system of its own, the same at every token. Over a chunk x of C tokens, with T the
Toeplitz matrix of its first C taps, ``y = x T + h read`` and ``h <- h across + x write``. A program
owns a channel and steps through many places of the rows side by side (spans, as many as fill a
tile), so that all of it is products of tiles [spans, C] with matrices that stay on chip: once from
zero for what each span leaves, which doubling sums then bring from span to span (also as products,
with shifts), and once from the right states. The states go to memory for the gradient alone.

Backwards the same kernel runs the transposed system in reverse, where ``write`` and ``read`` change
places; `_gradients` then sums over all chunks what their matrices get. All sums are in a fixed
order. A skip from inputs to outputs is part of the first tap.

Packed rows: ``run`` numbers the documents of a chunk. A tile goes through T once with the tokens of
the first document of each chunk, once with those of the last, and once per document in between.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.time_invariant.finish import finish, gelu_slope
from hybrid_lm.kernels.time_invariant.gradients import gradients
from hybrid_lm.kernels.time_invariant.maps import Maps
from hybrid_lm.kernels.time_invariant.outputs import outputs
from hybrid_lm.kernels.time_invariant.sizes import Sizes, choose_sizes

__all__ = ["Maps", "finish", "obstacle", "scan"]

Remainder = Callable[[jax.Array, jax.Array | None, jax.Array], tuple[jax.Array, jax.Array]]


@partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _scan(u_DRT, run, maps: Maps, start_DBQP, gelu: bool, sizes: Sizes):
    """Outputs and last state; ``run``: none, or int8 [R, T] in a tuple."""
    return _scan_forward(u_DRT, run, maps, start_DBQP, gelu, sizes)[0]


def _scan_forward(u_DRT, run, maps: Maps, start_DBQP, gelu, sizes):
    taps_DC, write_DQCP, read_DQCP = (x.astype(u_DRT.dtype) for x in maps[:3])
    maps = Maps(taps_DC, write_DQCP, read_DQCP, maps.across)
    y, before, last, *before_gelu = outputs(u_DRT, run, maps, start_DBQP, sizes, gelu=gelu)
    return (y, last), (u_DRT, run, maps, before, before_gelu)


def _scan_backward(gelu, sizes, residuals, cotangents):
    del gelu
    u, run, maps, before, before_gelu = residuals
    dy, dlast = cotangents
    for x in before_gelu:
        # In the kernel, whose loads then no longer run ahead, it costs several such passes.
        dy = (dy * gelu_slope(x.astype(jnp.float32))).astype(dy.dtype)
    du, after, dstart = outputs(dy, run, maps.turned(), dlast, sizes, reverse=True)
    dmaps = gradients(u, dy, before, after, run, maps.across, sizes)
    return du, None, dmaps, dstart


_scan.defvjp(_scan_forward, _scan_backward)


def obstacle(u_BLD: jax.Array, state_size: int) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    if state_size > 64:
        return f"state_size {state_size} is more than the 64 that fit on chip"
    return pallas_triton.obstacle(u_BLD)


def scan(
    u_BLD: jax.Array,
    maps: Maps,
    resets_BL: jax.Array | None,
    initial_state_BDQP: jax.Array | None,
    remainder: Remainder,
    *,
    gelu: bool,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Run the systems over L, from a state (None: zero) to the last one; outputs in float32.

    With ``gelu``: the GELU of the outputs, in the dtype of u.

    From zero, rows are filled up in front. From a state, what is left after whole spans goes first:
    ``remainder(u_BLD, resets_BL, state_BDQP)`` is the same operation in another form.
    """
    batch, length, width = u_BLD.shape
    chunk, state = maps.taps_DC.shape[1], initial_state_BDQP
    chunks = -(-length // chunk) if state is None else length // chunk
    if state is not None and not chunks:
        return remainder(u_BLD, resets_BL, state)
    sizes = choose_sizes(batch, chunks, chunk, state is None, maps.dense, interpret)

    whole = sizes.spans * sizes.steps * chunk
    front, lead = max(0, length - whole), max(0, whole - length)
    y_front = []
    if state is None:
        parts, pairs = maps.write_DQCP.shape[1], maps.write_DQCP.shape[3]
        state = jnp.zeros((batch, width, parts, pairs), jnp.float32)
    elif front:
        resets = None if resets_BL is None else resets_BL[:, :front]
        y_BLD, state = remainder(u_BLD[:, :front], resets, state)
        y_front = [y_BLD]
    run = ()
    if resets_BL is not None:
        resets_BL = jnp.pad(resets_BL[:, front:], ((0, 0), (lead, 0)))
        run_BnC = jnp.cumsum(resets_BL.reshape(batch, -1, chunk), axis=2, dtype=jnp.int32)
        run = (sizes.by_tile(run_BnC.astype(jnp.int8).reshape(batch, -1)),)
    u_DBL = jnp.pad(u_BLD[:, front:], ((0, 0), (lead, 0), (0, 0))).transpose(2, 0, 1)
    u_DRT = sizes.by_tile(u_DBL, axis=1)
    operands = u_DRT, run, maps, state.swapaxes(0, 1), gelu, sizes
    y_DRT, last_DBQP = _scan(*operands)  # pyright: ignore[reportGeneralTypeIssues]
    y_BLD = sizes.by_row(y_DRT)[:, :, lead:].transpose(1, 2, 0)
    if not gelu:
        y_BLD = y_BLD.astype(jnp.float32)
    return jnp.concatenate([*y_front, y_BLD], axis=1), last_DBQP.swapaxes(0, 1)
