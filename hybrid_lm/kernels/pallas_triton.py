"""What the GPU kernels use of Pallas' Triton backend, in one place: it is deprecated upstream."""

from collections.abc import Callable
from typing import Any

import jax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton


def call(
    kernel: Callable[..., None],
    grid: tuple[int, ...],
    outputs: Any,
    *operands: jax.Array,
    warps: int,
    interpret: bool,
) -> Any:
    """Run ``kernel(*operand_refs, *output_refs)`` over ``grid``, every ref the whole array.

    ``interpret`` runs it as plain XLA on any device (tests on machines without a GPU).
    """
    return pl.pallas_call(
        kernel,
        out_shape=outputs,
        grid=grid,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=1),
        interpret=interpret,
    )(*operands)
