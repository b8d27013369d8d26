"""The mixer contract: a config that builds a causal sequence mixer, and the context it runs in.

A mixer is one file under ``hybrid_lm/mixers/`` with one registered config::

    @register("mamba")
    @dataclass(frozen=True)
    class Mamba(MixerConfig): ...

and a Flax module ``module(x_BLD, ctx, state=None) -> (y_BLD, state')``.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from hybrid_lm.errors import UserError
from hybrid_lm.kernels.dispatch import Implementation

State = Any  # a pytree of arrays; () for a stateless mixer

NO_STATE = "a mixer that is not causal takes no state"
"""Message of the `UserError` where one is given."""

CONTINUES = -1
"""``state["segment"]`` of an initial state: it continues whatever segment comes first."""


class Cost(NamedTuple):
    """What one mixer layer costs.

    Attributes:
        flops_per_token: forward floating-point operations (a multiply-add is 2) per token of a
            row of the given length, averaged over the row.
        state_bytes: bytes of the state after that many tokens of one row.
    """

    flops_per_token: float
    state_bytes: int


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Context:
    """What a mixer needs to know that is not its own.

    Attributes:
        positions_BL: int32 place of each token within its document.
        segment_ids_BL: int32 document of each token; a document is a run of one id, 0 is padding.
            None promises that every row is one document without padding (and continues the
            document of the state, if there is one).
        dtype: of the activations; parameters are cast to it where they are used.
        implementation: which kernel to use per operation.
        max_segments: promised bound on the runs of ids (padding included) in a row; None is no
            promise. A row that breaks it gets NaN from the kernels that rely on it.
        capacity: past tokens that a growing state (the key/value cache) has room for. None lets
            it grow by the row's length.
        recomputes: the backward pass makes again what costs it little, in place of keeping it.
    """

    positions_BL: jax.Array
    segment_ids_BL: jax.Array | None = None
    dtype: DTypeLike = dataclasses.field(default=jnp.float32, metadata={"static": True})
    implementation: Implementation = dataclasses.field(
        default=Implementation(), metadata={"static": True}
    )
    max_segments: int | None = dataclasses.field(default=None, metadata={"static": True})
    capacity: int | None = dataclasses.field(default=None, metadata={"static": True})
    recomputes: bool = dataclasses.field(default=False, metadata={"static": True})

    @classmethod
    def of_documents(cls, batch: int, length: int, start: jax.Array | int = 0, **rest) -> "Context":
        """Rows that are one document each, from position ``start`` of the document on."""
        positions_BL = jnp.broadcast_to(
            start + jnp.arange(length, dtype=jnp.int32), (batch, length)
        )
        return cls(positions_BL, **rest)

    def resets_BL(self, previous_segment_B: jax.Array | None) -> jax.Array | None:
        """True where a token starts a document, so that nothing before it may be seen.

        ``previous_segment_B`` is the segment that the state belongs to (None: no state). Returns
        None where no row can hold a start that matters.
        """
        if self.segment_ids_BL is None:
            return None
        ids_BL = self.segment_ids_BL
        if previous_segment_B is None:
            first_B1 = jnp.ones_like(ids_BL[:, :1], dtype=bool)
        else:
            first_B1 = (ids_BL[:, 0] != previous_segment_B) & (previous_segment_B != CONTINUES)
            first_B1 = first_B1[:, None]
        return jnp.concatenate([first_B1, ids_BL[:, 1:] != ids_BL[:, :-1]], axis=1)

    def ends_BL(self) -> jax.Array:
        """int32 index in the row of the last token of each token's document (or padding)."""
        batch, length = self.positions_BL.shape
        place_L = jnp.arange(length, dtype=jnp.int32)
        if self.segment_ids_BL is None:
            return jnp.full((batch, length), length - 1, jnp.int32)
        ids_BL = self.segment_ids_BL
        is_end_BL = jnp.pad(ids_BL[:, 1:] != ids_BL[:, :-1], ((0, 0), (0, 1)), constant_values=True)
        return jax.lax.cummin(jnp.where(is_end_BL, place_L, length), axis=1, reverse=True)

    def last_segment_B(self) -> jax.Array:
        """The segment that the state after this row belongs to (1 where ids are not given)."""
        if self.segment_ids_BL is None:
            return jnp.ones_like(self.positions_BL[:, 0])
        return self.segment_ids_BL[:, -1]


class Mixer(Protocol):
    """A causal sequence mixer with a state."""

    def __call__(
        self, x_BLD: jax.Array, ctx: Context, state: State | None = None
    ) -> tuple[jax.Array, State]:
        """Mix along L. ``state=None`` is the zero state; L = 1 is one recurrent step.

        For any split of the rows, running the second part with the state of the first equals
        one run. Gradients flow through both states.
        """
        ...

    def initial_state(self, batch: int, dtype: DTypeLike, capacity: int = 0) -> State:
        """The zero state; ``capacity`` tokens of room where the state grows with the context."""
        ...


@dataclass(frozen=True)
class MixerConfig:
    """Hyper-parameters of a mixer; the fields appear on the command line by themselves."""

    key: ClassVar[str]
    packable: ClassVar[bool] = True
    """Whether documents packed in a row are kept exactly apart."""
    may_be_zero: ClassVar[tuple[str, ...]] = ("seed",)
    """Fields that are integers from 0 on; all others are from 1 on."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            size, least = getattr(self, field.name), int(field.name not in self.may_be_zero)
            if isinstance(size, int) and not isinstance(size, bool) and size < least:
                raise UserError(f"{self.key}: {field.name} {size} must be at least {least}")

    def build(self, width: int, rngs: nnx.Rngs) -> Any:
        """The mixer's Flax module for model width D; it holds only `nnx.Param`s with ``axes``.

        Raises:
            UserError: if the hyper-parameters do not fit the width.
        """
        raise NotImplementedError

    def flops_per_token(self, width: int, length: int) -> float:
        """Forward floating-point operations per token, averaged over a row of ``length``."""
        raise NotImplementedError

    def is_subquadratic(self) -> bool:
        """Whether time and state stay bounded per token however long the row."""
        return True

    def is_causal(self) -> bool:
        """Whether an output depends on nothing after its token; a language model takes no other.

        A mixer that is not has no state: it is called without one, and returns ``()``.
        """
        return True

    def limit(self, length: int) -> "tuple[MixerConfig, MixerConfig] | None":
        """Where this mixer must equal full softmax attention on rows of ``length``.

        Returns this config at that setting and the attention config it must equal with the same
        parameters; None where there is no such setting.
        """
        del length
        return None

    def cost(self, width: int, length: int, dtype: DTypeLike = jnp.bfloat16) -> Cost:
        """FLOPs per token and the bytes of the state after ``length`` tokens of one row."""

        def state() -> State:
            return self.build(width, nnx.Rngs(0)).initial_state(1, dtype, capacity=length)

        leaves = jax.tree.leaves(jax.eval_shape(state))
        state_bytes = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
        return Cost(self.flops_per_token(width, length), state_bytes)


def per_head(key: str, heads: int, width: int) -> int:
    """Channels of each head of mixer ``key``; `UserError` where ``heads`` does not divide them."""
    if width % heads:
        raise UserError(f"{key}: heads {heads} does not divide width {width}")
    return width // heads


_REGISTRY: dict[str, type[MixerConfig]] = {}


def register[T: MixerConfig](key: str) -> Callable[[type[T]], type[T]]:
    """Class decorator: make a config known under ``key`` (the stem of its file)."""

    def add(config: type[T]) -> type[T]:
        if key in _REGISTRY:
            raise ValueError(f"mixer {key!r} is registered twice")
        config.key = key
        _REGISTRY[key] = config
        return config

    return add


def names() -> list[str]:
    """Keys of all registered mixers, sorted."""
    return sorted(_REGISTRY)


def get(key: str) -> type[MixerConfig]:
    """The config class registered under ``key``."""
    return _REGISTRY[key]
