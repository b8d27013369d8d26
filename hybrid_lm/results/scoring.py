"""The same documents scored in several ways, beyond the length of training."""

from dataclasses import dataclass
from typing import Literal

from hybrid_lm.results.spans import Bucket, Interval

ScoringMode = Literal["full", "sliding", "streaming"]


@dataclass(frozen=True)
class Scoring:
    """NLL of the first ``length`` tokens of documents in one mode.

    All modes and lengths of a report are of the same documents.
    """

    mode: ScoringMode
    """full: one pass. sliding: windows of ``window`` tokens, each moved by a quarter, the last
    quarter scored. streaming: in pieces, the state carried on, attention limited to ``window``."""
    length: int
    window: int | None
    """None in mode full."""
    documents: int
    nll: float
    ci95: Interval
    bits_per_byte: float
    bits_per_byte_ci95: Interval
    delta_nll: float
    """NLL minus that of mode full at the same length, paired by document; 0 in mode full."""
    delta_ci95: Interval
    buckets: tuple[Bucket, ...]
