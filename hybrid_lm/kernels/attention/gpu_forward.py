"""Causal attention on Hopper, forward, in Pallas (Mosaic GPU).

Online softmax (Milakov & Gimelshein 2018, arXiv 1805.02867) by warpgroups that each own 64 queries,
beside one that loads keys and values, as in FlashAttention-3 (Shah et al. 2024, arXiv 2407.08608).
Three of them hide each other's exponentials behind their products: two reach five sixths of that,
and products of a next step in flight (FlashAttention-3, section 3.2) gain nothing on top.
"""

import math
from functools import partial

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from hybrid_lm.kernels.pallas_mosaic import FRAGMENTS, matrices, sums

_GROUPS = 3  # warpgroups with queries
_ROWS = 64  # queries of a warpgroup: those of one product
_KEYS = 128  # of a step
_STAGES = 2  # steps' keys and values on chip
_REGISTERS = 160, 32  # of a thread with queries, of one that loads
_LEAST = -1e30  # of a running maximum: the difference of two infinities is none


@jax.jit
def forward(
    q_BLHK: jax.Array, k_BLHK: jax.Array, v_BLHK: jax.Array, starts_BL: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Outputs y_BLHK and the float32 log-sum-exp of each query's scores, [B, H, L]."""
    batch, length, heads, dim = q_BLHK.shape
    tiles = pl.cdiv(length, _GROUPS * _ROWS)
    low = partial(matrices, dtype=q_BLHK.dtype)
    starts = () if starts_BL is None else (starts_BL,)
    kernel = partial(_kernel, packed=bool(starts), length=length, tiles=tiles)
    return plgpu.kernel(
        partial(kernel, scale=math.log2(math.e) * dim**-0.5),
        out_type=(
            jax.ShapeDtypeStruct(q_BLHK.shape, q_BLHK.dtype),
            jax.ShapeDtypeStruct((batch, heads, length), jnp.float32),
        ),
        scratch_types=(
            low(_GROUPS, _ROWS, dim),
            low(_STAGES, _KEYS, dim),
            low(_STAGES, _KEYS, dim),
            plgpu.SMEM((_GROUPS, _ROWS), jnp.float32),
            plgpu.Barrier(num_barriers=_GROUPS),
            plgpu.Barrier(num_barriers=_STAGES),
            plgpu.Barrier(num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=_GROUPS, num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=_GROUPS, num_barriers=_STAGES),
        ),
        grid=(heads, tiles, batch),
        grid_names=("head", "tile", "row"),
        num_threads=_GROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(q_BLHK, k_BLHK, v_BLHK, *starts)


def _kernel(q, k, v, *refs, packed: bool, length: int, tiles: int, scale: float):
    """``own_*``: of the queries on chip; ``*_in``, ``*_out``: loaded, and read by all; ``starts``
    is one array where rows are packed.

    Steps are counted from the first that holds a key of a document of the tile.
    """
    starts, refs = refs[:packed], refs[packed:]
    y, log_mass, own_q, keys, values, own_mass, q_in, k_in, v_in, k_out, v_out = refs
    head, row = jax.lax.axis_index("head"), jax.lax.axis_index("row")
    tile = tiles - 1 - jax.lax.axis_index("tile")  # the longest first
    group = jax.lax.axis_index("warpgroup")
    start = tile * (_GROUPS * _ROWS)
    least = starts[0][row, start] // _KEYS if packed else jnp.int32(0)
    steps = _steps(jnp.minimum(start + _GROUPS * _ROWS, length)) - least

    @pl.when(group < _GROUPS)
    def _attend():
        plgpu.set_max_registers(_REGISTERS[0], action="increase")
        first = start + group * _ROWS
        tokens = pl.ds(first, _ROWS)
        plgpu.copy_gmem_to_smem(q.at[row, tokens, head], own_q.at[group], q_in.at[group])
        if packed:
            there = jnp.minimum(first, length - _ROWS)  # the last tile may have fewer groups
            own = starts[0].at[row, pl.ds(there, _ROWS)]
            starts_C = plgpu.load(own, layout=FRAGMENTS.reduce(1), optimized=False)
        plgpu.barrier_wait(q_in.at[group])

        def step(i, carried, y_CK, *, masked: bool):
            top_C, mass_C = carried
            at = _slot(i)

            def scores(scores_CS):
                plgpu.barrier_wait(k_in.at[at])
                plgpu.wgmma(scores_CS, own_q.at[group], keys.at[at].transpose((1, 0)))
                return scores_CS[...]

            scores_CS = pl.run_scoped(scores, sums(_ROWS, _KEYS))
            plgpu.barrier_arrive(k_out.at[at])
            if masked:
                place = partial(plgpu.broadcasted_iota, jnp.int32, (_ROWS, _KEYS), layout=FRAGMENTS)
                key_CS = place(1) + (i + least) * _KEYS
                seen = place(0) + first >= key_CS
                if packed:
                    seen &= key_CS >= _spread(starts_C, _KEYS)
                scores_CS = jnp.where(seen, scores_CS, -jnp.inf)
            new_C = jnp.maximum(top_C, jnp.max(scores_CS, axis=1) * scale)
            if masked and packed:  # nothing seen yet
                new_C = jnp.maximum(new_C, jnp.float32(_LEAST))
            fade_C = jnp.exp2(top_C - new_C)
            weights_CS = jnp.exp2(scores_CS * scale - _spread(new_C, _KEYS))
            mass_C = mass_C * fade_C + jnp.sum(weights_CS, axis=1)
            y_CK[...] = y_CK[...] * _spread(fade_C, y.shape[-1])
            plgpu.barrier_wait(v_in.at[at])
            plgpu.wgmma(y_CK, weights_CS.astype(q.dtype), values.at[at])
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(v_out.at[at])
            return new_C, mass_C

        def pass_on(i, _):
            """Of a step of whose keys no query of this warpgroup sees any."""
            at = _slot(i)
            for loaded, read in ((k_in, k_out), (v_in, v_out)):
                plgpu.barrier_wait(loaded.at[at])
                plgpu.barrier_arrive(read.at[at])

        def attend(y_CK):
            own = jnp.minimum(_steps(first + _ROWS) - least, steps)
            full = jnp.minimum(first // _KEYS - least, own)
            masked, unmasked = (partial(step, y_CK=y_CK, masked=masked) for masked in (True, False))
            carried, begin = (_rows(-jnp.inf), _rows(0.0)), 0
            if packed:
                # Keys before a document, some before one of them, after all, after a query.
                begin = starts[0][row, there] // _KEYS - least
                inner = jnp.minimum(_steps(starts[0][row, there + _ROWS - 1]) - least, full)
                jax.lax.fori_loop(0, begin, pass_on, None)
                carried = jax.lax.fori_loop(begin, inner, masked, carried)
                begin = inner
            carried = jax.lax.fori_loop(begin, full, unmasked, carried)
            carried = jax.lax.fori_loop(full, own, masked, carried)
            jax.lax.fori_loop(own, steps, pass_on, None)
            top_C, mass_C = carried
            own_q.at[group][...] = (y_CK[...] / _spread(mass_C, y.shape[-1])).astype(q.dtype)
            own_mass.at[group][...] = top_C * math.log(2) + jnp.log(mass_C)

        pl.run_scoped(attend, sums(_ROWS, y.shape[-1]))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own_q.at[group], y.at[row, tokens, head])
        plgpu.copy_smem_to_gmem(own_mass.at[group], log_mass.at[row, head, tokens])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(group == _GROUPS)
    def _load():
        plgpu.set_max_registers(_REGISTERS[1], action="decrease")

        @pl.loop(jnp.int32(0), steps)
        def _(i):
            at, tokens = _slot(i), (row, pl.ds((i + least) * _KEYS, _KEYS), head)
            pl.when(i >= _STAGES)(lambda: plgpu.barrier_wait(k_out.at[at]))
            plgpu.copy_gmem_to_smem(k.at[tokens], keys.at[at], k_in.at[at])
            pl.when(i >= _STAGES)(lambda: plgpu.barrier_wait(v_out.at[at]))
            plgpu.copy_gmem_to_smem(v.at[tokens], values.at[at], v_in.at[at])


def _steps(keys):
    """Steps that take ``keys`` keys."""
    return (keys + _KEYS - 1) // _KEYS


def _slot(i):
    return jax.lax.rem(i, jnp.int32(_STAGES))


def _rows(value: float) -> jax.Array:
    return plgpu.layout_cast(jnp.full(_ROWS, value, jnp.float32), FRAGMENTS.reduce(1))


def _spread(x_C: jax.Array, columns: int) -> jax.Array:
    return jax.lax.broadcast_in_dim(x_C, (_ROWS, columns), [0])
