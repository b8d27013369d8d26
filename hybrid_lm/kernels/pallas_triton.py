"""What the GPU kernels use of Pallas' Triton backend, in one place: it is deprecated upstream."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton
from jax.typing import DTypeLike

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

    float32 operands take products of TF32 (11 bits) on the matrix units, or as exact as float32:
    there in six products of bfloat16, each operand cut in three. One product a thread at a time,
    Triton's other way, takes minutes to compile.
    """
    exact = jax.lax.Precision.HIGH if tf32 else jax.lax.DotAlgorithmPreset.BF16_BF16_F32_X6
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
    return _inline("shfl.sync.idx.b32 $0, $1, $2, 0x1f, 0xffffffff;", x, lane)


def from_lane_xor(x: jax.Array, mask: int) -> jax.Array:
    """Float32 ``x`` of the lane whose number differs in the bits of ``mask``; as `from_lane`."""
    return _inline(f"shfl.sync.bfly.b32 $0, $1, {mask}, 0x1f, 0xffffffff;", x)


def exp2(x: jax.Array) -> jax.Array:
    """``2 ** x`` of float32 ``x``, 0 where that is less than 2^-126: one instruction.

    `jnp.exp2` is as many only where XLA is set to flush to zero.
    """
    return _inline("ex2.approx.ftz.f32 $0, $1;", x)


def reciprocal(x: jax.Array) -> jax.Array:
    """``1 / x`` of float32 ``x`` to its last bit, 0 where that is less than 2^-126."""
    return _inline("rcp.approx.ftz.f32 $0, $1;", x)


def opaque(x: jax.Array) -> jax.Array:
    """Integers ``x`` of which Triton knows nothing: not that neighbours differ by one."""
    return _inline("mov.b32 $0, $1;", x, outputs="=r", inputs="r")


def pair_of_bfloat16(low: jax.Array, high: jax.Array) -> jax.Array:
    """Float32 ``low`` and ``high`` as bfloat16 in the halves of a word."""
    asm = "cvt.rn.bf16x2.f32 $0, $1, $2;"
    return _inline(asm, high, low, outputs="=r", inputs="f,f", dtype=jnp.int32)


def warp_product_bfloat16(a: list[jax.Array], b: jax.Array) -> list[jax.Array]:
    """[16, 8] = a [16, 8] b [8, 8] of a warp, operands in words of two bfloat16, sums in float32.

    Arrays have one element a lane. Lane ``4 r + q`` has columns ``2 q, 2 q + 1`` of rows r and
    8 + r of ``a``, rows ``2 q, 2 q + 1`` of column r of ``b``, and of the result in turn what it
    has of ``a``: rows r, columns ``2 q, 2 q + 1``, and rows 8 + r.
    """
    product = "mma.sync.aligned.m16n8k8.row.col.f32.bf16.bf16.f32"
    asm = (
        "{ .reg .f32 zero; mov.f32 zero, 0f00000000; "
        f"{product} {{$0, $1, $2, $3}}, {{$4, $5}}, {{$6}}, {{zero, zero, zero, zero}}; }}"
    )
    return _fours(asm, [[*a, b, b]], "r")


def warp_product_tf32(
    a: list[jax.Array], b: list[jax.Array], sums: list[jax.Array]
) -> list[jax.Array]:
    """``sums`` [16, 8] + a [16, 8] b [8, 8] of a warp: float32, read to 11 bits, sums in float32.

    Lane ``4 r + q`` has of ``a`` rows r and 8 + r of column q, then of column 4 + q; of ``b`` rows
    q and 4 + q of column r; of ``sums`` and the result as in `warp_product_bfloat16`.
    """
    product = "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32"
    asm = f"{product} {{$0, $1, $2, $3}}, {{$4, $5, $6, $7}}, {{$8, $9}}, {{$12, $13, $14, $15}};"
    a, b = ([jax.lax.bitcast_convert_type(x, jnp.int32) for x in side] for side in (a, b))
    return _fours(asm, [a, [*b, *b], sums], "rrf")


def _fours(asm: str, operands: list[list[jax.Array]], registers: str) -> list[jax.Array]:
    """Four float32 of inline assembly over four words of each operand."""
    joined = [join(words) for words in operands]
    shape = operands[0][0].shape
    (result,) = triton.elementwise_inline_asm(
        asm,
        args=joined,
        constraints=",".join(["=f"] * 4 + [kind for kind in registers for _ in range(4)]),
        pack=4,
        result_shape_dtypes=[jax.ShapeDtypeStruct(joined[0].shape, jnp.float32)],
    )
    # Joined two at a time, so split two at a time: nothing moves.
    halves = jax.lax.split(result, [1, 1], len(shape))
    parts = [jax.lax.split(x.reshape(*shape, 2), [1, 1], len(shape)) for x in halves]
    return [x.reshape(shape) for pair in parts for x in pair]


def _inline(
    asm: str,
    x: jax.Array,
    *others: jax.Array,
    outputs: str = "=f",
    inputs: str | None = None,
    dtype: DTypeLike | None = None,
) -> jax.Array:
    """Inline assembly; ``x`` and the result float32, ``others`` integers unless told otherwise."""
    inputs = inputs or ",".join(["f", *["r"] * len(others)])
    (result,) = triton.elementwise_inline_asm(
        asm,
        args=[x, *others],
        constraints=f"{outputs},{inputs}",
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, dtype or x.dtype)],
    )
    return result
