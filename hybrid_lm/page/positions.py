"""The model's NLL by position in the document."""

import altair as alt

from hybrid_lm.page.axes import beyond_training, curves, middle, positions
from hybrid_lm.page.figure import Figure, Panel, Table
from hybrid_lm.report import show
from hybrid_lm.results import Report

_CAVEAT = (
    "Every position holds the same documents, so the curve is not one of long against short "
    "documents; neighbouring octaves still differ in what the documents say there."
)


def figure(report: Report) -> Figure:
    """One curve with a band: mean over documents, 95% interval."""
    cells = [
        (
            f"{b.start}-{b.end}{'*' if b.beyond_training else ''}",
            f"{b.nll:.4f}",
            show.interval(b.ci95),
        )
        for b in report.buckets
    ]
    rows = [
        {"series": "model", "x": middle(b.start, b.end), "value": b.nll}
        | {"low": b.ci95[0], "high": b.ci95[1]}
        | {"position": position, "NLL": nll, "95% interval": interval}
        for b, (position, nll, interval) in zip(report.buckets, cells, strict=True)
    ]
    x = positions(report.length)
    y = alt.Y("low:Q", title="NLL (nats per token)", scale=alt.Scale(zero=False))
    behind = []
    text = (
        "NLL of the model in octaves of the position, mean over documents with its 95% interval. "
        "The lower it falls towards the right, the more the model makes of a long context."
    )
    if report.length > report.training_length:
        behind = beyond_training(report.training_length, x)
        text += f" *: beyond the {report.training_length:,} tokens of a training row."
    chart = curves(rows, ["model"], x, y, ["position", "NLL", "95% interval"], behind=behind)
    return Figure(
        name="positions",
        title="Loss by position",
        panels=[Panel("nll", "", chart)],
        text=text,
        tables=[Table("NLL in nats per token", ["position", "NLL", "95% interval"], cells)],
        caveats=[_CAVEAT],
    )
