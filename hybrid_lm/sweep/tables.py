"""The table of a study for the terminal and as ``sweep.md`` and ``sweep.json``."""

import json
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from hybrid_lm.compare.tables import DETECTABLE, change, difference_table, grid, position_table
from hybrid_lm.files import write_texts
from hybrid_lm.report import _bytes, _markdown_table, _range, _si
from hybrid_lm.sweep.results import GroupRow, LengthTable, PointRow, SweepResults, Unfinished

ALL = "all"
"""In the place of a group's name in the row of the whole model."""


def write(results: SweepResults, directory: Path) -> None:
    """Write ``sweep.json`` and ``sweep.md``; raises `UserError` if they cannot be written."""
    record = json.dumps(results.to_json(), indent=2) + "\n"
    write_texts(directory, {"sweep.json": record, "sweep.md": to_markdown(results)})


def render(results: SweepResults) -> RenderableType:
    """The tables for a terminal: one row per point and group."""
    parts: list[RenderableType] = []
    for table in results.tables:
        parts += [Text(_headline(table)), "", grid(*_rows(results, table), text_columns=3), ""]
        parts += map(Text, _rank_lines(table))
    notes = [
        f"vs {results.baseline}: nats per token, paired by document and seed, ± half of the 95% "
        "interval;",
        "  negative: better",
        "without it: NLL change with the group's mixers skipped, mean over seeds",
    ]
    if results.tables:
        parts += [Text(note, style="dim") for note in notes]
    parts += [Text(line, style="bold") for line in _not_compared(results)]
    parts += [Text(_unfinished(run), style="bold") for run in results.unfinished]
    return Group(*parts)


def to_markdown(results: SweepResults) -> str:
    """All tables, with intervals, caveats and what is not done."""
    lines = [
        "# Sweep",
        "",
        *_markdown_table(
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
    header, rows = _rows(results, table, more=True)
    lines = [f"## {_headline(table)}", "", *_markdown_table(header, rows, text_columns=3), ""]
    differences = [(p.name, p.difference) for p in table.points if p.difference is not None]
    if differences:
        lines += [
            f"Minus `{results.baseline}`, nats per token; negative is better.",
            "",
            *difference_table("point", differences),
            "",
            f"Better in: share of documents; {DETECTABLE}.",
            "",
            *position_table("position", differences),
            "",
        ]
        if table.length > table.training_length:
            lines += [f"Rows of training had {table.training_length:,} tokens.", ""]
    lines += [
        "By seed:",
        "",
        *_markdown_table(
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
        instruments = list(table.swaps[0].cheap)
        lines += [
            "Swaps: what retraining without a group's mixers costs, beside what the baseline's "
            "knock-outs said.",
            "",
            *_markdown_table(
                ["swap", "group", "cost", "95% interval", *instruments],
                [
                    [
                        *(swap.point, swap.group, f"{swap.cost:+.4f}", _range(swap.ci95, "+.4f")),
                        *(f"{swap.cheap[name]:+.4f}" for name in instruments),
                    ]
                    for swap in table.swaps
                ],
                text_columns=2,
            ),
            "",
            *_rank_lines(table),
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


def _rows(
    results: SweepResults, table: LengthTable, *, more: bool = False
) -> tuple[list[str], list[list[str]]]:
    """Header and rows: every point, then its groups; ``more`` has the costs too."""
    header = ["point", "group", "pattern", "params"]
    header += ["FLOPs/token", f"state@{table.length:,}", "tokens/s"] if more else []
    header += ["bits/byte", f"vs {results.baseline}", "without it"]
    rows = []
    for point in table.points:
        rows.append(_point_row(point, more))
        rows += [_group_row(point, group, more) for group in point.groups]
    return header, rows


def _point_row(point: PointRow, more: bool) -> list[str]:
    costs = [_si(point.flops_per_token), _bytes(point.state_bytes), f"{point.tokens_per_s:,.0f}"]
    return [
        *(point.name, ALL, "", _si(point.params)),
        *(costs if more else []),
        f"{point.bits_per_byte:.4f}",
        "" if point.difference is None else change(point.difference),
        "",
    ]


def _group_row(point: PointRow, group: GroupRow, more: bool) -> list[str]:
    costs = [_si(group.flops_per_token), _bytes(group.state_bytes), ""]
    return [
        *(point.name if more else "", group.name),
        *(f"`{group.pattern}`" if more else group.pattern, _si(group.params)),
        *(costs if more else []),
        *("", "", f"{group.knockout_nll:+.4f}"),
    ]


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
    return [*lines, ""] if lines else []


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
