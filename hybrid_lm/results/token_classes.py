"""NLL by the kind of token that is predicted."""

from dataclasses import dataclass

from hybrid_lm.results.spans import Interval


@dataclass(frozen=True)
class TokenClassGroup:
    """NLL change on the tokens of a class when a group is skipped."""

    name: str
    delta_nll: float
    ci95: Interval
    adjusted_p: float | None = None
    """Corrected for all cells class x group of the report."""


@dataclass(frozen=True)
class TokenClass:
    """The model on the predicted tokens of one kind."""

    name: str
    definition: str
    tokens: int
    documents: int
    """Documents that have such tokens; the intervals are over these."""
    nll: float
    ci95: Interval
    groups: tuple[TokenClassGroup, ...]
