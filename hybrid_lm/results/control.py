"""The control of a knock-out: random layers of other groups."""

from dataclasses import dataclass

from hybrid_lm.results.spans import Interval, KnockoutBucket


@dataclass(frozen=True)
class Control:
    """NLL change when random layers of the other groups are skipped instead, mean over draws."""

    layers: int
    """Layers skipped in a draw: as many as the group has, or all others where those are fewer."""
    draws: tuple[tuple[int, ...], ...]
    """Layers of every draw, by place in the stack from 0; no draw twice."""
    delta_nll: float
    ci95: Interval
    """Over documents, with these draws."""
    buckets: tuple[KnockoutBucket, ...]
