"""The kernel of what the matrices of the systems get: sums over all chunks of a channel."""

from functools import partial

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton
from hybrid_lm.kernels.pallas_triton import dot
from hybrid_lm.kernels.time_invariant.maps import Maps
from hybrid_lm.kernels.time_invariant.sizes import Sizes
from hybrid_lm.kernels.time_invariant.tiles import by_run, load_parts, load_runs, of_ends

_WARPS = 4
_WARPS_PLAIN = 2  # where states decay apart and rows are not packed


def _gradients(u, dy, before, after, *refs, sizes: Sizes):
    """Sums over the chunks of the tile; that of T is [from, to]."""
    *run, dtoeplitz, dwrite, dread, dacross = refs
    channel, tile = pl.program_id(0), pl.program_id(1)
    rows = pl.ds(tile * sizes.tile, sizes.tile)
    parts, pairs = before.shape[-2:]
    chunk, dense = sizes.chunk, parts == 1

    def step(s, sums):
        dtoeplitz_CC, dwrite_, dread_, dacross_ = sums
        tokens = pl.ds(s * chunk, chunk)
        u_MC, dy_MC = u[channel, rows, tokens], dy[channel, rows, tokens]
        h, g = load_parts(before, channel, rows, s), load_parts(after, channel, rows, s)
        runs = load_runs(run, rows, s * chunk, chunk)
        if runs is None:
            dtoeplitz_CC += dot(u_MC, dy_MC, trans_a=True)
        else:

            def document(own_MC):
                return dot(jnp.where(own_MC, u_MC, 0), jnp.where(own_MC, dy_MC, 0), trans_a=True)

            dtoeplitz_CC += by_run(runs, document)
            writes_MC, reads_MC = of_ends(runs, reverse=False)
            u_MC, dy_MC = jnp.where(writes_MC, u_MC, 0), jnp.where(reads_MC, dy_MC, 0)
        dwrite_ = [d + dot(u_MC, g_MP, trans_a=True) for d, g_MP in zip(dwrite_, g, strict=True)]
        dread_ = [d + dot(dy_MC, h_MP, trans_a=True) for d, h_MP in zip(dread_, h, strict=True)]
        if runs is not None:
            h = [jnp.where((runs[1] == 0)[:, None], h_MP, 0) for h_MP in h]
        if dense:
            dacross_ = [dacross_[0] + dot(h[0], g[0], trans_a=True)]
        else:
            h, g = ([x.astype(jnp.float32) for x in xs] for xs in (h, g))
            dacross_ = [
                dacross_[0] + h[0] * g[0] + h[1] * g[1],
                dacross_[1] + h[0] * g[1] - h[1] * g[0],
            ]
        return dtoeplitz_CC, dwrite_, dread_, dacross_

    def zeros(*shape):
        return jnp.zeros(shape, jnp.float32)

    by_token = [zeros(chunk, pairs)] * parts
    dacross_ = [zeros(pairs, pairs)] if dense else [zeros(sizes.tile, pairs)] * 2
    start = zeros(chunk, chunk), by_token, by_token, dacross_
    dtoeplitz_CC, dwrite_, dread_, dacross_ = jax.lax.fori_loop(0, sizes.steps, step, start)
    dtoeplitz[channel, tile, :, :] = dtoeplitz_CC
    for part in range(parts):
        dwrite[channel, tile, part, :, :] = dwrite_[part]
        dread[channel, tile, part, :, :] = dread_[part]
    if dense:
        dacross[channel, tile, :, :] = dacross_[0]
    else:
        for part in range(2):
            dacross[channel, tile, part, :] = jnp.sum(dacross_[part], axis=0)


def gradients(u, dy, before, after, run, across, sizes: Sizes) -> Maps:
    """Cotangents of the maps from inputs, those of the outputs, and states before and after."""
    width, chunk, tiles = len(u), sizes.chunk, sizes.tiles
    by_token = (width, tiles, before.shape[-2], chunk, before.shape[-1])
    shapes = ((width, tiles, chunk, chunk), by_token, by_token)
    shapes = *shapes, (width, tiles, *across.shape[1:])
    outputs = tuple(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)
    half = u.dtype == jnp.bfloat16
    sums = pallas_triton.call(
        partial(_gradients, sizes=sizes),
        (width, tiles),
        outputs,
        *(u, dy, before, after, *run),
        warps=_WARPS_PLAIN if half and before.shape[-2] == 2 and not run else _WARPS,
        stages=2 if half else 1,
        interpret=sizes.interpret,
    )
    dtoeplitz_DCC, dwrite, dread, dacross = (sum_.sum(axis=1) for sum_ in sums)
    # One column further right in each row: the diagonals become columns.
    dtoeplitz_DCC = jnp.triu(dtoeplitz_DCC).reshape(width, -1)
    dtaps_DC = jnp.pad(dtoeplitz_DCC, ((0, 0), (0, chunk))).reshape(width, chunk, chunk + 1)
    dtaps_DC = dtaps_DC.sum(axis=1)[:, :chunk]
    return Maps(dtaps_DC, dwrite, dread, dacross)
