"""NLLs and NLL changes on the tokens at positions [start, end) of every document."""

from dataclasses import dataclass

Interval = tuple[float, float]
"""Low and high end of a 95% interval."""


@dataclass(frozen=True)
class Bucket:
    """The model's NLL on the tokens at positions [start, end) of every document."""

    start: int
    end: int
    nll: float
    ci95: Interval
    beyond_training: bool
    """Whether it reaches past the rows that the model was trained on."""


@dataclass(frozen=True)
class ExitBucket:
    """NLL of a group's exit at positions [start, end)."""

    start: int
    end: int
    nll: float


@dataclass(frozen=True)
class KnockoutBucket:
    """NLL change at positions [start, end), relative to the whole model."""

    start: int
    end: int
    delta_nll: float
    ci95: Interval
