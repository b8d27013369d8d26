"""What the TPU kernels use of Pallas' TPU backend, in one place.

The last grid axis is time: it runs in order, and scratch memory keeps its contents along it. The
others may run in any order.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu

VMEM, SMEM = tpu.VMEM, tpu.SMEM
Simulation = tpu.InterpretParams
Interpret = bool | Simulation
LANES = 128
SUBLANES = 8


def obstacle(values: jax.Array) -> str | None:
    """Why no kernel can run on such values on a TPU; None if one can."""
    if values.dtype == jnp.float64:
        return "it computes in float32"
    if values.shape[1] == 1:
        return "a row of one token"
    mesh = jax.sharding.get_abstract_mesh()
    if not mesh.empty and mesh.size > 1:
        return f"the mesh has {mesh.size} devices"
    return None


def call(
    kernel: Callable[..., None],
    grid: tuple[int, ...],
    inputs: Sequence[pl.BlockSpec],
    outputs: Sequence[pl.BlockSpec],
    shapes: Sequence[jax.ShapeDtypeStruct],
    scratch: Sequence[Any],
    *operands: jax.Array,
    interpret: Interpret,
) -> Any:
    """Run ``kernel(*input_refs, *output_refs, *scratch_refs)`` over ``grid``.

    ``interpret`` runs it on any device, for tests on machines without a TPU: as plain XLA (True),
    or with the memory of a TPU simulated.
    """
    semantics = ("parallel",) * (len(grid) - 1) + ("arbitrary",)
    return pl.pallas_call(
        kernel,
        out_shape=shapes,
        grid=grid,
        in_specs=inputs,
        out_specs=outputs,
        scratch_shapes=scratch,
        compiler_params=tpu.CompilerParams(dimension_semantics=semantics),
        interpret=interpret,
    )(*operands)


def dot(a: jax.Array, b: jax.Array, *, trans_a: bool = False, trans_b: bool = False) -> jax.Array:
    """Product of two matrices, summed in float32; float32 operands take full float32 products."""
    return jax.lax.dot_general(
        a,
        b,
        (((0 if trans_a else 1,), (1 if trans_b else 0,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def column(row_1C: jax.Array) -> jax.Array:
    """[1, C] -> [C, 1], without a transposition of lanes and sublanes."""
    return jnp.sum(_diagonal(row_1C.shape[1], row_1C), axis=1, keepdims=True)


def row(column_C1: jax.Array) -> jax.Array:
    """[C, 1] -> [1, C]."""
    return jnp.sum(_diagonal(column_C1.shape[0], column_C1), axis=0, keepdims=True)


def places(size: int) -> tuple[jax.Array, jax.Array]:
    """The row and the column of each entry of a square matrix."""
    i, j = (jax.lax.broadcasted_iota(jnp.int32, (size, size), axis) for axis in (0, 1))
    return i, j


def _diagonal(size: int, values: jax.Array) -> jax.Array:
    i, j = places(size)
    return jnp.where(i == j, values, jnp.zeros((), values.dtype))
