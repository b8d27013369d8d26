"""What the loss becomes without a group, by position."""

from collections.abc import Sequence

from hybrid_lm.page.figure import Figure, Legend, Panel, Table, caveats
from hybrid_lm.page.heatmap import TEXT, Cell, heatmap
from hybrid_lm.report import show
from hybrid_lm.results import Control, Knockout, Report

_CAVEAT = (
    "The layers after the group see inputs that they were never trained on: the change bounds no "
    "retrained model."
)

type _Found = Sequence[Knockout | Control | None]


def figure(report: Report) -> Figure:
    """One heat map for each form of knock-out that has run, all in the same colours."""
    groups = report.groups
    forms: list[tuple[str, str, _Found]] = [
        ("skip", "Mixers skipped", [g.knockout for g in groups]),
        ("mean", "Mixers replaced by their mean output", [g.knockout_mean for g in groups]),
        ("control", "Control: random layers of other groups", [g.control for g in groups]),
    ]
    forms = [form for form in forms if any(form[2])]
    names = [group.name for group in groups]
    changes = [b.delta_nll for *_, found in forms for part in found if part for b in part.buckets]
    largest = max(map(abs, changes))
    panels, tables = [], []
    for name, title, found in forms:
        chart = heatmap(
            _cells(names, found),
            rows=names,
            columns=[show.position(bucket.start) for bucket in report.buckets],
            title="positions from (tokens)",
            largest=largest,
        )
        panels.append(Panel(name, title, chart))
        tables += _tables(title, report, names, found)
    text = "Change of the NLL, in nats per token, when one group is knocked out."
    if report.correction:
        text += f" p in the tables and on hovering: {report.correction}."
    return Figure(
        name="knockout",
        title="Without a group, by position",
        panels=panels,
        text=f"{text} {TEXT}",
        tables=tables,
        caveats=[_CAVEAT, *caveats(report, "knockout")],
        legend=Legend("group", names),
    )


def _cells(names: Sequence[str], found: _Found) -> list[Cell]:
    return [
        Cell(
            series=group,
            row=group,
            column=show.position(bucket.start),
            delta=bucket.delta_nll,
            ci95=bucket.ci95,
            names={"group": group, "position": f"{bucket.start}-{bucket.end}"}
            | ({"adjusted p": p} if (p := _p(part, i)) else {}),
        )
        for group, part in zip(names, found, strict=True)
        if part is not None
        for i, bucket in enumerate(part.buckets)
    ]


def _tables(title: str, report: Report, names: Sequence[str], found: _Found) -> list[Table]:
    """Changes, and adjusted p values where there are any."""
    known = [(name, part) for name, part in zip(names, found, strict=True) if part is not None]
    header = ["position", *(f"without {name}" for name, _ in known)]
    changes = [
        [show.cell(part.buckets[i]) for _, part in known] for i in range(len(report.buckets))
    ]
    p = [[_p(part, i) for _, part in known] for i in range(len(report.buckets))]
    spans = [f"{bucket.start}-{bucket.end}" for bucket in report.buckets]
    total = [show.cell(part) for _, part in known]
    tables = [
        Table(
            f"{title}: change in nats per token (95% interval)",
            header,
            [["all", *total], *([span, *row] for span, row in zip(spans, changes, strict=True))],
        )
    ]
    if any(map(any, p)):
        rows = [[span, *row] for span, row in zip(spans, p, strict=True)]
        tables.append(Table(f"{title}: adjusted p", header, rows))
    return tables


def _p(part: Knockout | Control, place: int) -> str:
    """The adjusted p value of a cell, where there is one."""
    if isinstance(part, Control) or not part.adjusted_p:
        return ""
    return show.p_value(part.adjusted_p[place])
