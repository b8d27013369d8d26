"""What the GPU kernels use of Pallas' Triton backend, in one place: it is deprecated upstream."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from hybrid_lm.kernels.dispatch import kernel_obstacle, on_gpu


def obstacle(values: jax.Array) -> str | None:
    """Why no kernel can run on such values; None if one can."""
    if not on_gpu():
        return "the device is not a GPU"
    return kernel_obstacle(values)


def call(
    kernel: Callable[..., None],
    grid: tuple[int, ...],
    outputs: Any,
    *operands: jax.Array,
    warps: int,
    stages: int = 1,
    aliases: Mapping[int, int] | None = None,
    interpret: bool,
) -> Any:
    """Run ``kernel(*operand_refs, *output_refs)`` over ``grid``, every ref the whole array.

    ``stages`` rounds of the innermost loop have their loads under way at a time.
    ``aliases``: operands whose memory an output takes over, with what is in it.
    ``interpret`` runs it as plain XLA on any device (tests on machines without a GPU).
    """
    return pl.pallas_call(
        kernel,
        out_shape=outputs,
        grid=grid,
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=stages),
        input_output_aliases=dict(aliases or {}),
        interpret=interpret,
    )(*operands)


def load(ref: Any, at: tuple[Any, ...], mask: jax.Array | None) -> jax.Array:
    """``ref[at]``, 0 where the mask does not hold; there nothing is read."""
    if mask is None:
        return ref[at]
    return triton.load(_view(ref, at), mask=mask, other=0)


def store(ref: Any, at: tuple[Any, ...], values: jax.Array, mask: jax.Array | None) -> None:
    """``ref[at] = values`` in the dtype of ref, where the mask holds."""
    triton.store(_view(ref, at), values.astype(ref.dtype), mask=mask)


def _view(ref: Any, at: tuple[Any, ...]) -> Any:
    """``ref.at[at]``; the interpreter takes no Python integers."""
    return ref.at[tuple(jnp.int32(i) if isinstance(i, int) else i for i in at)]


def dot(
    a: jax.Array,
    b: jax.Array,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    tf32: bool = False,
) -> jax.Array:
    """Product of two matrices, summed in float32.

    float32 operands take full float32 products, or those of TF32 (11 bits) on the matrix units.
    """
    exact = jax.lax.Precision.HIGH if tf32 else jax.lax.Precision.HIGHEST
    return jax.lax.dot_general(
        a,
        b,
        (((0 if trans_a else 1,), (1 if trans_b else 0,)), ((), ())),
        precision=exact if a.dtype == jnp.float32 else None,
        preferred_element_type=jnp.float32,
    )


def round_to_tf32(x: jax.Array) -> jax.Array:
    """Float32 ``x`` to the 11 bits that a product of TF32 reads: it cuts off what is after them."""
    bits = jax.lax.bitcast_convert_type(x, jnp.int32)
    rounded = jax.lax.bitcast_convert_type((bits + 0x1000) & -0x2000, jnp.float32)
    return jnp.where(jnp.isnan(x), x, rounded)  # its last bits would carry into the sign


def join(values: list[jax.Array]) -> jax.Array:
    """2^k arrays [...] as one [..., 2, 2, ..., 2], in row-major order of their index.

    Triton joins two at a time.
    """
    while len(values) > 1:
        half = len(values) // 2
        axis = values[0].ndim
        values = [jnp.stack([values[i], values[half + i]], axis) for i in range(half)]
    return values[0]


def from_lane(x: jax.Array, lane: jax.Array) -> jax.Array:
    """Float32 ``x`` of another lane of the warp; ``x`` has one element a lane."""
    return _shuffle("shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;", x, lane)


def from_lane_xor(x: jax.Array, mask: int) -> jax.Array:
    """Float32 ``x`` of the lane whose number differs in the bits of ``mask``; as `from_lane`."""
    return _shuffle(f"shfl.sync.bfly.b32 $0, $1, {mask}, 0x1f, 0xffffffff;", x)


def _shuffle(asm: str, x: jax.Array, *lane: jax.Array) -> jax.Array:
    (moved,) = triton.elementwise_inline_asm(
        asm,
        args=[x, *lane],
        constraints=",".join(["=f", "f", *["r"] * len(lane)]),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return moved
