"""The NLL that all groups save together, shared out among them."""

from dataclasses import dataclass

from hybrid_lm.results.spans import Interval, KnockoutBucket


@dataclass(frozen=True)
class Shapley:
    """A group's Shapley value: NLL it saves, averaged over all orders in which groups can join.

    Shapley 1953; the players are the groups, absent ones are mean-ablated.
    """

    value: float
    ci95: Interval
    buckets: tuple[KnockoutBucket, ...]
    """The value by position, as ``delta_nll``."""


@dataclass(frozen=True)
class ShapleyTotal:
    """What the values of all groups add up to."""

    absent_nll: float
    """NLL with all groups mean-ablated."""
    total: float
    """``absent_nll`` - ``nll`` = the sum of the values."""
    ci95: Interval
