"""Numbers, intervals and positions as the report writes them."""

from collections.abc import Sequence
from typing import Protocol

from hybrid_lm.results import Bucket, Interval, Report

MAX_POSITION_COLUMNS = 4


def merged(buckets: Sequence[Bucket]) -> list[Sequence[Bucket]]:
    """The last octaves one by one, after all the earlier ones together."""
    alone = min(len(buckets), MAX_POSITION_COLUMNS) - 1
    first = len(buckets) - alone
    return [buckets[:first], *([bucket] for bucket in buckets[first:])]


def mean(values: Sequence[float], spans: Sequence[Bucket]) -> float:
    """Mean per token of neighbouring spans from the mean of each."""
    widths = [span.end - span.start for span in spans]
    return sum(v * w for v, w in zip(values, widths, strict=True)) / sum(widths)


def mark(report: Report, spans: Sequence[Bucket]) -> str:
    """A star where the octaves reach past the rows of training."""
    return "*" if spans[-1].end > report.training_length else ""


def span(spans: Sequence[Bucket]) -> str:
    """E.g. ``0-1k`` of neighbouring octaves."""
    start, end = position(spans[0].start), position(spans[-1].end)
    shared = end.endswith("k") and (start.endswith("k") or start == "0")
    return f"{start.removesuffix('k')}-{end}" if shared else f"{start}-{end}"


def position(tokens: int) -> str:
    """E.g. ``2k``."""
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


class _Change(Protocol):
    @property
    def delta_nll(self) -> float: ...

    @property
    def ci95(self) -> Interval: ...


def change(found: _Change | None) -> str:
    """An NLL change and half of its 95% interval; a dash for what was not measured."""
    return "–" if found is None else difference(found.delta_nll, found.ci95)


def difference(delta_nll: float, ci95: Interval, *, digits: int = 3) -> str:
    """The same from its parts."""
    return f"{delta_nll:+.{digits}f} ± {(ci95[1] - ci95[0]) / 2:.{digits}f}"


def cell(bucket: _Change) -> str:
    """A change with its 95% interval."""
    return f"{bucket.delta_nll:+.4f} ({interval(bucket.ci95, '+.4f')})"


def interval(ends: Interval, number: str = "#.4g") -> str:
    """Low to high."""
    return f"{ends[0]:{number}} to {ends[1]:{number}}"


def p_value(p: float | None) -> str:
    """Three digits; nothing for what was not measured."""
    if p is None:
        return ""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def perplexity(value: float) -> str:
    """Four digits."""
    return f"{value:#.4g}"


def count(value: float) -> str:
    """E.g. ``12.3M``."""
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def memory(value: float) -> str:
    """E.g. ``16 MiB``."""
    for unit in ("B", "KiB", "MiB"):
        if value < 1023.5:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"
