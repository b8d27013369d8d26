"""The table of a study for the terminal, and its files: ``sweep.md``, ``sweep.json``, figures."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from hybrid_lm.compare.difference import Difference
from hybrid_lm.compare.tables import DETECTABLE, change, difference_columns, position_table
from hybrid_lm.compare.terminal import Page, notes
from hybrid_lm.files import write_files
from hybrid_lm.report import show
from hybrid_lm.report.columns import Column, markdown_of, markdown_table
from hybrid_lm.sweep.results import GroupRow, LengthTable, PointRow, SweepResults, Unfinished

ALL = "all"
"""In the place of a group's name in the row of the whole model."""


def write(results: SweepResults, directory: Path) -> None:
    """Write ``sweep.json``, ``sweep.md`` and its figures.

    Raises:
        UserError: if they cannot be written.
    """
    from hybrid_lm.sweep.figure import differences_png

    record = json.dumps(results.to_json(), indent=2) + "\n"
    figures = {
        _figure_name(table): differences_png(results.baseline, table)
        for table in results.tables
        if _compared(table)
    }
    texts = {"sweep.json": record, "sweep.md": to_markdown(results)}
    write_files(directory, texts | figures)


def render(results: SweepResults) -> RenderableType:
    """The tables for a terminal: one row per point and group."""
    parts: list[Text | Sequence[Column]] = []
    for table in results.tables:
        parts += [Text(_headline(table)), Text(), _columns(results, table)]
        parts += [*map(Text, _rank_lines(table)), Text()] if table.swaps else []
    if results.tables:
        parts += notes(
            f"vs {results.baseline}: nats per token, paired by document and seed; less is better;",
            "  ± half of the 95% interval: other documents and, with several seeds, other seeds",
            "without it: NLL change with the group's mixers skipped, mean over seeds",
        )
    unfinished = [*_not_compared(results), *map(_unfinished, results.unfinished)]
    return Page([*parts, *(Text(line, style="bold") for line in unfinished)], "sweep.md")


def to_markdown(results: SweepResults) -> str:
    """All tables, with intervals, caveats and what is not done."""
    lines = [
        "# Sweep",
        "",
        *markdown_table(
            ["point", "pattern"],
            [[name, f"`{pattern}`"] for name, pattern in results.points.items()],
            text_columns=2,
        ),
        "",
        f"Seeds {', '.join(map(str, results.seeds))}; baseline `{results.baseline}`.",
        "",
    ]
    for table in results.tables:
        lines += _length_section(results, table)
    unfinished = [*_not_compared(results), *map(_unfinished, results.unfinished)]
    if unfinished:
        lines += ["## Not finished", "", *(f"- {line}" for line in unfinished), ""]
    lines += ["## Caveats", "", *(f"- {caveat}" for caveat in results.caveats), ""]
    return "\n".join(lines)


def _length_section(results: SweepResults, table: LengthTable) -> list[str]:
    lines = [f"## {_headline(table)}", "", *markdown_of(_columns(results, table)), ""]
    differences = _compared(table)
    if differences:
        lines += [
            f"Minus `{results.baseline}`, nats per token; negative is better.",
            "",
            *markdown_of(difference_columns("point", differences)),
            "",
            f"Better in: share of documents; {DETECTABLE}.",
            "",
            *position_table("position", differences),
            "",
            f"![Difference to {results.baseline} by position]({_figure_name(table)})",
            "",
        ]
        if table.length > table.training_length:
            lines += [f"Rows of training had {table.training_length:,} tokens.", ""]
    lines += [
        "By seed:",
        "",
        *markdown_table(
            ["point", "seed", "NLL", "bits per byte"],
            [
                [point.name, str(seed), f"{nll:.4f}", f"{bits:.4f}"]
                for point in table.points
                for seed, nll, bits in zip(
                    point.seeds, point.nll_by_seed, point.bits_per_byte_by_seed, strict=True
                )
            ],
        ),
        "",
    ]
    if table.swaps:
        lines += [
            "Swaps: what retraining without a group's mixers costs, beside what was measured of "
            "the group in the baseline.",
            "",
            *markdown_of(_swap_columns(table)),
            "",
            *(f"- {line}" for line in _rank_lines(table)),
            "",
        ]
    corpus = table.corpus
    return [
        *lines,
        f"Corpus `{corpus['source']}`, tokens of the split {corpus['split_sha256'][:16]}; "
        f"tokenizer {corpus['tokenizer']}, {corpus['tokenizer_sha256'][:16]}. Intervals: 95%, of "
        f"one seed {table.interval_method} over documents, of several a hierarchical bootstrap "
        f"over seeds and documents ({table.resamples:,} resamples).",
        "",
    ]


def _compared(table: LengthTable) -> list[tuple[str, Difference]]:
    return [(p.name, p.difference) for p in table.points if p.difference is not None]


def _figure_name(table: LengthTable) -> str:
    return f"sweep-length{table.length}.png"


def _swap_columns(table: LengthTable) -> list[Column]:
    swaps = table.swaps
    return [
        Column("swap", [swap.point for swap in swaps], is_text=True),
        Column("group", [swap.group for swap in swaps], is_text=True),
        Column("cost", [f"{swap.cost:+.4f}" for swap in swaps]),
        Column("95% interval", [show.interval(swap.ci95, "+.4f") for swap in swaps]),
        *(
            Column(instrument, [f"{swap.cheap[instrument]:+.4f}" for swap in swaps])
            for instrument in swaps[0].cheap
        ),
    ]


def _columns(results: SweepResults, table: LengthTable) -> list[Column]:
    """Every point, then its groups, with what it cost."""
    rows = [
        row
        for point in table.points
        for row in (_point_row(point), *(_group_row(point, group) for group in point.groups))
    ]
    point, group, pattern, params, flops, state, speed, bits, versus, without = map(
        list, zip(*rows, strict=True)
    )
    return [
        Column("point", point, is_text=True),
        Column("group", group, is_text=True),
        Column("pattern", pattern, is_text=True, sacrifice=5, folds=True),
        Column("params", params, sacrifice=4),
        Column("FLOPs\nper token", flops, sacrifice=2),
        Column(f"state\n@{show.position(table.length)}", state, sacrifice=1),
        Column("tokens/s", speed, sacrifice=3),
        Column("bits\nper byte", bits),
        Column(f"vs\n{results.baseline}", versus),
        Column("without it\n(nats)", without),
    ]


def _point_row(point: PointRow) -> tuple[str, ...]:
    return (
        *(point.name, ALL, "", show.count(point.params), show.count(point.flops_per_token)),
        *(show.memory(point.state_bytes), f"{point.tokens_per_s:,.0f}"),
        *(f"{point.bits_per_byte:.4f}", change(point.difference), ""),
    )


def _group_row(point: PointRow, group: GroupRow) -> tuple[str, ...]:
    return (
        *(point.name, group.name, group.pattern, show.count(group.params)),
        *(show.count(group.flops_per_token), show.memory(group.state_bytes), ""),
        *("", "", f"{group.knockout_nll:+.4f}"),
    )


def _headline(table: LengthTable) -> str:
    beyond = "" if table.length <= table.training_length else " (beyond training)"
    return f"{table.split} · {table.documents} documents of {table.length:,} tokens{beyond}"


def _rank_lines(table: LengthTable) -> list[str]:
    lines = [
        f"rank correlation of {found.instrument} and the cost of the swap: "
        f"{found.rho:+.2f} over {found.swaps} swaps (p = {found.p_value:.2g})"
        for found in table.rank_correlations
    ]
    if table.swaps and not lines:
        lines = [f"no rank correlation: {len(table.swaps)} swap(s), or no order among them"]
    return lines


def _not_compared(results: SweepResults) -> list[str]:
    return [
        f"{point.name} at {table.length:,} tokens is not compared: {point.not_compared}"
        for table in results.tables
        for point in table.points
        if point.not_compared is not None
    ]


def _unfinished(run: Unfinished) -> str:
    where = f"{run.name}: step {run.step:,} of {run.steps:,}"
    return where if run.error is None else f"{where}, failed: {run.error}"
