"""Heat maps of NLL changes: signed, with the number in every cell, hatched where it may be 0."""

from collections.abc import Sequence
from typing import NamedTuple

import altair as alt

from hybrid_lm.page.axes import drawn, labelled, layered, tips
from hybrid_lm.page.theme import BETTER, INK, ON_STRONG, WORSE
from hybrid_lm.report import show
from hybrid_lm.results import Interval

_ROW = 34
FAINTEST = 0.05
"""Opacity of no change."""
STRONG = 0.8
"""Strength of a colour from which on the number on it is white."""
_SLOPE = 3  # of hatching, in cells: about as many times as wide as they are high
_LINES = [k / 2 for k in range(1, 2 * (_SLOPE + 1))]
TEXT = (
    "Orange: the loss rises, blue: it falls; the strength goes with the square root of the change. "
    "Hatched, number not bold: the 95% interval holds 0."
)


class Cell(NamedTuple):
    """One change: ``row`` and ``column`` say where it stands, ``names`` what hovering calls it."""

    series: str
    row: str
    column: str
    delta: float
    ci95: Interval
    names: dict[str, str]


def heatmap(
    cells: Sequence[Cell],
    *,
    rows: Sequence[str],
    columns: Sequence[str],
    title: str | None,
    largest: float,
) -> alt.LayerChart:
    """``title`` is that of the columns; a change of ``largest`` has the full colour."""
    records = [
        {
            "series": cell.series,
            "row": cell.row,
            "column": cell.column,
            "strength": min(1.0, (abs(cell.delta) / largest) ** 0.5) if largest else 0.0,
            "worse": cell.delta > 0,
            "uncertain": cell.ci95[0] <= 0 <= cell.ci95[1],
            "number": f"{cell.delta:+.3f}",
            "change": f"{cell.delta:+.4f} nats",
            "95% interval": show.interval(cell.ci95, "+.4f"),
            **cell.names,
        }
        for cell in cells
    ]
    x = alt.X(
        "column:N",
        title=title,
        scale=alt.Scale(domain=list(columns), paddingInner=0.04, paddingOuter=0.02),
        axis=labelled(columns, orient="top"),
    )
    y = alt.Y(
        "row:N",
        title=None,
        scale=alt.Scale(domain=list(rows), paddingInner=0.08, paddingOuter=0.04),
        axis=alt.Axis(domain=False, ticks=False, labelLimit=150),
    )
    base = drawn(records).encode(x=x, y=y)
    ground = base.mark_rect(
        color=alt.expr(f"datum.worse ? '{WORSE}' : '{BETTER}'"),
        opacity=alt.expr(f"{FAINTEST} + {1 - FAINTEST} * datum.strength"),
    ).encode(
        x=x.bandPosition(0),
        x2=alt.X2("column:N", bandPosition=1),
        y=y.bandPosition(0),
        y2=alt.Y2("row:N", bandPosition=1),
        tooltip=tips([*(cells[0].names if cells else ()), "change", "95% interval"]),
    )
    # As large as the columns allow; where not even 7 px fit, hovering and the table have it.
    numbers = base.mark_text(
        fontSize=alt.expr(f"min(12, width / {4.6 * len(columns)})"),
        opacity=alt.expr(f"width / {len(columns)} < 34 ? 0 : 1"),
        fontWeight=alt.expr("datum.uncertain ? 'normal' : 'bold'"),
        color=alt.expr(f"datum.strength > {STRONG} ? '{ON_STRONG}' : '{INK}'"),
    ).encode(text="number:N")
    return layered(ground, _hatching(base), numbers, height=_ROW * len(rows))


def _hatching(base: alt.Chart) -> alt.Chart:
    """Lines across a cell whose interval holds 0: slope * along + up is one of `_LINES`."""
    inside = alt.Scale(domain=[0, 1])
    return (
        base.transform_filter("datum.uncertain")
        .transform_calculate(line=f"{_LINES}")
        .transform_flatten(["line"])
        .transform_calculate(up=f"[min(1, datum.line), max(0, datum.line - {_SLOPE})]")
        .transform_flatten(["up"])
        .transform_calculate(along=f"(datum.line - datum.up) / {_SLOPE}")
        .mark_line(strokeWidth=1, opacity=0.3, color=INK)
        .encode(
            xOffset=alt.XOffset("along:Q", scale=inside),
            yOffset=alt.YOffset("up:Q", scale=inside),
            detail=["row:N", "column:N", "line:Q"],
        )
    )
