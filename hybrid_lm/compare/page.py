"""``compare.html``: the comparison in the frame of the report's page (`hybrid_lm.page`)."""

from collections.abc import Callable, Sequence

import altair as alt

from hybrid_lm.compare.position_figure import SCOPE, by_position, differences, point
from hybrid_lm.compare.results import Comparison, RunSummary
from hybrid_lm.compare.tables import (
    DETECTABLE,
    budget_rows,
    difference_columns,
    different_devices,
    protocol,
    run_columns,
)
from hybrid_lm.compare.throughput import LossPoint
from hybrid_lm.page import frame
from hybrid_lm.page.axes import (
    beyond_training,
    color,
    curves,
    drawn,
    layered,
    positions,
    shape,
    tips,
)
from hybrid_lm.page.figure import Block, Figure, Legend, Panel, Protocol, Table
from hybrid_lm.report import show
from hybrid_lm.report.columns import Column
from hybrid_lm.results import Bucket

_AXIS = alt.Axis(format="~s", grid=False, tickCount=5)


def render(comparison: Comparison) -> str:
    """The page of a comparison, HTML."""
    base, columns = comparison.runs[0].name, run_columns(comparison)
    return frame.document(
        f"Comparison with {base}",
        f"{base}: {comparison.runs[0].pattern}",
        headlines=[
            ("runs", str(len(comparison.runs)), ""),
            ("documents", str(comparison.documents), f"of the {comparison.split} split"),
            ("tokens of each", f"{comparison.length:,}", "from its start"),
        ],
        blocks=[
            Block(
                "runs",
                "Runs",
                [_table("Costs are those of one document of the evaluated length", columns)],
                f"Versus {base}: nats per token, paired by document, ± half of the 95% interval; "
                "negative is better. Better in: share of documents.",
            )
        ],
        figures=[_positions(comparison), _differences(comparison), _speed(comparison)],
        board=None,
        protocol=Protocol(
            protocol(comparison),
            None,
            [*comparison.caveats, *different_devices(comparison)],
            [_documents(comparison)],
        ),
    )


def _documents(comparison: Comparison) -> Table:
    places = zip(comparison.document_indices, comparison.document_names, strict=True)
    rows = [[str(index), name] for index, name in places]
    return Table("Documents, by place in the split", ["document", "name"], rows, 2)


def _names(comparison: Comparison) -> list[str]:
    return [run.name for run in comparison.runs]


def _legend(comparison: Comparison) -> Legend:
    return Legend(SCOPE, _names(comparison))


def _table(caption: str, columns: Sequence[Column]) -> Table:
    rows = [list(row) for row in zip(*(column.cells for column in columns), strict=True)]
    texts = sum(column.is_text for column in columns)
    return Table(caption, [column.header for column in columns], rows, texts)


def _positions(comparison: Comparison) -> Figure:
    """NLL of every run by octave."""

    def row(run: RunSummary, bucket: Bucket) -> dict:
        return point(run.name, bucket, bucket.nll, f"{bucket.nll:.4f}")

    names = _names(comparison)
    rows = [row(run, bucket) for run in comparison.runs for bucket in run.buckets]
    x = positions(comparison.length)
    y = alt.Y("low:Q", title="NLL (nats per token)", scale=alt.Scale(zero=False))
    beyond = sorted({n for n in comparison.training_lengths if n < comparison.length})
    chart = curves(
        rows,
        names,
        x,
        y,
        ["series", "position", "value text", "95% interval"],
        behind=[mark for length in beyond for mark in beyond_training(length, x)],
    )
    return Figure(
        name="positions",
        title="Loss by position",
        panels=[Panel("nll", "", chart)],
        text="NLL in octaves of the position, mean over documents with its 95% interval. The bands "
        "are as wide as documents differ: whether two runs do is seen in the differences below.",
        tables=[by_position("NLL in nats per token", rows, names)],
        legend=_legend(comparison),
    )


def _differences(comparison: Comparison) -> Figure:
    """Paired difference of every run to the first, by octave."""
    runs, base = comparison.runs, comparison.runs[0].name
    compared = [(run.name, run.difference) for run in runs if run.difference is not None]
    columns = difference_columns("run", compared)
    table = _table(f"Nats per token; {DETECTABLE}", columns)
    return differences(base, _names(comparison), compared, comparison.length, [table])


def _speed(comparison: Comparison) -> Figure:
    """Training loss against what was spent."""
    panels = [
        ("tokens", "At equal tokens", "tokens trained on", lambda point: point.tokens),
        ("time", "At equal time", "seconds of training", lambda point: point.seconds),
    ]
    drawings = [
        Panel(name, title, _training(comparison, axis, spent))
        for name, title, axis, spent in panels
    ]
    return Figure(
        name="speed",
        title="Loss against tokens and time",
        panels=[*drawings, Panel("throughput", "Throughput", _throughput(comparison))],
        text="Training loss, mean over neighbouring lines of metrics.jsonl; time is that of "
        "training steps, without compilation, checkpoints and evaluations. Last, the loss on "
        "held-out documents, with its 95% interval, against the median speed of training.",
        tables=[
            Table(
                "Training loss in bits per byte, mean over the last tenth of the budget",
                ["after", *_names(comparison)],
                budget_rows(comparison),
            )
        ],
        caveats=comparison.caveats[2:3],
        legend=_legend(comparison),
    )


def _training(
    comparison: Comparison, axis: str, spent: Callable[[LossPoint], float]
) -> alt.LayerChart:
    names = _names(comparison)
    rows = [
        {"series": run.name, "x": spent(point), "value": point.bits_per_byte}
        | {"spent": f"{spent(point):,.4g}", "bits per byte": f"{point.bits_per_byte:.4f}"}
        for run in comparison.runs
        for point in run.training_loss
    ]
    x = alt.X("x:Q", title=axis, axis=_AXIS)
    y = alt.Y("value:Q", title="training loss (bits per byte)", scale=alt.Scale(zero=False))
    base = drawn(rows).encode(x=x, y=y, color=color(names))
    points = base.mark_point(size=16).encode(
        shape=shape(names), tooltip=tips(["series", "spent", "bits per byte"])
    )
    return layered(base.mark_line(), points)


def _throughput(comparison: Comparison) -> alt.LayerChart:
    names = _names(comparison)
    rows = [
        {"series": run.name, "x": run.tokens_per_s, "value": run.bits_per_byte}
        | {"low": run.bits_per_byte_ci95[0], "high": run.bits_per_byte_ci95[1]}
        | {"tokens/s": f"{run.tokens_per_s:,.0f}", "bits per byte": f"{run.bits_per_byte:.4f}"}
        | {"95% interval": show.interval(run.bits_per_byte_ci95)}
        for run in comparison.runs
    ]
    x = alt.X("x:Q", title="tokens trained on per second", axis=_AXIS)
    y = alt.Y("low:Q", title="held-out loss (bits per byte)", scale=alt.Scale(zero=False))
    base = drawn(rows).encode(x=x.scale(zero=False, padding=20), color=color(names))
    bar = base.mark_rule().encode(y=y, y2="high:Q")
    points = base.mark_point(size=80).encode(
        y="value:Q",
        shape=shape(names),
        tooltip=tips(["series", "tokens/s", "bits per byte", "95% interval"]),
    )
    return layered(bar, points)
