"""What every group contributes, averaged over all orders in which the groups can join."""

import altair as alt

from hybrid_lm.page.axes import color, drawn, layered, tips
from hybrid_lm.page.figure import Figure, Legend, Panel, Table, caveats
from hybrid_lm.page.theme import INK, LINE
from hybrid_lm.report import show
from hybrid_lm.results import Report

_ROW = 34
_ROOM = 44  # px: of the number beside a bar


def figure(report: Report) -> Figure | None:
    """Bars with intervals; None where the values were not computed."""
    total = report.shapley
    values = [(group.name, group.shapley) for group in report.groups if group.shapley]
    if total is None or not values:
        return None
    names = [group.name for group in report.groups]
    rows = [
        {
            "series": name,
            "value": shapley.value,
            "low": shapley.ci95[0],
            "high": shapley.ci95[1],
            "zero": 0,
            "number": f"{shapley.value:+.3f}",
            "group": name,
            "Shapley value": f"{shapley.value:+.4f} nats",
            "95% interval": show.interval(shapley.ci95, "+.4f"),
            "share": f"{shapley.value / total.total:.1%}",
        }
        for name, shapley in values
    ]
    y = alt.Y(
        "series:N",
        title=None,
        scale=alt.Scale(domain=names, padding=0.35),
        axis=alt.Axis(domain=False, ticks=False, labelLimit=110),
    )
    low, high = min(0.0, *(row["low"] for row in rows)), max(row["high"] for row in rows)
    x = alt.X(
        "value:Q",
        title="NLL saved (nats per token)",
        scale=alt.Scale(domain=[low, high], nice=False, padding=_ROOM),
        axis=alt.Axis(tickCount=5),
    )
    base = drawn(rows).encode(y=y)
    hover = tips(["group", "Shapley value", "95% interval", "share"])
    bars = base.mark_bar(opacity=0.75).encode(x=x, color=color(names), tooltip=hover)
    interval = base.mark_rule(strokeWidth=1.5, color=INK).encode(x="low:Q", x2="high:Q")
    numbers = base.mark_text(align="left", dx=6).encode(x="high:Q", text="number:N")
    zero = base.mark_rule(color=LINE).encode(x=alt.datum(0), y=alt.Undefined)
    chart = layered(bars, interval, numbers, zero, height=_ROW * len(names))
    return Figure(
        name="shapley",
        title="Shapley values",
        panels=[Panel("values", "", chart)],
        text=f"With all groups absent the NLL is {total.absent_nll:.4f}; together they save "
        f"{total.total:.4f} nats per token ({show.interval(total.ci95, '.4f')}), the sum of the "
        "bars. Lines: 95% intervals.",
        tables=[
            Table(
                "NLL saved in nats per token",
                ["group", "value", "95% interval", "share"],
                [
                    [row["group"], f"{row['value']:+.4f}", row["95% interval"], row["share"]]
                    for row in rows
                ],
            ),
            Table(
                "By position (95% interval)",
                ["position", *(name for name, _ in values)],
                [
                    [f"{row[0].start}-{row[0].end}", *map(show.cell, row)]
                    for row in zip(*(shapley.buckets for _, shapley in values), strict=True)
                ],
            ),
        ],
        caveats=caveats(report, "shapley"),
        legend=Legend("group", names),
    )
