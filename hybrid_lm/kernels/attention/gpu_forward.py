"""Causal attention on Hopper, forward, in Pallas (Mosaic GPU).

Three warpgroups that each own 64 queries, beside one that loads keys and values. They take turns
to start their products, so that the exponentials of one run behind the products of the others, and
start the scores of a step together with the product of the weights of the step before
(FlashAttention-3, Shah et al. 2024, arXiv 2407.08608, sections 3.1 and 3.2).

Softmax needs no running maximum (Milakov & Gimelshein 2018, arXiv 1805.02867) while ``sum_j exp(s_j
- m)`` stays a number for some m: here the largest score of the block of keys that holds the query.
In float32 and bf16, whose exponents are the same, that loses nothing. Queries that see scores 41
(60 log 2) above it are attended again, with a running maximum.
"""

import math
import operator
from functools import partial, reduce

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from hybrid_lm.kernels.pallas_mosaic import FRAGMENTS, matrices, places, sums

_GROUPS = 3  # warpgroups with queries
_ROWS = 64  # queries of a warpgroup: those of one product
_KEYS = 128  # of a step
_FEWER = 64  # of one of queries attended again
_STAGES = 2  # steps' keys and values on chip
_REGISTERS = 160, 32  # of a thread with queries, of one that loads
_FOLDED = 8  # columns of a row that a warpgroup's layout gives to four threads
_MOST = 2.0**60  # of a sum of weights: they and their products with values stay finite


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
            low(_GROUPS, _FEWER, dim),
            low(_GROUPS, _FEWER, dim),
            plgpu.SMEM((_GROUPS, _ROWS), jnp.float32),
            plgpu.Barrier(num_barriers=_GROUPS),
            plgpu.Barrier(num_barriers=_STAGES),
            plgpu.Barrier(num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=_GROUPS, num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=_GROUPS, num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=2, num_barriers=_GROUPS),
            plgpu.Barrier(num_barriers=_GROUPS),
        ),
        grid=(heads, tiles, batch),
        grid_names=("head", "tile", "row"),
        num_threads=_GROUPS + 1,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(q_BLHK, k_BLHK, v_BLHK, *starts)


def _kernel(q, k, v, *refs, packed: bool, length: int, tiles: int, scale: float):
    """``own_*``: of the queries on chip; ``*_in``, ``*_out``: loaded, and read by all; ``again_*``:
    of queries attended again; ``starts`` is one array where rows are packed.

    Steps go from the last block of keys of the tile to the first that a query of it sees.
    """
    starts, refs = refs[:packed], refs[packed:]
    y, log_mass, own_q, keys, values, again_k, again_v, own_mass, *barriers = refs
    q_in, k_in, v_in, k_out, v_out, again_in, turn = barriers
    head, row = jax.lax.axis_index("head"), jax.lax.axis_index("row")
    tile = tiles - 1 - jax.lax.axis_index("tile")  # the longest first
    group = jax.lax.axis_index("warpgroup")
    start = tile * (_GROUPS * _ROWS)
    least = starts[0][row, start] // _KEYS if packed else jnp.int32(0)
    most = (jnp.minimum(start + _GROUPS * _ROWS, length) - 1) // _KEYS
    steps = most - least + 1

    def take_turn():
        plgpu.barrier_wait(turn.at[group])

    def end_turn():
        plgpu.barrier_arrive(turn.at[jax.lax.rem(group + 1, jnp.int32(_GROUPS))])

    def pass_on(i, _):
        """Of a step of whose keys no query of this warpgroup sees any."""
        at = _slot(i)
        for loaded, read in ((k_in, k_out), (v_in, v_out)):
            plgpu.barrier_wait(loaded.at[at])
            plgpu.barrier_arrive(read.at[at])
        take_turn()
        end_turn()

    def attend():
        first = start + group * _ROWS
        tokens = pl.ds(first, _ROWS)
        plgpu.copy_gmem_to_smem(q.at[row, tokens, head], own_q.at[group], q_in.at[group])
        if packed:
            own_starts = starts[0].at[row, tokens]
            starts_C = plgpu.load(own_starts, layout=FRAGMENTS.reduce(1), optimized=False)
        plgpu.barrier_wait(q_in.at[group])
        # The block of the own tokens; those up to the start of the last query's document, where
        # all keys are seen, from here; that of the start of the first query's document.
        own = first // _KEYS
        inner = begin = least
        if packed:
            begin = starts[0][row, first] // _KEYS
            inner = jnp.minimum(_blocks(starts[0][row, first + _ROWS - 1]), own)
        before, behind = most - own, most - begin + 1  # steps without a key that is seen

        def in_document(scores_CS, first_key):
            if not packed:
                return scores_CS
            key_CS = places(scores_CS.shape, 1) + first_key
            seen = key_CS >= _spread(starts_C, scores_CS.shape[1])
            return jnp.where(seen, scores_CS, -jnp.inf)

        def causal(scores_CS, first_key):
            place = partial(places, scores_CS.shape)
            seen = place(0) + first >= place(1) + first_key
            return in_document(jnp.where(seen, scores_CS, -jnp.inf), first_key)

        def own_scores():
            def product(scores_CS):
                plgpu.barrier_wait(k_in.at[_slot(before)])
                take_turn()
                own_keys = keys.at[_slot(before)]
                plgpu.wgmma(scores_CS, own_q.at[group], own_keys.transpose((1, 0)))
                end_turn()
                return scores_CS[...]

            scores_CS = pl.run_scoped(product, sums(_ROWS, _KEYS))
            plgpu.barrier_arrive(k_out.at[_slot(before)])
            return causal(scores_CS, own * _KEYS)

        def weigh(scores_CS, top_C):
            weights_CS = jnp.exp2(scores_CS * scale - _spread(top_C, scores_CS.shape[1]))
            return weights_CS.astype(q.dtype), _folded(weights_CS)

        def step(i, carried, *, y_CK, top_C, is_masked):
            low_CS, mass_CF = carried
            at, last = _slot(i), _slot(i - 1)

            def products(scores_CS):
                plgpu.wgmma(scores_CS, own_q.at[group], keys.at[at].transpose((1, 0)))
                plgpu.barrier_wait(v_in.at[last])
                plgpu.wgmma(y_CK, low_CS, values.at[last])
                end_turn()
                scores_CS = plgpu.wgmma_accumulator_load(scores_CS, wait_n=1)
                plgpu.barrier_arrive(k_out.at[at])
                if is_masked:
                    scores_CS = in_document(scores_CS, (most - i) * _KEYS)
                next_CS, more_CF = weigh(scores_CS, top_C)
                carried = jax.lax.optimization_barrier((next_CS, mass_CF + more_CF))
                plgpu.wgmma_wait(0)
                jax.lax.optimization_barrier(low_CS)  # stays until its product has ended
                plgpu.barrier_arrive(v_out.at[last])
                return carried

            # Before the sums begin: nothing then stands between their zeros and the product.
            plgpu.barrier_wait(k_in.at[at])
            take_turn()
            return pl.run_scoped(products, sums(_ROWS, _KEYS))

        def save(y_CK, top_C, mass_C):
            own_q.at[group][...] = (y_CK[...] / _spread(mass_C, y.shape[-1])).astype(q.dtype)
            own_mass.at[group][...] = top_C * math.log(2) + jnp.log(mass_C)

        def walk(y_CK):
            """Whether a sum of weights has become too large."""
            jax.lax.fori_loop(0, before, pass_on, None)
            scores_CS = own_scores()
            top_C = jnp.max(scores_CS, axis=1) * scale
            run = partial(step, y_CK=y_CK, top_C=top_C)
            carried, inside = weigh(scores_CS, top_C), most - inner + 1
            unmasked = partial(run, is_masked=False)
            carried = jax.lax.fori_loop(before + 1, inside, unmasked, carried)
            if packed:
                inside = jnp.maximum(inside, before + 1)
                carried = jax.lax.fori_loop(inside, behind, partial(run, is_masked=True), carried)
            (low_CS, mass_CF), last = carried, _slot(behind - 1)
            plgpu.barrier_wait(v_in.at[last])
            plgpu.wgmma(y_CK, low_CS, values.at[last])
            plgpu.wgmma_wait(0)
            plgpu.barrier_arrive(v_out.at[last])
            jax.lax.fori_loop(behind, steps, pass_on, None)
            mass_C = jnp.sum(mass_CF, axis=1)
            own_mass.at[group][...] = mass_C
            plgpu.commit_smem()
            # All of them in every warp, before any thread saves: so all threads decide alike.
            mass_C_all = plgpu.load(own_mass.at[group], layout=FRAGMENTS.reduce(0))
            is_finite = jnp.max(mass_C_all) < _MOST  # False where it is NaN
            plgpu.commit_smem()
            pl.when(is_finite)(lambda: save(y_CK, top_C, mass_C))
            return is_finite

        def walk_again(y_CK):
            """By a running maximum, with keys and values of its own."""

            def step(i, carried):
                top_C, mass_C = carried
                first_key = first - i * _FEWER
                tokens = row, pl.ds(first_key, _FEWER), head
                filled = again_in.at[group]
                plgpu.copy_gmem_to_smem(k.at[tokens], again_k.at[group], filled)
                plgpu.copy_gmem_to_smem(v.at[tokens], again_v.at[group], filled)
                plgpu.barrier_wait(filled)

                def product(scores_CS):
                    plgpu.wgmma(scores_CS, own_q.at[group], again_k.at[group].transpose((1, 0)))
                    return scores_CS[...]

                scores_CS = causal(pl.run_scoped(product, sums(_ROWS, _FEWER)), first_key)
                next_C = jnp.maximum(top_C, jnp.max(scores_CS, axis=1) * scale)
                fade_C = jnp.exp2(top_C - next_C)
                low_CS, more_CF = weigh(scores_CS, next_C)
                y_CK[...] = y_CK[...] * _spread(fade_C, y.shape[-1])
                plgpu.wgmma(y_CK, low_CS, again_v.at[group])
                plgpu.wgmma_wait(0)
                plgpu.commit_smem()  # read by all threads
                return next_C, mass_C * fade_C + jnp.sum(more_CF, axis=1)

            earlier = first - starts[0][row, first] if packed else first  # keys
            count = (earlier + _FEWER - 1) // _FEWER + 1
            save(y_CK, *jax.lax.fori_loop(0, count, step, (_rows(-jnp.inf), _rows(0.0))))

        is_finite = pl.run_scoped(walk, sums(_ROWS, y.shape[-1]))
        pl.when(~is_finite)(lambda: pl.run_scoped(walk_again, sums(_ROWS, y.shape[-1])))
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own_q.at[group], y.at[row, tokens, head])
        plgpu.copy_smem_to_gmem(own_mass.at[group], log_mass.at[row, head, tokens])
        plgpu.wait_smem_to_gmem(0)

    @pl.when(group < _GROUPS)
    def _own():
        plgpu.set_max_registers(_REGISTERS[0], action="increase")
        pl.when(group == _GROUPS - 1)(end_turn)  # the first turn is that of the first group
        is_there = start + group * _ROWS < length  # the last tile may have fewer groups
        pl.when(is_there)(attend)
        pl.when(~is_there)(lambda: jax.lax.fori_loop(0, steps, pass_on, None))

    @pl.when(group == _GROUPS)
    def _load():
        plgpu.set_max_registers(_REGISTERS[1], action="decrease")

        @pl.loop(jnp.int32(0), steps)
        def _(i):
            at, tokens = _slot(i), (row, pl.ds((most - i) * _KEYS, _KEYS), head)
            pl.when(i >= _STAGES)(lambda: plgpu.barrier_wait(k_out.at[at]))
            plgpu.copy_gmem_to_smem(k.at[tokens], keys.at[at], k_in.at[at])
            pl.when(i >= _STAGES)(lambda: plgpu.barrier_wait(v_out.at[at]))
            plgpu.copy_gmem_to_smem(v.at[tokens], values.at[at], v_in.at[at])


def _blocks(keys):
    """Blocks that hold ``keys`` keys."""
    return (keys + _KEYS - 1) // _KEYS


def _slot(i):
    return jax.lax.rem(i, jnp.int32(_STAGES))


def _rows(value: float) -> jax.Array:
    return plgpu.layout_cast(jnp.full(_ROWS, value, jnp.float32), FRAGMENTS.reduce(1))


def _spread(x_C: jax.Array, columns: int) -> jax.Array:
    return jax.lax.broadcast_in_dim(x_C, (_ROWS, columns), [0])


def _folded(x_CS: jax.Array) -> jax.Array:
    """Sums over every eighth column, which no other thread is asked for."""
    parts = [x_CS[:, at : at + _FOLDED] for at in range(0, x_CS.shape[1], _FOLDED)]
    return reduce(operator.add, parts)
