"""What bucket attention keeps of the past, and the softmax that its forms share."""

from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

LOW = -1e30  # below any score, and finite


class Shape(NamedTuple):
    """What a token sees.

    Attributes:
        buckets: N.
        window: W; without ``causal``, as many tokens as that on both sides together.
        sees_itself: else a token sees itself only where it sees nothing else in any round.
        causal: else the latest W / 2 tokens and the next W / 2 are seen.
    """

    buckets: int
    window: int
    sees_itself: bool
    causal: bool = True


class Rings(NamedTuple):
    """The latest W keys and values of each bucket, the last one at the end.

    Attributes:
        k_BHRNWK: keys, zeros where there are fewer.
        v_BHRNWP: values.
        count_BHRN: int32 how many there are.
    """

    k_BHRNWK: jax.Array
    v_BHRNWP: jax.Array
    count_BHRN: jax.Array

    @classmethod
    def empty(
        cls, sizes_BHR: tuple[int, int, int], shape: Shape, k: int, p: int, dtype: DTypeLike
    ) -> Self:
        """Rings that hold nothing, for K and P of these sizes."""
        slots = (*sizes_BHR, shape.buckets, shape.window)
        return cls(
            jnp.zeros((*slots, k), dtype),
            jnp.zeros((*slots, p), dtype),
            jnp.zeros(slots[:-1], jnp.int32),
        )


class Softmax(NamedTuple):
    """A softmax over the keys of one round: ``sum exp(score - top) (1, v)``."""

    top: jax.Array
    total: jax.Array
    values: jax.Array


def merged(rounds: Softmax) -> jax.Array:
    """One softmax of all rounds, the first axis of ``values_RP`` and the others."""
    scale_R = jnp.exp(rounds.top - rounds.top.max(axis=0))
    values_P = jnp.sum(rounds.values * scale_R[..., None], axis=0)
    return values_P / jnp.sum(rounds.total * scale_R, axis=0)[..., None]
