"""Figures along the position in the document, of runs and of the points of a study."""

from collections.abc import Sequence

import altair as alt

from hybrid_lm.compare.difference import Difference
from hybrid_lm.page.axes import curves, drawn, middle, positions
from hybrid_lm.page.figure import Figure, Legend, Panel, Table
from hybrid_lm.page.theme import LINE
from hybrid_lm.report import show
from hybrid_lm.results import Bucket, KnockoutBucket

SCOPE = "run"
"""Of the legend."""


def differences(
    base: str,
    names: Sequence[str],
    compared: Sequence[tuple[str, Difference]],
    length: int,
    tables: Sequence[Table] = (),
) -> Figure:
    """Paired difference of everything compared to ``base``, by octave.

    ``names`` are all of the legend, in its order; ``tables`` come before that of this figure.
    """
    rows = [
        point(name, bucket, bucket.delta_nll, f"{bucket.delta_nll:+.4f}")
        for name, found in compared
        for bucket in found.buckets
    ]
    y = alt.Y("low:Q", title="difference (nats per token)")
    zero = drawn([{"zero": 0}]).mark_rule(color=LINE).encode(y=alt.Y("zero:Q"))
    fields = ["series", "position", "value text", "95% interval"]
    chart = curves(rows, names, positions(length), y, fields, behind=[zero])
    return Figure(
        name="differences",
        title=f"Difference to {base}",
        panels=[Panel("delta", "", chart)],
        text=f"NLL minus that of {base} on the same documents; below zero is better. A band that "
        "holds zero is no difference that these documents show.",
        tables=[*tables, by_position("By position", rows, [name for name, _ in compared])],
        legend=Legend(SCOPE, names),
    )


def point(name: str, bucket: Bucket | KnockoutBucket, value: float, text: str) -> dict:
    """Row of a chart: the value of an octave and its interval."""
    low, high = bucket.ci95
    return {
        "series": name,
        "x": middle(bucket.start, bucket.end),
        "value": value,
        "low": low,
        "high": high,
        "position": f"{bucket.start}-{bucket.end}",
        "value text": text,
        "95% interval": show.interval(bucket.ci95, "+.4f" if text[0] in "+-" else "#.4g"),
    }


def by_position(caption: str, rows: Sequence[dict], names: Sequence[str]) -> Table:
    """The rows of `point` as a table, a column for each name."""
    cells: dict[str, list[str]] = {}
    for row in rows:
        text = f"{row['value text']} ({row['95% interval']})"
        cells.setdefault(row["position"], []).append(text)
    return Table(caption, ["position", *names], [[at, *texts] for at, texts in cells.items()])
