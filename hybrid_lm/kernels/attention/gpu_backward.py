"""Causal attention on Hopper, backward, in Pallas (Mosaic GPU): all gradients in one kernel.

A block of 128 keys stays on chip, and the queries that see it pass by, 64 a step (Dao 2023, arXiv
2307.08691, algorithm 2; Shah et al. 2024, arXiv 2407.08608). Four warpgroups: two own 64 keys each
and make scores, weights and their cotangents as [keys, queries], whose sums over queries, dk and
dv, take them from registers; one multiplies the cotangents by the keys and has the memory add the
result to dq (float32, in no fixed order, as cuDNN's); one loads.
"""

import math
from functools import partial

import jax
import jax.experimental.pallas as pl
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

from hybrid_lm.kernels.pallas_mosaic import FRAGMENTS, matrices, places, sums

_OWNERS = 2  # warpgroups with keys
_OWN = 64  # keys of a warpgroup: those of one product
_KEYS = _OWNERS * _OWN
_ROWS = 64  # queries of a step
_STAGES = 4  # steps' queries on chip
_SLOTS = 2  # cotangents of scores, and sums for dq, on chip
_REGISTERS = 208, 72, 24  # of a thread that owns keys, that makes dq, that loads


@jax.jit
def backward(
    q_BLHK: jax.Array,
    k_BLHK: jax.Array,
    v_BLHK: jax.Array,
    dy_BLHK: jax.Array,
    log_mass_BHL: jax.Array,
    offset_BHL: jax.Array,
    starts_BL: jax.Array | None,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gradients dq, dk and dv, [B, L, H, K].

    Args:
        log_mass_BHL: log-sum-exp of each query's scores, float32.
        offset_BHL: ``sum_k y dy``, what the softmax subtracts from the cotangents of its weights.
    """
    batch, length, heads, dim = q_BLHK.shape
    scale, operands = dim**-0.5, (q_BLHK, k_BLHK, v_BLHK, dy_BLHK)
    low = partial(matrices, dtype=q_BLHK.dtype)
    vectors = plgpu.SMEM((_STAGES, _ROWS), jnp.float32)
    like = jax.ShapeDtypeStruct(q_BLHK.shape, q_BLHK.dtype)
    dq_BLHK = jax.new_ref(jnp.zeros(q_BLHK.shape, jnp.float32))
    packed = starts_BL is not None
    documents = (starts_BL, _ends(starts_BL)) if packed else ()
    scratch = (plgpu.SMEM((_STAGES, _ROWS), jnp.int32),) if packed else ()
    dk_BLHK, dv_BLHK = plgpu.kernel(
        partial(_kernel, packed=packed, steps=length // _ROWS, scale=scale),
        out_type=(like, like),
        scratch_types=(
            low(_STAGES, _ROWS, dim),
            low(_STAGES, _ROWS, dim),
            vectors,
            vectors,
            *scratch,
            low(_KEYS, dim),
            low(_KEYS, dim),
            low(_SLOTS, _KEYS, _ROWS),
            matrices(_SLOTS, _ROWS, dim, dtype=jnp.float32),
            plgpu.Barrier(num_arrivals=2),
            plgpu.Barrier(num_arrivals=2 + packed, num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=2, num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=_OWNERS, num_barriers=_STAGES),
            plgpu.Barrier(num_arrivals=_OWNERS, num_barriers=_SLOTS),
            plgpu.Barrier(num_barriers=_SLOTS),
        ),
        grid=(heads, length // _KEYS, batch),
        grid_names=("head", "tile", "row"),
        num_threads=_OWNERS + 2,
        thread_name="warpgroup",
        compiler_params=plgpu.CompilerParams(approx_math=True),
    )(*operands, log_mass_BHL * (-1 / scale), -offset_BHL, *documents, dq_BLHK)
    return (dq_BLHK[...] * scale).astype(q_BLHK.dtype), dk_BLHK, dv_BLHK


def _ends(starts_BL: jax.Array) -> jax.Array:
    """Where the documents of the first and of the last key of each tile end: [B, tiles, 2]."""
    first_T = jnp.arange(0, starts_BL.shape[1], _KEYS)
    key_T2 = first_T[:, None] + jnp.array([0, _KEYS - 1])
    is_before = starts_BL[:, None, None, :] <= key_T2[..., None]  # starts never fall
    return jnp.sum(is_before, axis=-1, dtype=jnp.int32)


def _kernel(q, k, v, dy, mass, offset, *refs, packed: bool, steps: int, scale: float):
    """``mass`` and ``offset`` start the sums of scores and of cotangents: they are subtracted.

    ``*_in``, ``*_out``: filled, and read by all.
    """
    documents, refs = refs[: 2 * packed], refs[2 * packed :]  # starts, and `_ends`
    dq, dk, dv, queries, cotangents, own_mass, own_offset, *refs = refs
    own_starts, refs = refs[:packed], refs[packed:]
    keys, values, dscores, partial_dq, kv_in, q_in, dy_in, q_out, dscores_in, dscores_out = refs
    head, tile, row = (jax.lax.axis_index(name) for name in ("head", "tile", "row"))
    group = jax.lax.axis_index("warpgroup")
    first = tile * (_KEYS // _ROWS)
    full = count = steps - first
    if packed:
        full = documents[1][row, tile, 0] // _ROWS - first
        count = (documents[1][row, tile, 1] + _ROWS - 1) // _ROWS - first

    @pl.when(group < _OWNERS)
    def _own():
        plgpu.set_max_registers(_REGISTERS[0], action="increase")
        start = tile * _KEYS + group * _OWN
        own = pl.ds(group * _OWN, _OWN)
        plgpu.barrier_wait(kv_in)

        def along(x_C):
            return jax.lax.broadcast_in_dim(x_C, (_OWN, _ROWS), [1])

        def begin(result_SC, i, filled, start, fixed, passing):
            """``start + fixed passing^T``, under way."""
            at = i % _STAGES
            plgpu.barrier_wait(filled.at[at])
            result_SC[...] = along(plgpu.load(start.at[at], layout=FRAGMENTS.reduce(0)))
            plgpu.wgmma(result_SC, fixed.at[own], passing.at[at].transpose((1, 0)))

        def pass_on(dscores_SC, i):
            at = i % _SLOTS
            pl.when(i >= _SLOTS)(lambda: plgpu.barrier_wait(dscores_out.at[at]))
            dscores.at[at, own][...] = dscores_SC
            plgpu.commit_smem()
            plgpu.barrier_arrive(dscores_in.at[at])

        def step(i, _, *, dk_SK, dv_SK, masked):
            at = i % _STAGES

            def products(scores_SC, dweights_SC):
                begin(scores_SC, i, q_in, own_mass, keys, queries)
                begin(dweights_SC, i, dy_in, own_offset, values, cotangents)
                scores_SC = plgpu.wgmma_accumulator_load(scores_SC, wait_n=1)
                scores_SC = scores_SC * (scale * math.log2(math.e))
                if masked:
                    place = partial(places, (_OWN, _ROWS))
                    seen = place(1) + (first + i) * _ROWS >= place(0) + start
                    if packed:
                        starts_C = plgpu.load(own_starts[0].at[at], layout=FRAGMENTS.reduce(0))
                        seen &= place(0) + start >= along(starts_C)
                    scores_SC = jnp.where(seen, scores_SC, -jnp.inf)
                weights_SC = jnp.exp2(scores_SC)
                # Barriers: operands in registers are made before their product begins, and stay
                # until it has ended; else the compiler puts all products one after another.
                weights_SC, low_SC = jax.lax.optimization_barrier(
                    (weights_SC, weights_SC.astype(q.dtype))
                )
                plgpu.wgmma(dv_SK, low_SC, cotangents.at[at])
                dweights_SC = plgpu.wgmma_accumulator_load(dweights_SC, wait_n=1)
                dscores_SC = (weights_SC * dweights_SC).astype(q.dtype)
                dscores_SC = jax.lax.optimization_barrier(dscores_SC)
                plgpu.wgmma(dk_SK, dscores_SC, queries.at[at])
                pass_on(dscores_SC, i)
                plgpu.wgmma_wait(0)
                jax.lax.optimization_barrier((low_SC, dscores_SC))
                plgpu.barrier_arrive(q_out.at[at])

            pl.run_scoped(products, sums(_OWN, _ROWS), sums(_OWN, _ROWS))

        def gradients(dk_SK, dv_SK):
            run = partial(step, dk_SK=dk_SK, dv_SK=dv_SK)
            edge = _KEYS // _ROWS
            jax.lax.fori_loop(0, edge, partial(run, masked=True), None)
            # Queries of the document of all keys, then, of some of them.
            inner = jnp.maximum(full, edge)
            jax.lax.fori_loop(edge, inner, partial(run, masked=False), None)
            if packed:
                jax.lax.fori_loop(inner, count, partial(run, masked=True), None)
            return (dk_SK[...] * scale).astype(k.dtype), dv_SK[...].astype(v.dtype)

        wide = sums(_OWN, k.shape[-1])
        for gradient_SK, out in zip(pl.run_scoped(gradients, wide, wide), (dk, dv), strict=True):
            values.at[own][...] = gradient_SK  # read by nobody else
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(values.at[own], out.at[row, pl.ds(start, _OWN), head])
            plgpu.wait_smem_to_gmem(0)

    @pl.when(group == _OWNERS)
    def _sum():
        plgpu.set_max_registers(_REGISTERS[1], action="decrease")
        plgpu.barrier_wait(kv_in)

        @pl.loop(jnp.int32(0), count)
        def _(i):
            at = i % _SLOTS
            plgpu.barrier_wait(dscores_in.at[at])

            def product(dq_CK):
                plgpu.wgmma(dq_CK, dscores.at[at].transpose((1, 0)), keys)
                return dq_CK[...]

            dq_CK = pl.run_scoped(product, sums(_ROWS, k.shape[-1]))
            plgpu.barrier_arrive(dscores_out.at[at])
            plgpu.wait_smem_to_gmem(_SLOTS - 1, wait_read_only=True)
            partial_dq.at[at][...] = dq_CK
            plgpu.commit_smem()
            tokens = row, pl.ds((first + i) * _ROWS, _ROWS), head
            plgpu.copy_smem_to_gmem(partial_dq.at[at], dq.at[tokens], reduction_op="add")

        plgpu.wait_smem_to_gmem(0)

    @pl.when(group == _OWNERS + 1)
    def _load():
        plgpu.set_max_registers(_REGISTERS[2], action="decrease")
        tokens = row, pl.ds(tile * _KEYS, _KEYS), head
        plgpu.copy_gmem_to_smem(k.at[tokens], keys, kv_in)
        plgpu.copy_gmem_to_smem(v.at[tokens], values, kv_in)

        @pl.loop(jnp.int32(0), count)
        def _(i):
            at, tokens = i % _STAGES, pl.ds((first + i) * _ROWS, _ROWS)
            pl.when(i >= _STAGES)(lambda: plgpu.barrier_wait(q_out.at[at]))
            plgpu.copy_gmem_to_smem(q.at[row, tokens, head], queries.at[at], q_in.at[at])
            plgpu.copy_gmem_to_smem(mass.at[row, head, tokens], own_mass.at[at], q_in.at[at])
            if packed:
                starts = documents[0].at[row, tokens]
                plgpu.copy_gmem_to_smem(starts, own_starts[0].at[at], q_in.at[at])
            plgpu.copy_gmem_to_smem(dy.at[row, tokens, head], cotangents.at[at], dy_in.at[at])
            plgpu.copy_gmem_to_smem(offset.at[row, head, tokens], own_offset.at[at], dy_in.at[at])
