"""Whether later tokens reach earlier outputs of the trained model."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CausalityGroup:
    """Largest change of what leaves a group, over its root mean square.

    The group's input is as it was at tokens before ``position`` and another one from there on.
    """

    name: str
    before: float
    """At tokens before ``position``: 0 if not one bit of the future reaches them."""
    after: float
    """At tokens from ``position`` on: that the test sees what there is to see."""


@dataclass(frozen=True)
class Causality:
    """The suffix test on the model itself, its parameters, kernels and number format."""

    position: int
    """Tokens from here on were drawn anew."""
    documents: int
    """That were changed so."""
    groups: tuple[CausalityGroup, ...]
