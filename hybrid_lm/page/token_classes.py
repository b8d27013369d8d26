"""The loss, and what each group does about it, by the kind of token that is predicted."""

import altair as alt

from hybrid_lm.page.axes import drawn, layered, tips
from hybrid_lm.page.figure import Figure, Legend, Panel, Table, caveats
from hybrid_lm.page.heatmap import TEXT, Cell, heatmap
from hybrid_lm.page.theme import INK
from hybrid_lm.report import show
from hybrid_lm.results import Report

_ROW = 26


def figure(report: Report) -> Figure | None:
    """A matrix kind x group under the loss of each kind; None where tokens were not classed."""
    classes = report.token_classes
    if not classes:
        return None
    names = [group.name for group in report.groups]
    kinds = [kind.name for kind in classes]
    cells = [
        Cell(
            series=group.name,
            row=kind.name,
            column=group.name,
            delta=group.delta_nll,
            ci95=group.ci95,
            names={"without": group.name, "tokens that are": kind.name}
            | ({"adjusted p": p} if (p := show.p_value(group.adjusted_p)) else {}),
        )
        for kind in classes
        for group in kind.groups
    ]
    matrix = heatmap(
        cells,
        rows=kinds,
        columns=names,
        title="without the group",
        largest=max(abs(cell.delta) for cell in cells),
    )
    rows = [
        {
            "kind": kind.name,
            "value": kind.nll,
            "low": kind.ci95[0],
            "high": kind.ci95[1],
            "definition": kind.definition,
            "NLL": f"{kind.nll:.4f}",
            "95% interval": show.interval(kind.ci95),
            "tokens": f"{kind.tokens:,}",
            "documents": f"{kind.documents}",
        }
        for kind in classes
    ]
    y = alt.Y(
        "kind:N",
        title=None,
        scale=alt.Scale(domain=kinds, padding=0.5),
        axis=alt.Axis(domain=False, ticks=False, labelLimit=150, grid=True),
    )
    x = alt.X(
        "low:Q",
        title="NLL (nats per token)",
        scale=alt.Scale(zero=False, padding=8),
        axis=alt.Axis(tickCount=5),
    )
    base = drawn(rows).encode(y=y)
    interval = base.mark_rule(strokeWidth=1.5, color=INK).encode(x=x, x2="high:Q")
    hover = tips(["kind", "definition", "NLL", "95% interval", "tokens", "documents"])
    points = base.mark_point(color=INK).encode(x="value:Q", tooltip=hover)
    losses = layered(interval, points, height=_ROW * len(kinds))
    return Figure(
        name="token-classes",
        title="By kind of token",
        panels=[
            Panel("without", "Change without a group", matrix),
            Panel("nll", "Loss of the whole model", losses),
        ],
        text=f"Kinds are those of the predicted token. {TEXT}",
        tables=[
            Table(
                "NLL in nats per token (95% interval)",
                ["kind", "definition", "tokens", "documents", "NLL"]
                + [f"without {name}" for name in names],
                [
                    [kind.name, kind.definition, f"{kind.tokens:,}", f"{kind.documents}"]
                    + [f"{kind.nll:.4f} ({show.interval(kind.ci95)})"]
                    + [show.cell(g) for g in kind.groups]
                    for kind in classes
                ],
                text_columns=2,
            ),
            *_p_table(report),
        ],
        caveats=caveats(report, "token_classes"),
        legend=Legend("group", names),
    )


def _p_table(report: Report) -> list[Table]:
    """Adjusted p values, of a report that has them."""
    rows = [
        [kind.name, *(show.p_value(group.adjusted_p) for group in kind.groups)]
        for kind in report.token_classes
    ]
    if not any(p for _, *of_groups in rows for p in of_groups):
        return []
    header = ["kind", *(f"without {group.name}" for group in report.groups)]
    return [Table("Without a group: adjusted p", header, rows)]
