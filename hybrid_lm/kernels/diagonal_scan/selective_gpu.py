"""The selective scan as Pallas kernels for NVIDIA GPUs (Triton backend).

One walk over time, the states in registers, where batch and channels fill the card; otherwise time
is cut in pieces: a first walk from zero finds what each piece leaves behind, those are combined,
and a second walk starts from the right states. The backward pass mirrors this in reverse time and
makes states anew from one saved every `TOKENS`. All sums are in a fixed order: repeats are
bit-identical. Where B, C and the output are bfloat16, forward walks and the first walk backward
are on matrix units (`selective_matrix`).

Layout: decays in log2 (one exp2 each); `keep` is 0, or -1e30 where a document starts, and is added
to the log decay. State arrays are [B, pieces, N, E] so that lanes touch neighbouring addresses.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.diagonal_scan import (
    selective_backward,
    selective_forward,
    selective_matrix,
)
from hybrid_lm.kernels.diagonal_scan.selective_fragments import CHANNELS, fragments, on_matrix_units
from hybrid_lm.kernels.diagonal_scan.selective_fragments import warps as warps_of_fragments
from hybrid_lm.kernels.diagonal_scan.selective_lanes import LOG2_E
from hybrid_lm.kernels.diagonal_scan.selective_layout import (
    PROGRAM_STATES,
    channels,
    side_by_side,
    turn,
    warps,
)

_CLEAR = -1e30  # log2 of the decay across a start of document; exp2 of it is exactly 0
_STOPPED = -1e30  # softplus of it is exactly 0: a token that leaves the state as it is
_PROGRAMS = 256  # that fill the card
_MIN_PIECE = 128  # tokens
_PIECE_TOKENS = selective_forward.TOKENS * selective_matrix.TOGETHER  # make the lengths of pieces
_STATES = (4, 16, 32, 64)  # whose layouts have passed on a GPU; others are padded


class _Grid:
    """Sizes of the padded operands, and the calls over them."""

    def __init__(self, x: dict[str, Any], out_dtype: DTypeLike, pieces: int, interpret: bool):
        self.batch, self.length, self.inner = x["u"].shape
        self.states = x["a"].shape[0]
        self.pieces, self.interpret = pieces, interpret
        self.blocks = self.inner // channels(self.states)
        # An output in float32 is not to read the states to 11 bits.
        self.products = out_dtype == jnp.bfloat16 and on_matrix_units(x["b"], x["c"])

    def f32(self, *shape):
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    def per_piece(self):
        return self.f32(self.batch, self.pieces, self.states, self.inner)

    def forward(self, x, outputs):
        if self.products:
            return self._fragments(selective_matrix.walk, x, x["b"], x["c"], outputs)
        return self._tiles(selective_forward.walk, selective_forward, x, outputs)

    def cotangent(self, x, outputs):
        if self.products:
            return self._fragments(selective_matrix.walk_cotangent, x, x["c"], x["b"], outputs)
        return self._tiles(selective_backward.walk_cotangent, selective_backward, x, outputs)

    def gradients(self, x, outputs):
        return self._tiles(selective_backward.walk_gradients, selective_backward, x, outputs)

    def _fragments(self, kernel, x, b, c, outputs):
        count = warps_of_fragments(self.inner)
        blocks = self.inner // (CHANNELS * count)
        return self._call(kernel, x, fragments(b, c), outputs, blocks, count)

    def _tiles(self, kernel, layout, x, outputs):
        bc = side_by_side(x["b"], x["c"], layout.HELD)
        return self._call(kernel, x, bc, outputs, self.blocks, warps(layout.HELD * layout.BESIDE))

    def _call(self, kernel, x, bc, outputs, blocks, warps):
        kernel = partial(
            kernel,
            states=self.states,
            length=self.length // self.pieces,
            interpret=self.interpret,
        )
        return pallas_triton.call(
            kernel,
            (self.batch, self.pieces, blocks),
            outputs,
            x | {"b": None, "c": None, "bc": bc},
            warps=warps,
            interpret=self.interpret,
        )


def _pass_on(decay, end, start, *, reverse):
    """What enters each piece [B, pieces, N, E] when each maps s to ``decay s + end``."""
    first, others = (-1, slice(1, None)) if reverse else (0, slice(None, -1))
    end = end.at[:, first].add(decay[:, first] * start)

    def after(one, two):
        return one[0] * two[0], two[1] + two[0] * one[1]

    _, passed = jax.lax.associative_scan(after, (decay, end), reverse=reverse, axis=1)
    parts = [start[:, None], passed[:, others]]
    return jnp.concatenate(parts[::-1] if reverse else parts, axis=1)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3, 4))
def _scan(x, h0, out_dtype, pieces, interpret):
    """The scan of padded operands: ``x`` as in `walk`, without ``start``; h0 [B, N, E]."""
    return _forward(x, h0, out_dtype, pieces, interpret, save=False)[0]


def _forward(x, h0, out_dtype, pieces, interpret, save=True):
    grid = _Grid(x, out_dtype, pieces, interpret)
    before = h0[:, None]
    if pieces > 1:
        ends = {"end": grid.per_piece(), "decay": grid.per_piece()}
        first = grid.forward(x | {"start": None}, ends)
        before = _pass_on(first["decay"], first["end"], h0, reverse=False)
    outputs = {"out": jax.ShapeDtypeStruct(x["u"].shape, out_dtype), "end": grid.per_piece()}
    if save:
        rounds = grid.length // selective_forward.TOKENS
        outputs["saved"] = grid.f32(grid.batch, rounds, grid.blocks, PROGRAM_STATES)
    y = grid.forward(x | {"start": before}, outputs)
    return (y["out"], y["end"][:, -1]), (x, y.get("saved"))


def _backward(out_dtype, pieces, interpret, residuals, cotangents):
    x, saved = residuals
    dout, dlast = cotangents
    grid = _Grid(x, out_dtype, pieces, interpret)
    x_dout = x | {"dout": dout}
    after = dlast[:, None]
    if pieces > 1:
        starts = {"start": grid.per_piece(), "decay": grid.per_piece()}
        first = grid.cotangent(x_dout, starts)
        after = _pass_on(first["decay"], first["start"], dlast, reverse=True)
    tokens = selective_forward.TOKENS
    outputs = {
        "du": jax.ShapeDtypeStruct(x["u"].shape, x["u"].dtype),
        "dstep": jax.ShapeDtypeStruct(x["step"].shape, x["step"].dtype),
        "start": grid.per_piece(),
        "da": grid.per_piece(),
        "db_dc": grid.f32(
            grid.batch,
            grid.blocks,
            grid.length // tokens,
            grid.states // selective_backward.HELD,
            tokens * 2 * selective_backward.HELD,
        ),
    }
    if x["gate"] is not None:
        outputs["dgate"] = jax.ShapeDtypeStruct(x["gate"].shape, x["gate"].dtype)
    for name in ("skip", "bias"):
        if x[name] is not None:
            outputs["d" + name] = grid.f32(grid.batch, grid.pieces, grid.inner)
    turned = {name: turn(x[name], selective_backward.HELD) for name in ("b", "c")}
    x_dout |= turned | {"saved": saved, "after": after}
    y = grid.gradients(x_dout, outputs)
    db, dc = selective_backward.db_dc(y["db_dc"].sum(axis=1))
    dx = {
        "u": y["du"],
        "step": y["dstep"],
        "a": y["da"].sum(axis=(0, 1)),
        "b": db.astype(x["b"].dtype),
        "c": dc.astype(x["c"].dtype),
    }
    dx |= {"gate": y.get("dgate"), "keep": None}
    for name in ("skip", "bias"):
        dx[name] = None if x[name] is None else y["d" + name].sum(axis=(0, 1))
    return dx, y["start"][:, 0]


_scan.defvjp(_forward, _backward)


def obstacle(u_BLE: jax.Array, a_EN: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    common = pallas_triton.obstacle(u_BLE)
    if common is None and a_EN.shape[1] > _STATES[-1]:
        return f"state_size {a_EN.shape[1]} is more than {_STATES[-1]}"
    return common


def _pieces(programs: int, length: int) -> int:
    """Pieces of time: one where ``programs`` fill more than half of the card, else as many as fill
    it twice, so that a warp that waits leaves the work to others.
    """
    fill = _PROGRAMS // programs
    return max(1, min(2 * fill, length // _MIN_PIECE)) if fill > 1 else 1


def selective_scan(
    u_BLE: jax.Array,
    step_BLE: jax.Array,
    a_EN: jax.Array,
    b_BLN: jax.Array,
    c_BLN: jax.Array,
    resets_BL: jax.Array | None,
    h0_BEN: jax.Array,
    *,
    step_bias_E: jax.Array | None = None,
    skip_E: jax.Array | None = None,
    gate_BLE: jax.Array | None = None,
    out_dtype: DTypeLike | None = None,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.diagonal_scan.selective.selective_scan`; any L, any E."""
    batch, length, inner = u_BLE.shape
    states = min(states for states in _STATES if states >= a_EN.shape[1])
    extra = states - a_EN.shape[1]
    pieces = _pieces(batch * -(-inner // channels(states)), length)
    tokens, idle = -length % (_PIECE_TOKENS * pieces), -inner % channels(states)

    def pad(x, *edges, fill=0.0):
        if x is None or not any(edges):
            return x
        return jnp.pad(x, [(0, edge) for edge in edges], constant_values=fill)

    def f32(x):
        return None if x is None else x.astype(jnp.float32)

    keep_BL = None
    if resets_BL is not None:
        keep_BL = jnp.where(resets_BL, _CLEAR, 0.0).astype(jnp.float32)
    # Steps of zero keep the state; states and channels beyond the end stay zero.
    still = 0.0 if step_bias_E is None else _STOPPED
    x = {
        "u": pad(u_BLE, 0, tokens, idle),
        "step": pad(step_BLE, 0, tokens, idle, fill=still),
        "a": pad(a_EN.astype(jnp.float32).T * LOG2_E, extra, idle),
        "b": pad(b_BLN, 0, tokens, extra),
        "c": pad(c_BLN, 0, tokens, extra),
        "keep": pad(keep_BL, 0, tokens),
        "bias": pad(f32(step_bias_E), idle),
        "skip": pad(f32(skip_E), idle),
        "gate": pad(gate_BLE, 0, tokens, idle),
    }
    h0_BNE = pad(h0_BEN.astype(jnp.float32).swapaxes(1, 2), 0, extra, idle)
    y_BLE, h_BNE = _scan(  # pyright: ignore[reportGeneralTypeIssues]
        x, h0_BNE, jnp.dtype(out_dtype or jnp.float32), pieces, interpret
    )
    return y_BLE[:, :length, :inner], h_BNE[:, : a_EN.shape[1], :inner].swapaxes(1, 2)
