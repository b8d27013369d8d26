"""The receptive field of a group."""

from dataclasses import dataclass

from hybrid_lm.results.spans import Interval, KnockoutBucket


@dataclass(frozen=True)
class FieldWidth:
    """NLL change when the group sees no further back than [width, 2 width) tokens."""

    width: int
    delta_nll: float
    ci95: Interval
    buckets: tuple[KnockoutBucket, ...]


@dataclass(frozen=True)
class Field:
    """NLL change by the width w to which this group's field, and no other's, is cut."""

    widths: tuple[FieldWidth, ...]
    """From the narrowest. The widest is below half of the document: cut to half of it, a group
    sees everything."""
    effective_context: int | None
    """Smallest w that costs at most ``tolerance`` in the last octave; None: more than the widest
    here."""
    tolerance: float
    """Nats per token."""
