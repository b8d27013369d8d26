"""A comparison for the terminal and as ``compare.md``, ``compare.json`` and ``compare.html``."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import RenderableType
from rich.text import Text

from hybrid_lm.compare.difference import RESAMPLES, Difference
from hybrid_lm.compare.results import Comparison, RunSummary
from hybrid_lm.compare.terminal import Page, notes
from hybrid_lm.files import write_files
from hybrid_lm.report import show
from hybrid_lm.report.columns import Column, markdown_of, markdown_table

DETECTABLE = (
    "detectable: the smallest difference that such a set of documents and seeds shows in 4 of 5 "
    "cases"
)


def write(comparison: Comparison, directory: Path) -> None:
    """Write ``compare.json``, ``.md`` and ``.html``; raises `UserError` if they cannot be."""
    from hybrid_lm.compare import page

    texts = {
        "compare.json": json.dumps(comparison.to_json(), indent=2) + "\n",
        "compare.md": to_markdown(comparison),
        "compare.html": page.render(comparison),
    }
    write_files(directory, texts)


def render(comparison: Comparison) -> RenderableType:
    """The tables for a terminal."""
    base = comparison.runs[0].name
    lines = notes(
        f"vs {base}: nats per token, paired by document, ± half of the 95% interval;",
        "  negative: better",
        "better in: share of documents; by position: NLL in nats per token",
        "training loss: bits per byte at equal tokens and at equal time",
        *different_devices(comparison),
    )
    columns = [_runs(comparison), _positions(comparison), _training(comparison)]
    return Page([Text(_headline(comparison)), Text(), *columns, *lines], "compare.md")


def to_markdown(comparison: Comparison) -> str:
    """All tables, with intervals, caveats and protocol."""
    base, *others = comparison.runs
    differences = [(run.name, run.difference) for run in others if run.difference is not None]
    lines = [
        "# Comparison of runs",
        "",
        _headline(comparison) + ".",
        "",
        *markdown_of(run_columns(comparison)),
        "",
        f"## Differences to {base.name}",
        "",
        "NLL in nats per token, paired by document; negative is better.",
        "",
        *markdown_of(difference_columns("run", differences)),
        "",
        f"Better in: share of documents; {DETECTABLE}.",
        "",
        "## By position",
        "",
        *markdown_of(_all_positions(comparison)),
        "",
        *position_table(f"minus {base.name}", differences),
        "",
        "## At equal tokens and at equal time",
        "",
        "Training loss in bits per byte, mean over the last tenth of the budget.",
        "",
        *markdown_table(["after", *_names(comparison)], budget_rows(comparison)),
        "",
        "## Caveats",
        "",
        *(f"- {caveat}" for caveat in (*comparison.caveats, *different_devices(comparison))),
        "",
        "## Protocol",
        "",
        *(f"- {term}: {text}" for term, text in protocol(comparison)),
        "",
    ]
    return "\n".join(lines)


def change(difference: Difference | None) -> str:
    """The difference and half of its interval; a dash where there is none."""
    if difference is None:
        return "–"
    return show.difference(difference.delta_nll, difference.ci95, digits=4)


def run_columns(comparison: Comparison) -> list[Column]:
    """One row per run, with all that it cost."""
    runs = comparison.runs
    return [
        Column("run", [run.name for run in runs], is_text=True),
        Column("pattern", [run.pattern for run in runs], is_text=True),
        Column("params", [show.count(run.params) for run in runs]),
        Column("FLOPs/token", [show.count(run.flops_per_token) for run in runs]),
        Column("state", [show.memory(run.state_bytes) for run in runs]),
        Column("tokens", [show.count(run.trained_tokens) for run in runs]),
        Column("training", [_seconds(run.train_seconds) for run in runs]),
        Column("tokens/s", [f"{run.tokens_per_s:,.0f}" for run in runs]),
        Column("MFU", [f"{run.mfu:.1%}" for run in runs]),
        Column("bits per byte", [f"{run.bits_per_byte:.4f}" for run in runs]),
        Column("95% interval", [show.interval(run.bits_per_byte_ci95) for run in runs]),
        *_versus(comparison),
    ]


def difference_columns(what: str, differences: Sequence[tuple[str, Difference]]) -> list[Column]:
    """One row per difference."""
    found = [difference for _, difference in differences]
    return [
        Column(what, [name for name, _ in differences], is_text=True),
        Column("difference", [f"{d.delta_nll:+.4f}" for d in found]),
        Column("95% interval", [show.interval(d.ci95, "+.4f") for d in found]),
        Column("better in", [f"{d.win_rate:.0%}" for d in found]),
        Column("detectable", [f"{d.minimum_detectable_effect:.4f}" for d in found]),
        Column("documents", [str(d.documents) for d in found]),
        Column("seeds", [str(d.seeds) for d in found]),
    ]


def position_table(what: str, differences: Sequence[tuple[str, Difference]]) -> list[str]:
    """Markdown: one row per octave, one column per difference."""
    spans = [f"{bucket.start}-{bucket.end}" for bucket in differences[0][1].buckets]
    columns = [Column(name, [show.cell(b) for b in d.buckets]) for name, d in differences]
    return markdown_of([Column(what, spans, is_text=True), *columns])


def budget_rows(comparison: Comparison) -> list[list[str]]:
    """Training loss of every run at equal tokens, then at equal time."""
    budgets = [*comparison.iso_tokens, *comparison.iso_time]
    return [
        [label, *(f"{bits:.4f}" for bits in budget.bits_per_byte)]
        for label, budget in zip(_budget_labels(comparison), budgets, strict=True)
    ]


def different_devices(comparison: Comparison) -> list[str]:
    """A caveat where the runs are of different devices."""
    devices = sorted({run.device for run in comparison.runs})
    if len(devices) == 1:
        return []
    return [f"The runs were evaluated on different devices: {', '.join(devices)}; so times differ."]


def protocol(comparison: Comparison) -> list[tuple[str, str]]:
    """(what, how) of the comparison."""
    corpus = comparison.corpus
    intervals = f"95%, {comparison.interval_method} over documents"
    if "bootstrap" in comparison.interval_method:
        intervals += f", {comparison.resamples:,} resamples (of differences {RESAMPLES:,})"
    return [
        ("Corpus", f"{corpus['source']}, tokens of the split {corpus['split_sha256'][:16]}"),
        ("Tokenizer", f"{corpus['tokenizer']}, {corpus['tokenizer_sha256'][:16]}"),
        ("Intervals", intervals),
        *(
            (
                run.name,
                f"{run.path}, step {run.step:,}, seed {run.seed}, rows of {length:,} tokens in "
                f"training; {run.device}",
            )
            for run, length in zip(comparison.runs, comparison.training_lengths, strict=True)
        ),
    ]


def _runs(comparison: Comparison) -> list[Column]:
    """As `run_columns`, shorter."""
    runs = comparison.runs
    return [
        Column("run", [run.name for run in runs], is_text=True),
        Column("pattern", [run.pattern for run in runs], is_text=True, sacrifice=1, folds=True),
        Column("params", [show.count(run.params) for run in runs], sacrifice=2),
        Column("tokens/s", [f"{run.tokens_per_s:,.0f}" for run in runs], sacrifice=4),
        Column("bits/byte", [f"{run.bits_per_byte:.4f}" for run in runs], sacrifice=5),
        *_versus(comparison),
    ]


def _versus(comparison: Comparison) -> list[Column]:
    runs = comparison.runs
    better = ["–" if run.difference is None else f"{run.difference.win_rate:.0%}" for run in runs]
    return [
        Column(f"vs {runs[0].name}", [change(run.difference) for run in runs]),
        Column("better in", better, sacrifice=3),
    ]


def _positions(comparison: Comparison) -> list[Column]:
    """NLL of every run at the last octaves and at all the earlier ones together."""
    columns = [Column("by position", _names(comparison), is_text=True)]
    first = 0
    for merged in show.merged(comparison.runs[0].buckets):
        last = first + len(merged)
        cells = [_nll(run, first, last) for run in comparison.runs]
        columns.append(Column(show.span(merged), cells))
        first = last
    return columns


def _nll(run: RunSummary, first: int, last: int) -> str:
    buckets = run.buckets[first:last]
    star = "*" if any(bucket.beyond_training for bucket in buckets) else ""
    return f"{show.mean([bucket.nll for bucket in buckets], buckets):.4f}{star}"


def _all_positions(comparison: Comparison) -> list[Column]:
    """NLL of every run by octave."""
    spans = [f"{bucket.start}-{bucket.end}" for bucket in comparison.runs[0].buckets]
    octaves = range(len(spans))
    return [
        Column("position", spans, is_text=True),
        *(Column(run.name, [_nll(run, i, i + 1) for i in octaves]) for run in comparison.runs),
    ]


def _training(comparison: Comparison) -> list[Column]:
    """Training loss, a row per run and a column per budget."""
    rows = budget_rows(comparison)
    columns = [Column("training loss\nafter", _names(comparison), is_text=True)]
    for i, (label, *cells) in enumerate(rows):
        is_whole = label in (rows[len(comparison.iso_tokens) - 1][0], rows[-1][0])
        columns.append(
            Column("\n".join(label.split(" ", 1)), cells, sacrifice=None if is_whole else i)
        )
    return columns


def _budget_labels(comparison: Comparison) -> list[str]:
    return [
        *(f"{show.count(budget.amount)} tokens" for budget in comparison.iso_tokens),
        *(_seconds(budget.amount) for budget in comparison.iso_time),
    ]


def _names(comparison: Comparison) -> list[str]:
    return [run.name for run in comparison.runs]


def _headline(comparison: Comparison) -> str:
    return (
        f"{comparison.split} · {comparison.documents} documents of {comparison.length:,} tokens · "
        f"baseline {comparison.runs[0].name}"
    )


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
