"""State-space duality as Pallas kernels for TPUs.

One kernel each way walks over the chunks of some heads with their states in VMEM: forward it
leaves outputs and, for gradients, the state before each chunk; backward it walks in reverse with
the cotangents of the states and leaves all gradients of a chunk. The formulas inside a chunk are
those of `hybrid_lm.kernels.chunked_gpu`.

Heads come before tokens here, [B, H, L, P], so that a block is a matrix of tokens and channels.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import chunked_gpu, pallas_tpu
from hybrid_lm.kernels.pallas_tpu import column, dot, row

_CHUNK = 128
_HEADS = 8  # of a program: the sublanes of a tile of decays
_MOST_HEADS = 16  # that a program takes if their number is no multiple of 8
_DIMS = (16, 32, 64, 128, 256)


class _Sizes(NamedTuple):
    """Of a program: tokens, heads, and how many of these share a q and k."""

    chunk: int
    heads: int
    share: int
    interpret: pallas_tpu.Interpret


def _decay(total_1C, run_1C, *, keys_first=False):
    """decay_CC from token j to token i of a chunk, 0 where i does not see j; [i, j] or [j, i]."""
    i, j = pallas_tpu.places(total_1C.shape[1])
    total_C1, run_C1 = column(total_1C), column(run_1C)
    gap = total_C1 - total_1C
    seen = run_C1 == run_1C
    seen, gap = (seen & (j >= i), -gap) if keys_first else (seen & (i >= j), gap)
    gap = jnp.minimum(gap, 0.0)  # above 0 only by rounding
    return jnp.exp(jnp.where(seen, gap, -jnp.inf))


def _over_chunk(from_start_1C):
    """What is left at the end of the chunk of the state before it, [1, 1]."""
    place = jax.lax.broadcasted_iota(jnp.int32, from_start_1C.shape, 1)
    last = place == from_start_1C.shape[1] - 1
    return jnp.sum(jnp.where(last, from_start_1C, 0.0), axis=1, keepdims=True)


def _forward(q, k, v, total, from_start, to_end, run, start, y, last, *refs, sizes: _Sizes):
    *saved, state = refs
    chunk, chunks = pl.program_id(2), pl.num_programs(2)

    @pl.when(chunk == 0)
    def _():
        state[...] = start[0]

    for h in range(sizes.heads):
        group, lane = h // sizes.share, slice(h, h + 1)
        q_CN, k_CN, v_CP, before_NP = q[0, group], k[0, group], v[0, h], state[h]
        for ref in saved:
            ref[0, 0, h] = before_NP.astype(ref.dtype)
        from_start_1C = from_start[0, lane]
        weights_CC = dot(q_CN, k_CN, trans_b=True) * _decay(total[0, lane], run[0])
        y_CP = column(from_start_1C) * dot(q_CN, before_NP.astype(q_CN.dtype))
        y_CP += dot(weights_CC.astype(v_CP.dtype), v_CP)
        y[0, h] = y_CP.astype(y.dtype)
        kept_CP = (v_CP * column(to_end[0, lane])).astype(v_CP.dtype)
        state[h] = _over_chunk(from_start_1C) * before_NP + dot(k_CN, kept_CP, trans_a=True)

    @pl.when(chunk == chunks - 1)
    def _():
        last[0] = state[...]


def _backward(*refs, sizes: _Sizes):
    q, k, v, total, from_start, to_end, run, before, dy, dlast = refs[:10]
    dq, dk, dv, dtotal, dfrom_start, dto_end, dstart, after = refs[10:]
    step, chunks = pl.program_id(2), pl.num_programs(2)

    @pl.when(step == 0)
    def _():
        after[...] = dlast[0]

    groups = dq.shape[1]
    dq_CN = [jnp.zeros(dq.shape[2:], jnp.float32)] * groups
    dk_CN = [jnp.zeros(dk.shape[2:], jnp.float32)] * groups
    for h in range(sizes.heads):
        group, lane = h // sizes.share, slice(h, h + 1)
        q_CN, k_CN, v_CP, dy_CP = q[0, group], k[0, group], v[0, h], dy[0, h]
        before_NP, after_NP = before[0, 0, h], after[h].astype(v_CP.dtype)
        total_1C, from_start_1C, run_1C = total[0, lane], from_start[0, lane], run[0]
        from_start_C1, to_end_C1 = column(from_start_1C), column(to_end[0, lane])

        # What is read: of the state before the chunk, and of the writes in it.
        read_CN = dot(dy_CP, before_NP, trans_b=True)
        dread_1C = row(jnp.sum(read_CN * q_CN, axis=1, keepdims=True))
        dscores_CC = dot(dy_CP, v_CP, trans_b=True) * _decay(total_1C, run_1C)
        dq_CN[group] += from_start_C1 * read_CN + dot(dscores_CC.astype(k_CN.dtype), k_CN)

        # What is written: matrices of (key, query), so that no result of a product is transposed.
        decay_CC = _decay(total_1C, run_1C, keys_first=True)
        weights_CC = dot(k_CN, q_CN, trans_b=True) * decay_CC
        dv_CP = dot(weights_CC.astype(dy_CP.dtype), dy_CP) + to_end_C1 * dot(k_CN, after_NP)
        dv[0, h] = dv_CP.astype(dv.dtype)
        dscores_CC = dot(v_CP, dy_CP, trans_b=True)
        dgap_CC = weights_CC * dscores_CC
        by_query_1C = jnp.sum(dgap_CC, axis=0, keepdims=True)
        dtotal[0, lane] = by_query_1C - row(jnp.sum(dgap_CC, axis=1, keepdims=True))
        written_CN = dot(v_CP, after_NP, trans_b=True)
        dto_end[0, lane] = row(jnp.sum(written_CN * k_CN, axis=1, keepdims=True))
        dscores_CC = (dscores_CC * decay_CC).astype(q_CN.dtype)
        dk_CN[group] += to_end_C1 * written_CN + dot(dscores_CC, q_CN)

        # The decay of the state over the chunk is what is left of it at the last token.
        place = jax.lax.broadcasted_iota(jnp.int32, dread_1C.shape, 1)
        stays_11 = _over_chunk(from_start_1C)
        dstays_N1 = jnp.sum(before_NP.astype(jnp.float32) * after[h], axis=1, keepdims=True)
        dstays_11 = jnp.sum(dstays_N1, axis=0, keepdims=True)
        at_end = place == sizes.chunk - 1
        dfrom_start[0, lane] = dread_1C + jnp.where(at_end, dstays_11, 0.0)
        dread_CP = (dy_CP * from_start_C1).astype(dy_CP.dtype)
        after[h] = stays_11 * after[h] + dot(q_CN, dread_CP, trans_a=True)

    for group in range(groups):
        dq[0, group] = dq_CN[group].astype(dq.dtype)
        dk[0, group] = dk_CN[group].astype(dk.dtype)

    @pl.when(step == chunks - 1)
    def _():
        dstart[0] = after[...]


class _Blocks:
    """Blocks of the operands over the grid (B, blocks of heads, chunks)."""

    def __init__(self, q, v, sizes: _Sizes, *, reverse: bool):
        self.batch, self.heads, self.length, self.width = v.shape
        self.states, self.sizes = q.shape[-1], sizes
        self.chunks = self.length // sizes.chunk
        self.grid = (self.batch, self.heads // sizes.heads, self.chunks)
        self.groups = max(1, sizes.heads // sizes.share)  # of a program
        last = self.chunks - 1

        def spec(shape, at):
            def index(b, h, c):
                return at(b, h, last - c if reverse else c)

            return pl.BlockSpec(shape, index)

        heads, chunk = sizes.heads, sizes.chunk
        qk = (1, self.groups, chunk, self.states)
        repeats = max(1, sizes.share // heads)  # blocks of heads that share a q and k
        self.qk = spec(qk, lambda b, h, c: (b, h // repeats, c, 0))
        self.dqk = spec(qk, lambda b, h, c: (b, h, c, 0))
        self.v = spec((1, heads, chunk, self.width), lambda b, h, c: (b, h, c, 0))
        self.vector = spec((1, heads, chunk), lambda b, h, c: (b, h, c))
        self.run = spec((1, 1, chunk), lambda b, h, c: (b, 0, c))
        state = (heads, self.states, self.width)
        self.state = spec((1, *state), lambda b, h, c: (b, h, 0, 0))
        self.saved = spec((1, 1, *state), lambda b, h, c: (b, c, h, 0, 0))
        self.scratch = [pallas_tpu.VMEM(state, jnp.float32)]

    def state_shape(self):
        shape = (self.batch, self.heads, self.states, self.width)
        return jax.ShapeDtypeStruct(shape, jnp.float32)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(8,))
def _ssd(q, k, v, total, from_start, to_end, run, start, sizes: _Sizes):
    """Outputs in the dtype of v, and the last state."""
    operands = (q, k, v, total, from_start, to_end, run, start)
    return _run_forward(operands, sizes, save=False)[:2]


def _run_forward(operands, sizes, *, save: bool):
    q, _, v, *_ = operands
    blocks = _Blocks(q, v, sizes, reverse=False)
    inputs = [blocks.qk] * 2 + [blocks.v] + [blocks.vector] * 3 + [blocks.run, blocks.state]
    outputs, shapes = [blocks.v, blocks.state], [_like(v), blocks.state_shape()]
    if save:
        batch, *state = blocks.state_shape().shape
        outputs.append(blocks.saved)
        shapes.append(jax.ShapeDtypeStruct((batch, blocks.chunks, *state), v.dtype))
    return pallas_tpu.call(
        partial(_forward, sizes=sizes),
        blocks.grid,
        inputs,
        outputs,
        shapes,
        blocks.scratch,
        *operands,
        interpret=sizes.interpret,
    )


def _ssd_forward(*operands_and_sizes):
    *operands, sizes = operands_and_sizes
    y, last, before = _run_forward(operands, sizes, save=True)
    return (y, last), (*operands[:-1], before)


def _ssd_backward(sizes, residuals, cotangents):
    q, _, v, total, *_ = residuals
    blocks = _Blocks(q, v, sizes, reverse=True)
    batch, _, length, states = q.shape
    parts = blocks.grid[1] * blocks.groups
    dqk = jax.ShapeDtypeStruct((batch, parts, length, states), jnp.float32)
    vectors = [blocks.vector] * 3
    inputs = [blocks.qk] * 2 + [blocks.v, *vectors, blocks.run, blocks.saved, blocks.v]
    dq, dk, dv, dtotal, dfrom_start, dto_end, dstart = pallas_tpu.call(
        partial(_backward, sizes=sizes),
        blocks.grid,
        [*inputs, blocks.state],
        [blocks.dqk, blocks.dqk, blocks.v, *vectors, blocks.state],
        [dqk, dqk, _like(v), *[_like(total)] * 3, blocks.state_shape()],
        blocks.scratch,
        *residuals,
        *cotangents,
        interpret=sizes.interpret,
    )
    groups = q.shape[1]
    dq, dk = (d.reshape(batch, groups, -1, length, states).sum(2).astype(q.dtype) for d in (dq, dk))
    return dq, dk, dv, dtotal, dfrom_start, dto_end, None, dstart


_ssd.defvjp(_ssd_forward, _ssd_backward)


def _heads_of_program(heads: int, groups: int) -> int | None:
    """Heads that a program takes: whole tiles of decays, whole groups or parts of one.

    None if there is no such number.
    """
    share = heads // groups
    for block in (*range(_HEADS, heads, _HEADS), heads):
        whole = heads % block == 0 and (block % share == 0 or share % block == 0)
        if whole and block <= _MOST_HEADS:
            return block
    return None


def obstacle(k_BLGN: jax.Array, v_BLHP: jax.Array) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    (_, _, groups, n), (_, _, heads, width) = k_BLGN.shape, v_BLHP.shape
    if n not in _DIMS or width not in _DIMS or n * width > 128 * 256:
        return f"states of {n} x {width}"
    if _heads_of_program(heads, groups) is None:
        return f"{heads} heads in {groups} groups"
    return pallas_tpu.obstacle(v_BLHP)


def ssd(
    q_BLGN: jax.Array,
    k_BLGN: jax.Array,
    v_BLHP: jax.Array,
    log_decay_BLH: jax.Array | None,
    resets_BL: jax.Array | None,
    initial_state_BHNP: jax.Array,
    *,
    interpret: pallas_tpu.Interpret = False,
) -> tuple[jax.Array, jax.Array]:
    """See `hybrid_lm.kernels.ssd.ssd`; any L."""
    length, heads, groups = v_BLHP.shape[1], v_BLHP.shape[2], k_BLGN.shape[2]
    pad = partial(chunked_gpu.padded, multiple=_CHUNK)
    v, log_decay, resets = jax.tree.map(pad, (v_BLHP, log_decay_BLH, resets_BL))
    total, from_start, to_end, _, run = chunked_gpu.factors(log_decay, resets, v.shape[:3], _CHUNK)
    block = _heads_of_program(heads, groups)
    assert block is not None, "an obstacle"
    sizes = _Sizes(_CHUNK, block, heads // groups, interpret)
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (pad(q_BLGN), pad(k_BLGN), v))
    factors = (total, from_start, to_end, run[:, None])
    y, last = _ssd(q, k, v, *factors, initial_state_BHNP, sizes)  # pyright: ignore[reportGeneralTypeIssues]
    return jnp.swapaxes(y, 1, 2)[:, :length].astype(jnp.float32), last
