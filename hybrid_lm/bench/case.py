"""An operation to check and time."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp


class Case(NamedTuple):
    """An operation on operands of a shape.

    Attributes:
        run: ``run(*operands, implementation=...)`` -> one output.
        operands: ``operands(scale)``: differentiable arrays, the length divided by ``scale``.
        implementations: that may be timed.
        flops: floating-point operations of the definition, by formula: two for a multiply-add.
        checked: what of ``run`` is compared with the reference; None: all of it.
    """

    run: Callable[..., jax.Array]
    operands: Callable[[int], tuple[jax.Array, ...]]
    implementations: tuple[str, ...]
    flops: float
    checked: Callable[..., jax.Array] | None = None


def normal(*shapes: tuple[int, ...], dtype: Any = jnp.bfloat16) -> tuple[jax.Array, ...]:
    """Standard normal arrays."""
    keys = jax.random.split(jax.random.key(0), len(shapes))
    return tuple(jax.random.normal(k, s, dtype) for k, s in zip(keys, shapes, strict=True))
