"""The scans as Pallas kernels for NVIDIA GPUs (Triton backend): one walk each way.

An associative scan over the chunks is some ten passes over all states, each in kernels of its own.
Here a program walks over the chunks with a few channels in registers, several loads under way.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.block_scan.xla import LOW

_LANES = 256  # channels of a program
_AHEAD = 4  # chunks that are loaded together
_MERGED_LANES = 128  # the same in `merge`, for the one warp of a program
_MERGED = 1024  # of each array, loaded together in `merge`


def _carry(written, keeps, start, states, *, lanes, ahead):
    batch, row = pl.program_id(0), pl.program_id(1)
    block = pl.ds(pl.program_id(2) * lanes, lanes)
    state_F = start[batch, row, block]
    states[batch, 0, row, block] = state_F

    def step(i, state_F):
        chunks = [i * ahead + j for j in range(ahead)]
        came = [(written[batch, c, row, block], keeps[batch, c, row]) for c in chunks]
        for c, (written_F, kept) in zip(chunks, came, strict=True):
            state_F = kept * state_F + written_F
            states[batch, c + 1, row, block] = state_F
        return state_F

    jax.lax.fori_loop(0, written.shape[1] // ahead, step, state_F)


def _carry_gradients(dstates, keeps, dwritten, dstart, *, lanes, ahead):
    batch, row = pl.program_id(0), pl.program_id(1)
    block = pl.ds(pl.program_id(2) * lanes, lanes)
    count = dwritten.shape[1]

    def step(i, later_F):
        chunks = [count - 1 - (i * ahead + j) for j in range(ahead)]
        came = [(dstates[batch, c + 1, row, block], keeps[batch, c, row]) for c in chunks]
        for c, (dstate_F, kept) in zip(chunks, came, strict=True):
            dstate_F += later_F
            dwritten[batch, c, row, block] = dstate_F
            later_F = kept * dstate_F
        return later_F

    later_F = jax.lax.fori_loop(0, count // ahead, step, jnp.zeros(lanes, jnp.float32))
    dstart[batch, row, block] = dstates[batch, 0, row, block] + later_F


def _shares(left_R, right_R, kept_R):
    """Log mass of both together, and what part of it each is."""
    left_R = jnp.where(kept_R > 0, left_R, LOW)
    some_left, some_right = left_R > LOW / 2, right_R > LOW / 2
    top_R = jnp.maximum(left_R, right_R)
    both_R = top_R + jnp.log(jnp.exp(left_R - top_R) + jnp.exp(right_R - top_R))
    both_R = jnp.where(some_left | some_right, both_R, LOW)
    left_R = jnp.where(some_left, jnp.exp(left_R - both_R), 0.0)
    return both_R, left_R, jnp.where(some_right, jnp.exp(right_R - both_R), 0.0)


def _merge(
    values, log_mass, keeps, start_log_mass, start_values, all_log_mass, all_values, *, rows, ahead
):
    batch, block = pl.program_id(0), pl.ds(pl.program_id(1) * rows, rows)
    held_R, held_RP = start_log_mass[batch, block], start_values[batch, block, :]
    all_log_mass[batch, 0, block], all_values[batch, 0, block, :] = held_R, held_RP

    def step(i, held):
        chunks = [i * ahead + j for j in range(ahead)]
        came = [
            (log_mass[batch, c, block], values[batch, c, block, :], keeps[batch, c, block])
            for c in chunks
        ]
        held_R, held_RP = held
        for c, (log_mass_R, values_RP, kept_R) in zip(chunks, came, strict=True):
            held_R, left_R, right_R = _shares(held_R, log_mass_R, kept_R)
            held_RP = left_R[:, None] * held_RP + right_R[:, None] * values_RP
            all_log_mass[batch, c + 1, block] = held_R
            all_values[batch, c + 1, block, :] = held_RP
        return held_R, held_RP

    jax.lax.fori_loop(0, values.shape[1] // ahead, step, (held_R, held_RP))


def _merge_gradients(
    values,
    log_mass,
    keeps,
    all_log_mass,
    all_values,
    dall_log_mass,
    dall_values,
    dlog_mass,
    dvalues,
    dstart_log_mass,
    dstart_values,
    *,
    rows,
    ahead,
):
    batch, block = pl.program_id(0), pl.ds(pl.program_id(1) * rows, rows)
    count = values.shape[1]

    def step(i, later):
        chunks = [count - 1 - (i * ahead + j) for j in range(ahead)]
        came = [
            (
                (all_log_mass[batch, c, block], log_mass[batch, c, block], keeps[batch, c, block]),
                (all_values[batch, c, block, :], values[batch, c, block, :]),
                (dall_log_mass[batch, c + 1, block], dall_values[batch, c + 1, block, :]),
            )
            for c in chunks
        ]
        later_R, later_RP = later
        for c, (masses, (left_RP, right_RP), (dheld_R, dheld_RP)) in zip(chunks, came, strict=True):
            _, left_R, right_R = _shares(*masses)
            dheld_R, dheld_RP = dheld_R + later_R, dheld_RP + later_RP
            dleft_R = jnp.sum(dheld_RP * left_RP, axis=1)
            dright_R = jnp.sum(dheld_RP * right_RP, axis=1)
            # The shares add up to 1, and the log mass moves by a share of what either moves by.
            dheld_R -= left_R * dleft_R + right_R * dright_R
            dlog_mass[batch, c, block] = right_R * (dright_R + dheld_R)
            dvalues[batch, c, block, :] = right_R[:, None] * dheld_RP
            later_R, later_RP = left_R * (dleft_R + dheld_R), left_R[:, None] * dheld_RP
        return later_R, later_RP

    nothing = jnp.zeros(rows, jnp.float32), jnp.zeros((rows, values.shape[3]), jnp.float32)
    later_R, later_RP = jax.lax.fori_loop(0, count // ahead, step, nothing)
    dstart_log_mass[batch, block] = dall_log_mass[batch, 0, block] + later_R
    dstart_values[batch, block, :] = dall_values[batch, 0, block, :] + later_RP


def _like(x, extra: int = 0):
    """[B, n, ...] -> the shape of [B, n + extra, ...]."""
    return jax.ShapeDtypeStruct((x.shape[0], x.shape[1] + extra, *x.shape[2:]), x.dtype)


def _power_of_2(size: int, most: int) -> int:
    """The largest that divides ``size`` and is at most ``most``, itself a power of 2."""
    return math.gcd(size, most)


def _run(kernel, grid, outputs, *operands, interpret, warps=4, **sizes):
    kernel = partial(kernel, **sizes)
    return pallas_triton.call(kernel, grid, outputs, *operands, warps=warps, interpret=interpret)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _carried(written_BnRF, keeps_BnR, start_BRF, interpret: bool):
    batch, count, rows, size = written_BnRF.shape
    lanes = _power_of_2(size, _LANES)
    sizes = {"lanes": lanes, "ahead": _power_of_2(count, _AHEAD), "interpret": interpret}
    grid = (batch, rows, size // lanes)
    return _run(_carry, grid, _like(written_BnRF, 1), written_BnRF, keeps_BnR, start_BRF, **sizes)


def _carried_forward(written_BnRF, keeps_BnR, start_BRF, interpret):
    return _carried(written_BnRF, keeps_BnR, start_BRF, interpret), keeps_BnR


def _carried_backward(interpret, keeps_BnR, dstates_BnRF):
    batch, count, rows, size = dstates_BnRF.shape
    lanes = _power_of_2(size, _LANES)
    sizes = {"lanes": lanes, "ahead": _power_of_2(count - 1, _AHEAD), "interpret": interpret}
    outputs = _like(dstates_BnRF, -1), _like(dstates_BnRF[:, 0])
    grid = (batch, rows, size // lanes)
    dwritten, dstart = _run(_carry_gradients, grid, outputs, dstates_BnRF, keeps_BnR, **sizes)
    return dwritten, None, dstart


_carried.defvjp(_carried_forward, _carried_backward)


def _run_merged(kernel, outputs, values_BnRP, *operands, interpret):
    batch, count, rows, width = values_BnRP.shape
    block = _power_of_2(rows, max(1, _MERGED_LANES // width))
    ahead = _power_of_2(count, max(1, _MERGED // (block * width)))
    options = {"rows": block, "ahead": ahead, "warps": 1, "interpret": interpret}
    grid = (batch, rows // block)
    return tuple(_run(kernel, grid, outputs, values_BnRP, *operands, **options))


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _merged(log_mass_BnR, values_BnRP, keeps_BnR, start_BR, start_BRP, interpret: bool):
    outputs = _like(log_mass_BnR, 1), _like(values_BnRP, 1)
    operands = (values_BnRP, log_mass_BnR, keeps_BnR, start_BR, start_BRP)
    return _run_merged(_merge, outputs, *operands, interpret=interpret)


def _merged_forward(log_mass_BnR, values_BnRP, keeps_BnR, start_BR, start_BRP, interpret):
    merged: Any = _merged(log_mass_BnR, values_BnRP, keeps_BnR, start_BR, start_BRP, interpret)
    return merged, (values_BnRP, log_mass_BnR, keeps_BnR, *merged)


def _merged_backward(interpret, residuals, cotangents):
    values_BnRP, log_mass_BnR, *_ = residuals
    outputs = _like(log_mass_BnR), _like(values_BnRP)
    outputs = *outputs, _like(log_mass_BnR[:, 0]), _like(values_BnRP[:, 0])
    operands = (*residuals, *cotangents)
    gradients = _run_merged(_merge_gradients, outputs, *operands, interpret=interpret)
    dlog_mass, dvalues, dstart_log_mass, dstart_values = gradients
    return dlog_mass, dvalues, None, dstart_log_mass, dstart_values


_merged.defvjp(_merged_forward, _merged_backward)


def obstacle(values: jax.Array) -> str | None:
    """Why the kernels cannot run on these values; None if they can."""
    if values.shape[-1] & (values.shape[-1] - 1):
        return f"{values.shape[-1]} channels are no power of 2"
    return pallas_triton.obstacle(values)


def carry(keeps, written, start, *, interpret: bool = False) -> jax.Array:
    """See `hybrid_lm.kernels.block_scan.carry`."""
    keeps_BnR = keeps.reshape(*keeps.shape[:2], -1).astype(jnp.float32)
    written_BnRF = written.reshape(*keeps_BnR.shape, -1)
    start_BRF = start.reshape(written_BnRF[:, 0].shape)
    states: Any = _carried(written_BnRF, keeps_BnR, start_BRF, interpret)
    return states.reshape(written.shape[0], -1, *written.shape[2:])


def merge(
    keeps_BnM, log_mass, values, start_log_mass, start_values, *, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.block_scan.merge`."""
    batch, count, marks, heads, width = values.shape
    keeps_BnR = jnp.repeat(keeps_BnM, heads, axis=2).astype(jnp.float32)
    log_mass, values = log_mass.reshape(keeps_BnR.shape), values.reshape(*keeps_BnR.shape, width)
    starts = start_log_mass.reshape(batch, -1), start_values.reshape(batch, -1, width)
    merged: Any = _merged(log_mass, values, keeps_BnR, *starts, interpret)
    shape = (batch, count + 1, marks, heads)
    return merged[0].reshape(shape), merged[1].reshape(*shape, width)
