"""How far back each group looks: the loss when its receptive field is cut."""

from collections.abc import Sequence
from typing import Any

import altair as alt

from hybrid_lm.page.axes import color, curves, drawn, tips, widths
from hybrid_lm.page.figure import Figure, Legend, Panel, Table, caveats
from hybrid_lm.page.theme import LINE
from hybrid_lm.report import show
from hybrid_lm.results import Field, Report

_TICKS = (-1, -0.1, -0.03, -0.01, -0.003, 0, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)


def figure(report: Report) -> Figure | None:
    """Curves over the width; None where no field was cut."""
    fields = [(group.name, group.field) for group in report.groups if group.field]
    if not fields:
        return None
    names = [group.name for group in report.groups]
    rows = [_row(names, name, field, i) for name, field in fields for i in range(len(field.widths))]
    tolerance = fields[0][1].tolerance
    ticks = sorted({width.width for _, field in fields for width in field.widths})
    low = min(row["low"] for row in rows)
    high = max(tolerance, *(row["high"] for row in rows))
    x = widths(ticks, "width to which the group's field is cut (tokens)")
    y = alt.Y(
        "low:Q",
        title="NLL change, last octave (nats per token)",
        # Linear up to the tolerance, logarithmic beyond it.
        scale=alt.Scale(type="symlog", constant=tolerance, nice=False),
        axis=alt.Axis(
            values=[t for t in _TICKS if low <= t <= high], format="~g", labelOverlap=True
        ),
    )
    hover = ["group", "cut to", "last octave", "all positions"]
    tolerated = drawn([{"y": tolerance}]).mark_rule(strokeDash=[4, 3], color=LINE).encode(y="y:Q")
    rings = []
    if effective := [row for row in rows if row["effective"]]:
        ring = drawn(effective).mark_point(filled=False, strokeWidth=2, shape="circle")
        size = alt.Size("ring:Q", scale=None)
        rings = [ring.encode(x=x, y="value:Q", size=size, color=color(names), tooltip=tips(hover))]
    chart = curves(rows, names, x, y, hover, behind=[tolerated], before=rings)
    return Figure(
        name="field",
        title="Receptive field",
        panels=[Panel("widths", "", chart)],
        text="NLL change, in the last octave of the positions, when only this group's field is cut "
        f"to a width w. Ringed: the effective context, the smallest w that costs at most "
        f"{tolerance:g} nats per token there (dashed).",
        tables=[_summary(fields), *(_table(name, field) for name, field in fields)],
        caveats=caveats(report, "field"),
        legend=Legend("group", names),
    )


def _row(names: Sequence[str], name: str, field: Field, place: int) -> dict[str, Any]:
    width = field.widths[place]
    last = width.buckets[-1]
    return {
        "series": name,
        "x": width.width,
        "value": last.delta_nll,
        "low": last.ci95[0],
        "high": last.ci95[1],
        "effective": width.width == field.effective_context,
        "ring": 150
        + 130 * (names.index(name) % 6),  # rings of several groups lie around each other
        "group": name,
        "cut to": f"{width.width:,} tokens",
        "last octave": show.cell(last),
        "all positions": show.cell(width),
    }


def _summary(fields: list[tuple[str, Field]]) -> Table:
    rows = []
    for name, field in fields:
        widest = field.widths[-1].width
        context = field.effective_context
        rows.append([name, f"> {widest:,}" if context is None else f"{context:,}"])
    return Table("Effective context", ["group", "tokens"], rows)


def _table(name: str, field: Field) -> Table:
    spans = [f"{b.start}-{b.end}" for b in field.widths[0].buckets]
    rows = [
        [
            show.position(width.width),
            show.cell(width),
            *map(show.cell, width.buckets),
        ]
        for width in field.widths
    ]
    title = f"{name}: change in nats per token by position (95% interval)"
    return Table(title, ["cut to", "all", *spans], rows)
