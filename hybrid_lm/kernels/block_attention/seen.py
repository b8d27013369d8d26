"""Which blocks of keys the blocks of queries see, and who sees a block of keys: for the kernels."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_lm.kernels.block_attention.tiles import Tiles
from hybrid_lm.kernels.block_attention.xla import LOW

_MOST = 4  # times the average number of queries' blocks that one program goes through


class Seen(NamedTuple):
    """Of n blocks of queries and n blocks of keys, for each of G heads of keys.

    A block that very many see is gone through in pieces: in each up to ``4 slots`` of those who see
    it. Its first piece is its own program's; P programs have the others.

    Attributes:
        block: int32 [B, G, n, slots], the blocks that a block of queries sees, its own first.
        bias: float32, of the shape of ``block``, added to the scores; `LOW` where there is none.
        query: int32 [B, G, n slots], who sees a block of keys: sorted by it.
        query_bias: float32, of the shape of ``query``: the bias that goes with it.
        first: int32 [B, G, 2, n], first and last (exclusive) of ``query`` in a first piece.
        more: int32 [B, G, 2, n], first and last (exclusive) further piece of a block of keys.
        piece: int32 [B, G, 3, P], of further pieces: first and last in ``query``, block of keys.
    """

    block: jax.Array
    bias: jax.Array
    query: jax.Array
    query_bias: jax.Array
    first: jax.Array
    more: jax.Array
    piece: jax.Array


def seen(
    tiles: Tiles, chosen_BTGM: jax.Array, log_gate_BTGM: jax.Array | None, local_blocks: int
) -> Seen:
    """In aligned rows; see `hybrid_lm.kernels.block_attention.block_attention`."""
    batch, count, groups, most = chosen_BTGM.shape
    n = count + 1  # The first block has nothing to choose from.
    own = jnp.arange(n, dtype=jnp.int32)[:, None]
    latest = own - jnp.arange(min(local_blocks, n), dtype=jnp.int32)
    latest = jnp.broadcast_to(latest, (batch, groups, *latest.shape))

    def by_block(x, nothing):
        x = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)), constant_values=nothing)
        return jnp.moveaxis(x, 2, 1)

    chosen = by_block(chosen_BTGM.astype(jnp.int32), -1)
    chosen = jnp.where(chosen <= own - local_blocks, chosen, -1)
    block = jnp.concatenate([latest, chosen], axis=-1)
    gates = jnp.zeros((batch, groups, n, most), jnp.float32)
    if log_gate_BTGM is not None:
        gates = by_block(log_gate_BTGM.astype(jnp.float32), 0)
    bias = jnp.concatenate([jnp.zeros(latest.shape, jnp.float32), gates], axis=-1)
    there = block >= 0
    block, bias = jnp.where(there, block, 0), jnp.where(there, bias, LOW)

    key = jnp.where(there, block, n).reshape(batch, groups, -1)
    pair = jax.lax.broadcasted_iota(jnp.int32, key.shape, 2)
    listed = key, pair, jax.lax.stop_gradient(bias).reshape(key.shape)
    key, pair, query_bias = jax.lax.sort(listed, num_keys=1)
    slots = block.shape[-1]
    ranges = jax.vmap(jax.vmap(lambda key_N: _pieces(key_N, n, _MOST * slots)))(key)
    return Seen(block, bias, pair // slots, query_bias, *ranges)


def _pieces(key_N: jax.Array, n: int, most: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """``first``, ``more`` and ``piece`` of sorted blocks of keys, with ``most`` in a piece."""
    bounds = jnp.searchsorted(key_N, jnp.arange(n + 1), method="compare_all").astype(jnp.int32)
    start, stop = bounds[:-1], bounds[1:]
    further = jnp.maximum(-(-(stop - start) // most) - 1, 0)
    end = jnp.cumsum(further, dtype=jnp.int32)
    place = jnp.arange(max(key_N.size // most, 1), dtype=jnp.int32)
    owner = jnp.searchsorted(end, place, side="right", method="compare_all").astype(jnp.int32)
    of = jnp.minimum(owner, n - 1)
    begin = start[of] + most * (1 + place - (end - further)[of])
    last = jnp.minimum(begin + most, stop[of])
    used = owner < n
    piece = jnp.stack([jnp.where(used, begin, 0), jnp.where(used, last, 0), of])
    first = jnp.stack([start, jnp.minimum(start + most, stop)])
    return first, jnp.stack([end - further, end]), piece
