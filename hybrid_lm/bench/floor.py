"""The least time that an operation can take on the device at hand."""

from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

from hybrid_lm.bench.timing import timed

_COPIED_MIB = 256
_MATRIX = 8192


class Work(NamedTuple):
    """What an operation must do at least.

    Attributes:
        read_bytes: its inputs, once.
        written_bytes: its outputs, once.
        flops: floating-point operations of its definition.
    """

    read_bytes: int
    written_bytes: int
    flops: float

    @property
    def bytes(self) -> int:
        return self.read_bytes + self.written_bytes

    def with_gradients(self) -> "Work":
        """And of a second pass, which reads inputs and cotangents and writes gradients.

        It takes the arithmetic twice: one product becomes two, for either factor.
        """
        gradients = 2 * self.read_bytes + self.written_bytes
        return Work(self.bytes + gradients, 0, 3 * self.flops)

    def floor_ms(self) -> float:
        """The longer of moving the bytes as a copy does and the FLOPs as a bf16 product does."""
        return 1e3 * max(self.bytes / copied_bytes_per_s(), self.flops / flops_per_s())


@cache
def copied_bytes_per_s() -> float:
    """Bytes read and written a second by a copy on the device, measured once."""
    x = jnp.zeros((_COPIED_MIB << 20) // 4, jnp.float32)
    return 2 * x.nbytes / (1e-3 * timed(jnp.copy, x).ms)


@cache
def flops_per_s() -> float:
    """Of a square bf16 matrix product on the device, measured once."""
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (_MATRIX, _MATRIX), jnp.bfloat16) for key in keys)
    return 2 * _MATRIX**3 / (1e-3 * timed(jnp.matmul, a, b).ms)
