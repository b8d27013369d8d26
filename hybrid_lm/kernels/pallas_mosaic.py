"""What kernels for Hopper in Pallas (Mosaic GPU) share: matrices on chip and sums of products."""

import jax
import jax.experimental.pallas.mosaic_gpu as plgpu
import jax.numpy as jnp

FRAGMENTS = plgpu.Layout.WGMMA
"""How the threads of a warpgroup share what its products add up to."""


def matrices(*shape: int, dtype: jax.typing.DTypeLike):
    """Shared memory, laid out as products and bulk copies take it: the last axis of 64 or 128."""
    columns = 128 // jnp.dtype(dtype).itemsize
    tiles = plgpu.TilingTransform((8, columns))  # pyright: ignore[reportAbstractUsage]
    swizzle = plgpu.SwizzleTransform(128)  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(shape, dtype, transforms=(tiles, swizzle))


def places(shape: tuple[int, int], axis: int) -> jax.Array:
    """The row (axis 0) or column (1) of each entry of a matrix in fragments."""
    return plgpu.broadcasted_iota(jnp.int32, shape, axis, layout=FRAGMENTS)


def sums(rows: int, columns: int):
    """Registers that products add to, zero at first."""
    return plgpu.WGMMAAccumulatorRef((rows, columns), jnp.float32)
