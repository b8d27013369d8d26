"""What kernels of the selective scan do whatever channels and states their lanes hold."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

from hybrid_lm.kernels import pallas_triton

LOG2_E = 1.4426950408889634
_SECTOR_BYTES = 32  # that a cache takes from memory at a time


class Lanes:
    """Arrays of one element a lane, over a row of the batch and a block of channels.

    Args:
        shape: of the arrays; lanes are numbered in row-major order.
        channels: of a block.
        interpret: whether the kernel runs as plain XLA, where there are no lanes to shuffle.
    """

    def __init__(
        self,
        row: jax.Array,
        block: jax.Array,
        *,
        shape: tuple[int, ...],
        channels: int,
        interpret: bool,
    ):
        self.row, self.block, self.interpret = row, block, interpret
        self.shape, self.lanes = shape, math.prod(shape)
        self.block_channels = channels
        self.lane = jnp.zeros(shape, jnp.int32)
        for axis, size in enumerate(shape):
            self.lane = self.lane * size + self._iota(axis)

    def _iota(self, axis: int, *inner: int) -> jax.Array:
        return jax.lax.broadcasted_iota(jnp.int32, (*self.shape, *inner), axis)

    def touch(self, own, shared, t, count: int, low, high) -> jax.Array:
        """Brings rows t .. t + count - 1, of those low .. high - 1, of the operands near.

        A sector a lane: the program's part of ``own`` [B, T, E] or [B, T, blocks, any], all of
        ``shared`` [B, T, any]. The result is 0; the loads are kept if it is used.
        """
        width = self.block_channels
        parts = [(ref, self.block * width, width) for ref in own if ref is not None]
        parts += [(ref, 0, ref.shape[-1]) for ref in shared]
        total = jnp.zeros(self.shape, jnp.float32)
        for ref, first, width in parts:
            place = ()
            if ref.ndim == 4:
                place, first, width = (self.block,), 0, ref.shape[-1]
            sectors = max(1, width * ref.dtype.itemsize // _SECTOR_BYTES)
            for start in range(0, count * sectors, self.lanes):
                at = start + self.lane % min(count * sectors, self.lanes)
                row = jnp.clip(t + at // sectors, low, high - 1)
                column = first + at % sectors * (width // sectors)
                value = ref[(self.row, row, *place, column)].astype(jnp.float32)
                # Not a product alone: what is infinite or NaN is no business of this token.
                total += jnp.where(jnp.abs(value) < 1, value, 0.0)
        return 0.0 * total

    def exp2(self, x: jax.Array) -> jax.Array:
        return jnp.exp2(x) if self.interpret else pallas_triton.exp2(x)

    def _reciprocal(self, x: jax.Array) -> jax.Array:
        return 1 / x if self.interpret else pallas_triton.reciprocal(x)

    def softplus(self, x: jax.Array) -> jax.Array:
        """``log(1 + exp(x))`` to float32's precision, also where it is small.

        ``log(1 + z) = 2 atanh(z / (2 + z))``, as a series: its argument is at most 1/3.
        """
        z = self.exp2(-LOG2_E * jnp.abs(x))
        ratio = z * self._reciprocal(2 + z)
        square = ratio * ratio
        series = jnp.full_like(x, 1 / 15)
        for k in (13, 11, 9, 7, 5, 3, 1):
            series = 1 / k + square * series
        return jnp.maximum(x, 0) + 2 * ratio * series

    def softplus_slope(self, x: jax.Array, softplus_x: jax.Array) -> jax.Array:
        """Derivative of softplus."""
        return self.exp2(LOG2_E * (x - softplus_x))

    def sigmoid(self, x: jax.Array) -> jax.Array:
        return self._reciprocal(1 + self.exp2(-LOG2_E * x))


def walk_near(
    rounds: int,
    stretch: int,
    near: Callable[[Any], jax.Array],
    advance: Callable[[Any, Any], Any],
    carry: Any,
    *,
    together: int = 1,
) -> Any:
    """``advance(i, carry)`` over all rounds, ``near(i)`` called for the next ``stretch`` of them.

    The hardware waits for loads by six counters a warp. Loads from memory in the loop over rounds
    share one with loads from the cache, which then take as long; in a loop around it they do not.
    ``carry[0]`` is a list of arrays that zeros of the form of `Lanes.touch` may be added to.
    ``together``: rounds of one block of instructions; both counts of rounds are its multiples.
    """

    def several(i, carry):
        for number in range(together):
            carry = advance(i * together + number, carry)
        return carry

    def walk(j, carry):
        zero = near((j + 1) * stretch)
        stop = jnp.minimum((j + 1) * stretch, rounds)
        edges = j * (stretch // together), stop // together
        (first, *states), *others = jax.lax.fori_loop(*edges, several, carry)
        return [first + zero, *states], *others

    return jax.lax.fori_loop(0, pl.cdiv(rounds, stretch), walk, carry)
