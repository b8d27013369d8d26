"""Axes, scales and marks that several figures share."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from hybrid_lm.octaves import BLOCK, octaves
from hybrid_lm.page.theme import LINE, MUTED, SERIES, SHAPES

HEIGHT = 260
_NARROW, _LETTER = 250, 6.5  # px: columns of a chart on a phone, a letter of a label
_FIRST = BLOCK // 2  # where a logarithmic axis has position 0
_TOKENS = (
    "datum.value >= 1024 && datum.value % 1024 == 0 ? datum.value / 1024 + 'k' : "
    "format(datum.value, 'd')"
)


def drawn(rows: Sequence[dict[str, Any]]) -> alt.Chart:
    """A chart of ``rows`` without those whose ``series`` the reader has switched off."""
    chart = alt.Chart(alt.Data(values=list(rows)))
    return chart.transform_filter("indexof(hidden, datum.series) < 0")


def layered(*charts: alt.Chart, height: int = HEIGHT) -> alt.LayerChart:
    """Charts upon each other, as wide as the page lets them be."""
    chart = alt.LayerChart(layer=list(charts), width="container", height=height)
    return chart.add_params(alt.param(name="hidden", value=[]))


def tips(fields: Sequence[str]) -> list[alt.Tooltip]:
    """Lines to show on hovering, of fields that hold text."""
    return [alt.Tooltip(field=field, type="nominal") for field in fields]


def color(names: Sequence[str]) -> alt.Color:
    """Colour by ``series``."""
    values = [SERIES[i % len(SERIES)] for i in range(len(names))]
    return alt.Color("series:N", title=None, scale=alt.Scale(domain=list(names), range=values))


def shape(names: Sequence[str]) -> alt.Shape:
    """Shape by ``series``, for readers who do not tell the colours apart."""
    values = [SHAPES[i % len(SHAPES)] for i in range(len(names))]
    return alt.Shape("series:N", title=None, scale=alt.Scale(domain=list(names), range=values))


def labelled(names: Sequence[str], **settings: Any) -> alt.Axis:
    """Axis along x of named columns; the names are slanted where a phone has no room for them."""
    slanted = _LETTER * max(map(len, names)) > _NARROW / len(names)
    return alt.Axis(
        labelAngle=-55 if slanted else 0, labelLimit=110, domain=False, ticks=False, **settings
    )


def middle(start: int, end: int) -> float:
    """Where an octave is drawn: half-way between its ends on a logarithmic axis."""
    return (max(start, _FIRST) * end) ** 0.5


def positions(length: int) -> alt.X:
    """Logarithmic axis of positions in a document, ticks at the ends of the octaves."""
    ends = [_FIRST, *(end for _, end in octaves(length))]
    return alt.X(
        "x:Q",
        title="position in the document (tokens)",
        scale=alt.Scale(type="log", base=2, domain=[_FIRST, ends[-1]], nice=False),
        axis=alt.Axis(
            values=ends, labelExpr=f"datum.value == {_FIRST} ? '0' : {_TOKENS}", grid=False
        ),
    )


def widths(ticks: Sequence[int], title: str) -> alt.X:
    """Logarithmic axis of numbers of tokens, ticks at those that were measured."""
    # A little room: marks stand on the first and the last tick.
    domain = [min(ticks) / 1.2, max(ticks) * 1.2]
    return alt.X(
        "x:Q",
        title=title,
        scale=alt.Scale(type="log", base=2, domain=domain, nice=False),
        axis=alt.Axis(values=list(ticks), labelExpr=_TOKENS, grid=False),
    )


def curves(
    rows: Sequence[dict[str, Any]],
    names: Sequence[str],
    x: alt.X,
    y: alt.Y,
    fields: Sequence[str],
    *,
    behind: Sequence[alt.Chart] = (),
    before: Sequence[alt.Chart] = (),
) -> alt.LayerChart:
    """A line with points per ``series`` through (``x``, ``value``), in a band ``low`` to ``high``.

    ``fields`` are shown on hovering a point; ``y`` is the axis of the field ``low``; ``behind`` is
    drawn first, ``before`` last.
    """
    base = drawn(rows).encode(x=x, color=color(names))
    band = base.mark_area().encode(y=y, y2="high:Q")
    line = base.mark_line().encode(y="value:Q")
    points = base.mark_point().encode(y="value:Q", shape=shape(names), tooltip=tips(fields))
    return layered(*behind, band, line, points, *before)


def beyond_training(training_length: int, x: alt.X) -> list[alt.Chart]:
    """A line, named above it, where positions begin that the rows of training did not have."""
    base = drawn([{"x": training_length, "label": "beyond training ▸"}]).encode(x=x)
    line = base.mark_rule(strokeDash=[4, 3], color=LINE)
    words = base.mark_text(align="right", baseline="bottom", dx=4, color=MUTED)
    return [line, words.encode(text="label:N", y=alt.value(-4))]
