"""What can be decoded from the residual stream as it leaves each group."""

import math
from itertools import pairwise

import altair as alt

from hybrid_lm.page.axes import color, drawn, labelled, layered, shape, tips
from hybrid_lm.page.figure import Figure, Legend, Panel, Table, caveats
from hybrid_lm.report import show
from hybrid_lm.results import Report

_LOGIT, _TUNED, _ENTRY = "logit lens", "tuned lens", "embedding"
_CAVEAT = (
    "An exit measures what can be decoded there, not what the group causes: a group may write what "
    "only later groups read. The logit lens reads every exit with an unembedding trained for the "
    "last one."
)

type _Stairs = dict[str, list[tuple[str, float]]]


def figure(report: Report) -> Figure:
    """A staircase for each lens, from the embedding (where it was read) to the last exit."""
    stairs = _stairs(report)
    rows = [
        {
            "series": lens,
            "place": place,
            "nll": nll,
            "before": steps[i - 1][1] if i else None,
            "number": show.perplexity(math.exp(nll)),
            "lens": lens,
            "after": place,
            "NLL": f"{nll:.4f}",
            "perplexity": show.perplexity(math.exp(nll)),
            "gain": f"{steps[i - 1][1] - nll:+.4f} nats" if i else "–",
        }
        for lens, steps in stairs.items()
        for i, (place, nll) in enumerate(steps)
    ]
    names = list(stairs)
    places = [place for place, _ in max(stairs.values(), key=len)]
    x = alt.X(
        "place:N",
        title="residual stream after",
        scale=alt.Scale(domain=places, padding=0),
        axis=labelled(places),
    )
    # Room for the numbers above and below the steps.
    nlls = [row["nll"] for row in rows]
    margin = 0.1 * (max(nlls) - min(nlls)) or 0.1
    y = alt.Y(
        "nll:Q",
        title="NLL (nats per token)",
        scale=alt.Scale(domain=[min(nlls) - margin, max(nlls) + margin], nice=False),
    )
    base = drawn(rows).encode(color=color(names))
    edge = alt.X2("place:N", bandPosition=1)
    tread = base.mark_rule(strokeWidth=2.5).encode(x=x.bandPosition(0), x2=edge, y=y)
    riser = base.transform_filter("isValid(datum.before)").mark_rule(
        strokeWidth=1, strokeDash=[2, 2]
    )
    riser = riser.encode(x=x.bandPosition(0), y=y, y2="before:Q")
    x = x.bandPosition(0.5)
    point = base.mark_point().encode(x=x, y=y, shape=shape(names), tooltip=tips(_HOVER))
    layers = [riser, tread, point]
    for lens, dy in zip(names, (-11, 13), strict=False):
        words = base.transform_filter(alt.datum.series == lens).mark_text(dy=dy)
        layers.append(words.encode(x=x, y=y, text="number:N"))
    chart = layered(*layers)
    return Figure(
        name="exits",
        title="Exit of every group",
        panels=[Panel("staircase", "", chart)],
        text="NLL of the final norm and unembedding on the residual stream that leaves a group; "
        "the numbers are perplexities. The gains, from step to step, add up to the whole way down.",
        tables=[_table(stairs), *_by_position(report)],
        caveats=[_CAVEAT, *caveats(report, "lens")],
        legend=Legend("lens", names),
    )


_HOVER = ("lens", "after", "NLL", "perplexity", "gain")


def _stairs(report: Report) -> _Stairs:
    """(place, NLL) from the embedding on, where it is known, by lens."""
    stairs: _Stairs = {_LOGIT: [(g.name, g.exit_nll) for g in report.groups]}
    tuned = [(g.name, g.lens.exit_nll) for g in report.groups if g.lens]
    if tuned:
        stairs[_TUNED] = tuned
    for lens, entry in ((_LOGIT, report.entry_nll), (_TUNED, report.lens_entry_nll)):
        if lens in stairs and entry is not None:
            stairs[lens].insert(0, (_ENTRY, entry))
    return stairs


def _table(stairs: _Stairs) -> Table:
    rows = []
    for lens, steps in stairs.items():
        gains = ["–", *(f"{before - after:+.4f}" for (_, before), (_, after) in pairwise(steps))]
        for (place, nll), gain in zip(steps, gains, strict=True):
            rows.append([lens, place, f"{nll:.4f}", show.perplexity(math.exp(nll)), gain])
    header = ["lens", "after", "NLL", "perplexity", "gain (nats)"]
    return Table("NLL in nats per token", header, rows, text_columns=2)


def _by_position(report: Report) -> list[Table]:
    found = {_LOGIT: [group.exit_buckets for group in report.groups]}
    tuned = [group.lens.exit_buckets for group in report.groups if group.lens]
    if tuned:
        found[_TUNED] = tuned
    header = ["position", *(f"exit of {group.name}" for group in report.groups)]
    return [
        Table(
            f"{lens}: NLL by position",
            header,
            [
                [f"{row[0].start}-{row[0].end}", *(f"{bucket.nll:.4f}" for bucket in row)]
                for row in zip(*groups, strict=True)
            ],
        )
        for lens, groups in found.items()
    ]
