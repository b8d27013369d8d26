"""Softmax attention to the latest blocks of a document and to chosen earlier ones.

A document is cut, from its own start, into blocks of C tokens. A token of block j sees the tokens
of its document up to itself in blocks ``j - W + 1 .. j``, and all tokens of the blocks that were
chosen for block j among ``0 .. j - W``, which are finished. What is not chosen costs nothing.
"""

import jax

from hybrid_lm.kernels.block_attention import gpu, reference, xla
from hybrid_lm.kernels.block_attention.tiles import Tiles
from hybrid_lm.kernels.block_attention.xla import slices
from hybrid_lm.kernels.dispatch import choose


def block_attention(
    q_BLHK: jax.Array,
    k_BSGK: jax.Array,
    v_BSGP: jax.Array,
    tiles: Tiles,
    chosen_BTGM: jax.Array,
    log_gate_BTGM: jax.Array | None = None,
    *,
    local_blocks: int,
    implementation: str | None = None,
) -> jax.Array:
    """Attention of L queries over S keys -> y_BLHP, scores scaled by 1/sqrt(K).

    Args:
        q_BLHK: queries, H a multiple of G (grouped-query attention).
        k_BSGK: keys, more than C of them; the last L belong to the queries' own tokens.
        v_BSGP: values.
        tiles: the blocks of queries that may have something to choose from.
        chosen_BTGM: int32 numbers of M blocks, within the document and all different, for each
            tile. Numbers outside ``0 .. j - W`` choose nothing.
        log_gate_BTGM: added to the scores of the block's keys; None is 0.
        local_blocks: W.
        implementation: see `Implementation`.
    """
    obstacle = gpu.obstacle(q_BLHK, k_BSGK, v_BSGP, tiles)
    obstacles = {"pallas": obstacle, "xla": None, "reference": None}
    chosen = choose("block_attention", implementation, obstacles)
    run = {"pallas": gpu, "xla": xla, "reference": reference}[chosen].block_attention
    return run(q_BLHK, k_BSGK, v_BSGP, tiles, chosen_BTGM, log_gate_BTGM, local_blocks)


__all__ = ["Tiles", "block_attention", "slices"]
