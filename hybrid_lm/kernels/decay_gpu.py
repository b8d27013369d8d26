"""Decays of the tokens of a chunk as Pallas kernels for NVIDIA GPUs (Triton backend).

Sums inside documents are products with a matrix of ones and zeros, [C, C], which costs the same
whatever documents a chunk holds.
"""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.pallas_triton import dot, load, store
from hybrid_lm.kernels.remat import keep

_HEADS = 16  # of one program: the least that a matrix product takes


def places_of_total(total, batch, heads, tokens):
    """Of [B, H, L], or of whole parts and rests, [B, H, 2, L] (see `token_decays`)."""
    parts = [()] if len(total.shape) == 3 else [(0,), (1,)]
    return [(batch, heads, *part, tokens) for part in parts]


class _Tile:
    """[H, C] of the heads and tokens of a program; of its last heads some may not exist."""

    def __init__(self, run, heads: int, chunk: int):
        tile, self.c, self.batch = (pl.program_id(axis) for axis in range(3))
        self.head_H = tile * _HEADS + jnp.arange(_HEADS)
        self.token_C = self.c * chunk + jnp.arange(chunk)
        self.run_C = run[self.batch, pl.ds(self.c * chunk, chunk)]
        self.mask_H = self.head_H < heads if heads % _HEADS else None
        self.mask_HC = None
        if self.mask_H is not None:
            self.mask_HC = jnp.broadcast_to(self.mask_H[:, None], (_HEADS, chunk))

    def in_BHL(self):
        """Where it is in [B, H, L]."""
        return self.batch, self.head_H[:, None], self.token_C[None, :]

    def in_BLH(self):
        return self.batch, self.token_C[None, :], self.head_H[:, None]

    def in_BHc(self):
        """Where its heads are in [B, H, chunks]."""
        return self.batch, self.head_H, jnp.full_like(self.head_H, self.c)


def _product(x_HC, seen_CC):
    """``x seen`` of float32 x: in three parts of bfloat16, each of which is exact."""
    ones_CC, total_HC = seen_CC.astype(jnp.bfloat16), jnp.zeros_like(x_HC)
    for _ in range(3):
        part_HC = x_HC.astype(jnp.bfloat16)
        x_HC -= part_HC.astype(jnp.float32)
        total_HC += dot(part_HC, ones_CC)
    return total_HC


def _factors(totals_HC, run_C):
    """from_start_HC, to_end_HC, stays_H; of totals in one part or in two."""
    is_last_C = jnp.arange(run_C.shape[0]) == run_C.shape[0] - 1
    lasts_H = [jnp.sum(jnp.where(is_last_C[None, :], x, 0.0), axis=1) for x in totals_HC]
    total_HC, last_H, last_run = sum(totals_HC), sum(lasts_H), jnp.max(run_C)
    from_start_HC = jnp.exp(jnp.where((run_C == 0)[None, :], total_HC, -jnp.inf))
    gap_HC = sum(x_H[:, None] - x_HC for x_H, x_HC in zip(lasts_H, totals_HC, strict=True))
    to_end_HC = jnp.exp(jnp.where((run_C == last_run)[None, :], gap_HC, -jnp.inf))
    return from_start_HC, to_end_HC, jnp.where(last_run == 0, jnp.exp(last_H), 0.0)


def _forward_kernel(log_decay, run, *refs, chunk, heads, scaled):
    given, (total, from_start, to_end, stays, *strength) = refs[:scaled], refs[scaled:]
    tile, i = _Tile(run, heads, chunk), jnp.arange(chunk)
    seen_CC = (i[:, None] <= i[None, :]) & (tile.run_C[:, None] == tile.run_C[None, :])
    places = places_of_total(total, *tile.in_BHL())
    log_decay_HC = load(log_decay, tile.in_BLH(), tile.mask_HC)
    whole_HC = jnp.floor(log_decay_HC + 0.5)
    parts = (log_decay_HC,) if len(places) == 1 else (whole_HC, log_decay_HC - whole_HC)
    totals_HC = [_product(part_HC, seen_CC) for part_HC in parts]
    from_start_HC, to_end_HC, stays_H = _factors(totals_HC, tile.run_C)
    for place, total_HC in zip(places, totals_HC, strict=True):
        store(total, place, total_HC, tile.mask_HC)
    store(from_start, tile.in_BHL(), from_start_HC, tile.mask_HC)
    store(to_end, tile.in_BHL(), to_end_HC, tile.mask_HC)
    store(stays, tile.in_BHc(), stays_H, tile.mask_H)
    if scaled:
        strength_HC = load(given[0], tile.in_BLH(), tile.mask_HC)
        store(strength[0], tile.in_BHL(), strength_HC, tile.mask_HC)


def _backward_kernel(total, run, dtotal, dfrom_start, dto_end, dstays, *refs, chunk, heads, scaled):
    dstrength, (dlog_decay, *dgiven) = refs[:scaled], refs[scaled:]
    tile, i = _Tile(run, heads, chunk), jnp.arange(chunk)

    def of(ref):
        return load(ref, tile.in_BHL(), tile.mask_HC)

    places = places_of_total(total, *tile.in_BHL())
    totals_HC = [load(total, place, tile.mask_HC) for place in places]
    from_start_HC, to_end_HC, stays_H = _factors(totals_HC, tile.run_C)
    kept_HC = of(dto_end) * to_end_HC
    dtotal_HC = load(dtotal, places[0], tile.mask_HC)
    dtotal_HC += of(dfrom_start) * from_start_HC - kept_HC
    dlast_H = jnp.sum(kept_HC, axis=1) + load(dstays, tile.in_BHc(), tile.mask_H) * stays_H
    dtotal_HC += jnp.where((i == chunk - 1)[None, :], dlast_H[:, None], 0.0)
    seen_CC = (i[:, None] >= i[None, :]) & (tile.run_C[:, None] == tile.run_C[None, :])
    store(dlog_decay, tile.in_BLH(), _product(dtotal_HC, seen_CC), tile.mask_HC)
    if scaled:
        store(dgiven[0], tile.in_BLH(), of(dstrength[0]), tile.mask_HC)


def _call(kernel, outputs, heads: int, chunk: int, interpret: bool, scaled: bool, run, *operands):
    batch, length = run.shape
    return pallas_triton.call(
        partial(kernel, chunk=chunk, heads=heads, scaled=scaled),
        (pl.cdiv(heads, _HEADS), length // chunk, batch),
        outputs,
        operands[0],
        run,
        *operands[1:],
        warps=4,
        interpret=interpret,
    )


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def token_decays(
    chunk: int,
    exact: bool,
    interpret: bool,
    log_decay_BLH: jax.Array,
    strength_BLH: jax.Array | None,
    run_BL: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array | None]:
    """What is left of states and of writes, by token, chunk and document.

    Args:
        chunk: tokens of a chunk.
        exact: whether differences of ``total`` are worth float32 where it is large.
        interpret: run it as plain XLA.
        log_decay_BLH: float32, finite, L a multiple of the chunk; 0 at the start of a document.
        strength_BLH: float32, of each token's write.
        run_BL: int32, the number of starts of documents in the chunk so far.

    Returns:
        ``total``, ``from_start``, ``to_end`` and ``stays`` of `chunked_gpu.Factors`, and the
        strengths as [B, H, L]. Where exact, ``total`` is float32 [B, H, 2, L]: of the decays
        rounded to whole numbers, whose sums and differences are exact, and of the rest. Only the
        gradient of the first is read, which is that of both.
    """
    batch, length, heads = log_decay_BLH.shape
    scaled = strength_BLH is not None
    by_head = jax.ShapeDtypeStruct((batch, heads, length), jnp.float32)
    by_chunk = jax.ShapeDtypeStruct((batch, heads, length // chunk), jnp.float32)
    total = jax.ShapeDtypeStruct((batch, heads, *(2,) * exact, length), jnp.float32)
    outputs = total, by_head, by_head, by_chunk, *(by_head,) * scaled
    operands = run_BL, log_decay_BLH, *((strength_BLH,) if scaled else ())
    results = _call(_forward_kernel, outputs, heads, chunk, interpret, scaled, *operands)
    total, from_start, to_end, stays, *strength = results
    return total, from_start, to_end, stays, strength[0] if scaled else None


def _forward(chunk, exact, interpret, log_decay_BLH, strength_BLH, run_BL):
    results = token_decays(chunk, exact, interpret, log_decay_BLH, strength_BLH, run_BL)
    # Little memory, and else all of it is made again where layers are recomputed.
    results = jax.tree.map(keep, results)
    return results, (results[0], run_BL)


def _backward(chunk, exact, interpret, residuals, cotangents):
    del exact
    total, run_BL = residuals
    batch, heads, *_, length = total.shape
    *_, dstrength = cotangents
    scaled = dstrength is not None
    outputs = (jax.ShapeDtypeStruct((batch, length, heads), jnp.float32),) * (1 + scaled)
    operands = run_BL, total, *(x for x in cotangents if x is not None)
    dlog_decay, *dstrength = _call(
        _backward_kernel, outputs, heads, chunk, interpret, scaled, *operands
    )
    return dlog_decay, dstrength[0] if scaled else None, None


token_decays.defvjp(_forward, _backward)
