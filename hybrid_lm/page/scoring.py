"""The same documents scored in several ways, and beyond the length of training."""

import altair as alt

from hybrid_lm.page.axes import beyond_training, curves, middle, positions
from hybrid_lm.page.figure import Figure, Legend, Panel, Table, caveats
from hybrid_lm.report import show
from hybrid_lm.results import Report, Scoring


def figure(report: Report) -> Figure | None:
    """A curve for the longest scoring in each mode; None where no mode but full was scored."""
    if not report.scoring:
        return None
    longest: dict[str, Scoring] = {}
    for scoring in sorted(report.scoring, key=lambda scoring: scoring.length):
        longest[scoring.mode] = scoring
    rows = [
        {
            "series": mode,
            "x": middle(bucket.start, bucket.end),
            "value": bucket.nll,
            "low": bucket.ci95[0],
            "high": bucket.ci95[1],
            "mode": mode,
            "position": f"{bucket.start}-{bucket.end}",
            "NLL": f"{bucket.nll:.4f}",
            "95% interval": show.interval(bucket.ci95),
        }
        for mode, scoring in longest.items()
        for bucket in scoring.buckets
    ]
    length = max(scoring.length for scoring in longest.values())
    x = positions(length)
    y = alt.Y("low:Q", title="NLL (nats per token)", scale=alt.Scale(zero=False))
    behind = beyond_training(report.training_length, x) if length > report.training_length else []
    hover = ["mode", "position", "NLL", "95% interval"]
    chart = curves(rows, list(longest), x, y, hover, behind=behind)
    return Figure(
        name="scoring",
        title="Scoring modes and lengths",
        panels=[Panel("nll", "", chart)],
        text="full: one pass over the document. sliding: windows moved by a quarter, the last "
        "quarter scored. streaming: in pieces, the state carried on, attention limited to the "
        "window.",
        tables=[_table(report)],
        caveats=caveats(report, "scoring"),
        legend=Legend("mode", list(longest)),
    )


def _table(report: Report) -> Table:
    header = ["mode", "length", "window", "documents", "NLL (nats)", "minus full", "bits per byte"]
    rows = [
        [
            *(s.mode, f"{s.length:,}", f"{s.window:,}" if s.window else "–", f"{s.documents}"),
            f"{s.nll:.4f} ({show.interval(s.ci95)})",
            f"{s.delta_nll:+.4f} ({show.interval(s.delta_ci95, '+.4f')})",
            f"{s.bits_per_byte:.4f} ({show.interval(s.bits_per_byte_ci95)})",
        ]
        for s in report.scoring
    ]
    return Table("By mode and length (95% interval)", header, rows)
