"""What every instrument found, as one table each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from hybrid_lm.report import show
from hybrid_lm.report.columns import Column
from hybrid_lm.results import Instrument, Report


class Section(NamedTuple):
    """One instrument's table."""

    title: str
    columns: Sequence[Column]
    instrument: Instrument


def sections(report: Report) -> list[Section]:
    """Of the instruments that have run and have a table, in the order they ran."""
    return [
        Section(title, of_report(report), instrument)
        for instrument in report.instruments
        if instrument.name in _TABLES
        for title, of_report in [_TABLES[instrument.name]]
    ]


def _causality(report: Report) -> list[Column]:
    found = report.causality.groups if report.causality else ()
    return [
        Column("group", [group.name for group in found], is_text=True),
        Column("change before", [f"{group.before:.3g}" for group in found]),
        Column("change after", [f"{group.after:.3g}" for group in found]),
    ]


def _knockout(report: Report) -> list[Column]:
    groups = report.groups
    return [
        _names(report),
        Column("skipped", [show.change(g.knockout) for g in groups]),
        Column("mean-ablated", [show.change(g.knockout_mean) for g in groups], sacrifice=3),
        Column("random layers\nskipped", [show.change(g.control) for g in groups], sacrifice=2),
        Column(
            "layers x\ndraws",
            [f"{g.control.layers} x {len(g.control.draws)}" if g.control else "–" for g in groups],
            sacrifice=1,
        ),
    ]


def _field(report: Report) -> list[Column]:
    """Costs in the last octave, where the effective context is read off."""
    fields = [group.field for group in report.groups]
    widths = sorted({cut.width for field in fields if field for cut in field.widths})
    columns = [_names(report)]
    for i, width in enumerate(widths):
        cells = [
            next((f"{c.buckets[-1].delta_nll:+.4f}" for c in field.widths if c.width == width), "–")
            if field
            else "–"
            for field in fields
        ]
        columns.append(Column(f"cut to\n{show.position(width)}", cells, sacrifice=i))
    reach = [
        "–"
        if field is None
        else f"> {show.position(field.widths[-1].width)}"
        if field.effective_context is None
        else show.position(field.effective_context)
        for field in fields
    ]
    return [*columns, Column("effective\ncontext", reach)]


def _shapley(report: Report) -> list[Column]:
    total = report.shapley.total if report.shapley else 0.0
    found = [(group.name, group.shapley) for group in report.groups if group.shapley]
    shares = [f"{value.value / total:.1%}" if total else "–" for _, value in found]
    changes = [show.difference(value.value, value.ci95) for _, value in found]
    if report.shapley:
        changes.append(show.difference(total, report.shapley.ci95))
    return [
        Column("group", [*(name for name, _ in found), "all"], is_text=True),
        Column("value (nats)", changes),
        Column("share", [*shares, "100.0%"]),
    ]


def _lens(report: Report) -> list[Column]:
    lenses = [group.lens for group in report.groups]
    exits = [group.exit_nll for group in report.groups]
    return [
        Column("exit of", [group.name for group in report.groups], is_text=True),
        Column("logit lens\nNLL", [f"{nll:.4f}" for nll in exits]),
        Column("gain", [_signed(group.exit_gain) for group in report.groups], sacrifice=1),
        Column("tuned lens\nNLL", [f"{lens.exit_nll:.4f}" if lens else "–" for lens in lenses]),
        Column("tuned\ngain", [_signed(lens.gain if lens else None) for lens in lenses]),
    ]


def _token_classes(report: Report) -> list[Column]:
    classes = report.token_classes
    return [
        Column("predicted token", [kind.name for kind in classes], is_text=True),
        Column("tokens", [f"{kind.tokens:,}" for kind in classes], sacrifice=0),
        Column("NLL", [f"{kind.nll:.3f}" for kind in classes], sacrifice=len(report.groups) + 1),
        *(
            Column(
                f"without\n{group.name}",
                [show.change(kind.groups[g]) for kind in classes],
                sacrifice=len(report.groups) - g,
            )
            for g, group in enumerate(report.groups)
        ),
    ]


def _scoring(report: Report) -> list[Column]:
    scores = report.scoring
    return [
        Column("mode", [score.mode for score in scores], is_text=True),
        Column("length", [show.position(score.length) for score in scores]),
        Column("NLL", [f"{score.nll:.4f}" for score in scores]),
        Column("bits per byte", [f"{score.bits_per_byte:.4f}" for score in scores], sacrifice=0),
        Column(
            "minus full",
            [
                show.difference(score.delta_nll, score.delta_ci95, digits=4)
                if score.mode != "full"
                else "–"
                for score in scores
            ],
        ),
    ]


_TABLES: dict[str, tuple[str, Callable[[Report], list[Column]]]] = {
    "causality": ("Later tokens drawn anew: change of exits before and after", _causality),
    "knockout": ("Knock-outs and their control (nats)", _knockout),
    "field": ("Receptive field cut, nats in the last octave", _field),
    "shapley": ("Shapley values", _shapley),
    "token_classes": ("By token class", _token_classes),
    "scoring": ("Scoring modes", _scoring),
    "lens": ("What can be decoded at the exits", _lens),
}


def _names(report: Report) -> Column:
    return Column("group", [group.name for group in report.groups], is_text=True)


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"
