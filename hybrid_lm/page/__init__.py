"""``report.html``: the report as one file that opens from disk, without a network.

Charts are Vega-Lite, written with Altair. Of the libraries that draw in a file of their own, its
script is the smallest (0.9 MB; Bokeh 3.10's is 1.4 MB, Plotly 7.1's 4.8 MB), its charts are SVG, so
that type stays sharp on paper and colours follow the page's style sheet into dark mode, and the
same specification becomes an image without a browser (TensorBoard's).

All of this is imported only where a page is made.
"""

from hybrid_lm.page import (
    exits,
    field,
    frame,
    images,
    knockout,
    positions,
    scoring,
    shapley,
    token_classes,
)
from hybrid_lm.page.figure import Block, Figure, Table
from hybrid_lm.page.mixers import board
from hybrid_lm.page.protocol import protocol
from hybrid_lm.report import show
from hybrid_lm.results import Report

_FIGURES = (positions, knockout, field, exits, shapley, token_classes, scoring)


def figures(report: Report) -> list[Figure]:
    """Of what has run."""
    found = [module.figure(report) for module in _FIGURES]
    return [figure for figure in found if figure is not None]


def pngs(report: Report) -> dict[str, bytes]:
    """One image per figure, by name, e.g. ``figure/knockout``."""
    return {f"figure/{figure.name}": images.png(figure) for figure in figures(report)}


def render(report: Report) -> str:
    """The page of a report, HTML."""
    return frame.document(
        f"Evaluation at step {report.step:,}",
        "; ".join(f"{group.name}: {group.pattern}" for group in report.groups),
        headlines=_headlines(report),
        blocks=[Block("groups", "Layer groups", [_groups(report)], _GROUPS)],
        figures=figures(report),
        board=board(report),
        protocol=protocol(report),
    )


_GROUPS = (
    "Exit ppl: perplexity read off the residual stream that leaves the group. Without it: change "
    "of the NLL in nats per token when the group's mixers are skipped, ± half of the 95% interval. "
    "Helps in: share of documents whose NLL rises. Detectable: the smallest change that such a set "
    "of documents shows in 4 of 5 cases."
)


def _headlines(report: Report) -> list[tuple[str, str, str]]:
    """What is measured, the number, its interval."""
    return [
        ("perplexity", show.perplexity(report.perplexity), show.interval(report.perplexity_ci95)),
        ("bits per byte", f"{report.bits_per_byte:.4f}", show.interval(report.bits_per_byte_ci95)),
        ("nats per token", f"{report.nll:.4f}", show.interval(report.nll_ci95)),
        ("documents", f"{report.documents}", f"of the {report.split} split"),
        ("tokens", f"{report.tokens:,}", f"{report.length:,} of each document"),
    ]


def _groups(report: Report) -> Table:
    state = f"state@{show.position(report.length)}"
    header = ["group", "pattern", "layers", "params", "FLOPs/token", state, "exit ppl"]
    header += ["without it (nats)", "helps in", "detectable"]
    rows = []
    for g in report.groups:
        found = g.knockout
        row = [g.name, g.pattern, str(g.layers), show.count(g.params)]
        row += [show.count(g.flops_per_token), show.memory(g.state_bytes)]
        row += [show.perplexity(g.exit_perplexity), show.change(found)]
        row += [f"{found.win_rate:.0%}", f"{found.minimum_detectable_effect:.4f}"]
        rows.append(row)
    return Table("Costs are those of one document of the evaluated length", header, rows, 2)
