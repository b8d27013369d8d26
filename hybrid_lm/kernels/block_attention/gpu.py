"""Rows of one document as Pallas kernels for NVIDIA GPUs (Triton backend): nothing is gathered.

A program takes one block of queries and reads the blocks of keys that it sees, one after another,
with an online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867), as in FlashAttention (Dao
2023, arXiv 2307.08691). Backwards one kernel does the same for the queries, and one takes a block
of keys with all blocks of queries that see it, from a list sorted by block of keys: gradients are
summed in registers, in a fixed order. What more than some of them see is summed in pieces before.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.block_attention.seen import Seen, seen
from hybrid_lm.kernels.block_attention.tiles import Tiles
from hybrid_lm.kernels.block_attention.xla import LOW
from hybrid_lm.kernels.chunked_gpu import like
from hybrid_lm.kernels.pallas_triton import dot
from hybrid_lm.kernels.remat import keep

_SIZES = (16, 32, 64, 128)  # of blocks and of heads


class Options(NamedTuple):
    """Tokens of a block, and whether the kernels are interpreted."""

    size: int
    interpret: bool = False


def _causal(query, key, size: int, *, keys_first=False):
    """What queries of block ``query`` see of block ``key``: [query, key] or [key, query]."""
    i, j = ((None, slice(None)), (slice(None), None))[:: 1 if keys_first else -1]
    place = jnp.arange(size)
    return query * size + place[i] >= key * size + place[j]


def _over_slots(step, blocks, at, slots: int, start):
    """``step(s, block, carried)`` over the slots; blocks are looked up one step ahead."""

    def run(s, carried):
        block, carried = carried
        ahead = blocks[*at, jnp.minimum(s + 1, slots - 1)]
        return ahead, step(s, block, carried)

    return jax.lax.fori_loop(0, slots, run, (blocks[*at, 0], start))[1]


def _outputs(q, k, v, blocks, bias, y, log_mass, *, size, share, scale):
    head, own, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    at, tokens = (batch, head // share, own), pl.ds(own * size, size)
    q_CK = q[batch, tokens, head, :]

    def step(s, block, carried):
        top_C, mass_C, y_CP = carried
        keys = pl.ds(block * size, size)
        scores_CC = dot(q_CK, k[batch, keys, head // share, :], trans_b=True) * scale
        scores_CC = jnp.where(_causal(own, block, size), scores_CC + bias[*at, s], LOW)
        new_C = jnp.maximum(top_C, jnp.max(scores_CC, axis=1))
        weights_CC, fade_C = jnp.exp(scores_CC - new_C[:, None]), jnp.exp(top_C - new_C)
        mass_C = mass_C * fade_C + jnp.sum(weights_CC, axis=1)
        v_CP = v[batch, keys, head // share, :]
        y_CP = y_CP * fade_C[:, None] + dot(weights_CC.astype(v_CP.dtype), v_CP)
        return new_C, mass_C, y_CP

    empty = jnp.full(size, LOW), jnp.zeros(size), jnp.zeros((size, v.shape[-1]))
    top_C, mass_C, y_CP = _over_slots(step, blocks, at, blocks.shape[-1], empty)
    y[batch, tokens, head, :] = (y_CP / mass_C[:, None]).astype(y.dtype)
    log_mass[batch, head, tokens] = top_C + jnp.log(mass_C)


def _query_gradients(
    q, k, v, blocks, bias, y, log_mass, dy, dq, dbias, offset, *, size, share, scale
):
    """``offset`` is what the softmax subtracts from the cotangents of a query's weights."""
    head, own, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    at, tokens = (batch, head // share, own), pl.ds(own * size, size)
    q_CK, dy_CP = q[batch, tokens, head, :], dy[batch, tokens, head, :]
    log_mass_C = log_mass[batch, head, tokens]
    offset_C = jnp.sum(dy_CP.astype(jnp.float32) * y[batch, tokens, head, :], axis=1)
    offset[batch, head, tokens] = offset_C

    def step(s, block, dq_CK):
        keys = pl.ds(block * size, size)
        k_CK = k[batch, keys, head // share, :]
        scores_CC = dot(q_CK, k_CK, trans_b=True) * scale + bias[*at, s]
        scores_CC = jnp.where(_causal(own, block, size), scores_CC, LOW)
        weights_CC = jnp.exp(scores_CC - log_mass_C[:, None])
        dweights_CC = dot(dy_CP, v[batch, keys, head // share, :], trans_b=True)
        dscores_CC = weights_CC * (dweights_CC - offset_C[:, None])
        dbias[batch, head, own, s] = jnp.sum(dscores_CC)
        return dq_CK + dot(dscores_CC.astype(k_CK.dtype), k_CK)

    start = jnp.zeros(q_CK.shape, jnp.float32)
    dq_CK = _over_slots(step, blocks, at, blocks.shape[-1], start)
    dq[batch, tokens, head, :] = (scale * dq_CK).astype(dq.dtype)


def _key_sums(
    q, k, v, query, query_bias, log_mass, dy, offset, begin, end, at, key, sums, *, share, scale
):
    """``sums`` (dk / scale, dv) and what the queries ``begin`` to ``end`` of the list add to them.

    Matrices [C, C] are of (key, query) here: no result of a product is transposed.
    """
    batch, group = at
    size = sums[0].shape[0]
    keys = pl.ds(key * size, size)
    k_CK, v_CP = k[batch, keys, group, :], v[batch, keys, group, :]

    def looked_up(i):
        place = jnp.maximum(jnp.minimum(i // share, end - 1), 0)
        return query[batch, group, place], query_bias[batch, group, place]

    def step(i, carried):
        (block, bias), (dk_CK, dv_CP) = carried
        ahead = looked_up(i + 1)
        head, tokens = group * share + i % share, pl.ds(block * size, size)
        q_CK, dy_CP = q[batch, tokens, head, :], dy[batch, tokens, head, :]
        scores_CC = dot(k_CK, q_CK, trans_b=True) * scale + bias
        scores_CC -= log_mass[batch, head, tokens][None, :]
        weights_CC = jnp.exp(jnp.where(_causal(block, key, size, keys_first=True), scores_CC, LOW))
        dv_CP += dot(weights_CC.astype(dy_CP.dtype), dy_CP)
        dweights_CC = dot(v_CP, dy_CP, trans_b=True)
        dscores_CC = weights_CC * (dweights_CC - offset[batch, head, tokens][None, :])
        dk_CK += dot(dscores_CC.astype(q_CK.dtype), q_CK)
        return ahead, (dk_CK, dv_CP)

    carried = looked_up(begin * share), sums
    return jax.lax.fori_loop(begin * share, end * share, step, carried)[1]


def _zeros(size, k, v):
    return jnp.zeros((size, k.shape[-1]), jnp.float32), jnp.zeros((size, v.shape[-1]), jnp.float32)


def _piece_gradients(
    q, k, v, query, query_bias, piece, log_mass, dy, offset, dk, dv, *, size, share, scale
):
    """Of the further pieces of blocks of keys, float32."""
    group, p, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)
    begin, end, key = (piece[batch, group, i, p] for i in range(3))
    operands = q, k, v, query, query_bias, log_mass, dy, offset, begin, end, (batch, group), key
    dk_CK, dv_CP = _key_sums(*operands, _zeros(size, k, v), share=share, scale=scale)
    dk[batch, group, p, :, :], dv[batch, group, p, :, :] = dk_CK, dv_CP


def _key_gradients(
    q,
    k,
    v,
    query,
    query_bias,
    first,
    more,
    log_mass,
    dy,
    offset,
    dk_pieces,
    dv_pieces,
    dk,
    dv,
    *,
    size,
    share,
    scale,
):
    group, own, batch = pl.program_id(0), pl.program_id(1), pl.program_id(2)

    def add(p, sums):
        at = batch, group, p, slice(None), slice(None)
        return sums[0] + dk_pieces[at], sums[1] + dv_pieces[at]

    begin, end = (more[batch, group, i, own] for i in range(2))
    sums = jax.lax.fori_loop(begin, end, add, _zeros(size, k, v))
    begin, end = (first[batch, group, i, own] for i in range(2))
    operands = q, k, v, query, query_bias, log_mass, dy, offset, begin, end, (batch, group), own
    dk_CK, dv_CP = _key_sums(*operands, sums, share=share, scale=scale)
    keys = pl.ds(own * size, size)
    dk[batch, keys, group, :] = (scale * dk_CK).astype(dk.dtype)
    dv[batch, keys, group, :] = dv_CP.astype(dv.dtype)


def _call(kernel, programs, outputs, *operands, options: Options, stages: int = 3):
    """Run a kernel over (heads, blocks), for each row; operands start with q, k."""
    if options.size > 64:
        stages = 2  # more do not fit into shared memory
    (batch, _, heads, dim), groups = operands[0].shape, operands[1].shape[2]
    return pallas_triton.call(
        partial(kernel, size=options.size, share=heads // groups, scale=dim**-0.5),
        (*programs, batch),
        outputs,
        *operands,
        warps=4,
        stages=stages,
        interpret=options.interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attention(q, k, v, seen: Seen, options: Options):
    return _forward(q, k, v, seen, options)[0]


def _forward(q, k, v, seen, options):
    batch, length, heads, _ = q.shape
    per_token = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    y = jax.ShapeDtypeStruct((batch, length, heads, v.shape[-1]), v.dtype)
    programs, operands = (heads, seen.block.shape[2]), (q, k, v, seen.block, seen.bias)
    y, log_mass = _call(_outputs, programs, (y, per_token), *operands, options=options)
    y, log_mass = keep(y), keep(log_mass)
    return y, (q, k, v, seen, y, log_mass)


def _backward(options, residuals, dy):
    q, k, v, seen, y, log_mass = residuals
    (batch, _, heads, dim), (groups, width) = q.shape, v.shape[2:]
    blocks, pieces = seen.block.shape[2], seen.piece.shape[3]
    dbias = jax.ShapeDtypeStruct((batch, heads, *seen.bias.shape[2:]), jnp.float32)
    operands = (q, k, v, seen.block, seen.bias, y, log_mass, dy)
    results = (like(q), dbias, like(log_mass))
    programs, settings = (heads, blocks), {"options": options, "stages": 2}
    dq, dbias, offset = _call(_query_gradients, programs, results, *operands, **settings)
    dbias = dbias.reshape(batch, groups, -1, *dbias.shape[2:]).sum(2)

    def per_piece(columns):
        shape = (batch, groups, pieces, options.size, columns)
        return jax.ShapeDtypeStruct(shape, jnp.float32)

    listed = (q, k, v, seen.query, seen.query_bias)
    operands = (*listed, seen.piece, log_mass, dy, offset)
    results = (per_piece(dim), per_piece(width))
    summed = _call(_piece_gradients, (groups, pieces), results, *operands, options=options)
    operands = (*listed, seen.first, seen.more, log_mass, dy, offset, *summed)
    results = (like(k), like(v))
    dk, dv = _call(_key_gradients, (groups, blocks), results, *operands, options=options)
    return dq, dk, dv, Seen(None, dbias, *[None] * 5)  # pyright: ignore[reportArgumentType]


_attention.defvjp(_forward, _backward)


def obstacle(q_BLHK: jax.Array, k_BSGK: jax.Array, v_BSGP: jax.Array, tiles: Tiles) -> str | None:
    """Why the kernels cannot run on these operands; None if they can."""
    if not tiles.aligned or q_BLHK.shape[1] != k_BSGK.shape[1]:
        return "rows of several documents, or a cache"
    if tiles.block_size not in _SIZES:
        return f"blocks of {tiles.block_size}"
    if not {q_BLHK.shape[3], v_BSGP.shape[3]} <= set(_SIZES):
        return f"heads of {q_BLHK.shape[3]}"
    if v_BSGP.dtype != jnp.bfloat16:
        return "its products are of bfloat16"
    return pallas_triton.obstacle(v_BSGP)


def block_attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGP: jax.Array,
    tiles: Tiles,
    chosen_BTGM: jax.Array,
    log_gate_BTGM: jax.Array | None,
    local_blocks: int,
    *,
    interpret: bool = False,
) -> jax.Array:
    """See `hybrid_lm.kernels.block_attention.block_attention`; rows of one document."""
    length = q_BLHK.shape[1]

    def pad(x):
        """To whole blocks; keys behind the row are later than all queries."""
        return jnp.pad(x, ((0, 0), (0, -length % tiles.block_size), (0, 0), (0, 0)))

    blocks = seen(tiles, chosen_BTGM, log_gate_BTGM, local_blocks)
    options = Options(tiles.block_size, interpret)
    y_BLHP: Any = _attention(pad(q_BLHK), pad(k_BSGK), pad(v_BSGP), blocks, options)
    return y_BLHP[:, :length]
