"""A comparison for the terminal and as ``compare.md`` and ``compare.json``."""

import json
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from hybrid_lm.compare.difference import Difference
from hybrid_lm.compare.results import Comparison, RunSummary
from hybrid_lm.compare.throughput import Budget
from hybrid_lm.files import write_texts
from hybrid_lm.report import _bytes, _markdown_table, _range, _si

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
    write_texts(directory, texts)


def render(comparison: Comparison) -> RenderableType:
    """The tables for a terminal."""
    base = comparison.runs[0]
    runs = grid(
        ["run", "pattern", "params", "tokens/s", "bits/byte", f"vs {base.name}", "better in"],
        [
            [
                *(run.name, run.pattern, _si(run.params), f"{run.tokens_per_s:,.0f}"),
                f"{run.bits_per_byte:.4f}",
                *_versus(run.difference),
            ]
            for run in comparison.runs
        ],
        text_columns=2,
    )
    positions = grid(["position", *_names(comparison)], _positions(comparison))
    notes = [
        f"vs {base.name}: nats per token, paired by document, ± half of the 95% interval",
        "better in: share of documents; NLL by position in nats per token",
        *different_devices(comparison),
    ]
    return Group(
        Text(_headline(comparison)),
        "",
        runs,
        "",
        positions,
        "",
        grid(["training loss after", *_names(comparison)], budget_rows(comparison)),
        "",
        *(Text(note, style="dim") for note in notes),
    )


def to_markdown(comparison: Comparison) -> str:
    """All tables, with intervals, caveats and protocol."""
    base, *others = comparison.runs
    runs = _markdown_table(
        [
            *("run", "pattern", "params", "FLOPs/token", "state", "tokens", "training", "tokens/s"),
            *("MFU", "bits per byte", "95% interval"),
        ],
        [
            [
                *(run.name, f"`{run.pattern}`", _si(run.params), _si(run.flops_per_token)),
                *(_bytes(run.state_bytes), f"{run.trained_tokens:,}"),
                *(_seconds(run.train_seconds), f"{run.tokens_per_s:,.0f}", f"{run.mfu:.1%}"),
                f"{run.bits_per_byte:.4f}",
                _range(run.bits_per_byte_ci95),
            ]
            for run in comparison.runs
        ],
        text_columns=2,
    )
    differences = [(run.name, run.difference) for run in others if run.difference is not None]
    lines = [
        "# Comparison of runs",
        "",
        _headline(comparison) + ".",
        "",
        *runs,
        "",
        f"## Differences to {base.name}",
        "",
        "NLL in nats per token, paired by document; negative is better.",
        "",
        *difference_table("run", differences),
        "",
        f"Better in: share of documents; {DETECTABLE}.",
        "",
        "## By position",
        "",
        *_markdown_table(["position", *_names(comparison)], _positions(comparison)),
        "",
        *position_table(f"minus {base.name}", differences),
        "",
        "## At equal tokens and at equal time",
        "",
        "Training loss in bits per byte, mean over the last tenth of the budget.",
        "",
        *_markdown_table(["after", *_names(comparison)], budget_rows(comparison)),
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


def grid(header: list[str], rows: list[list[str]], *, text_columns: int = 1) -> Table:
    """A table without lines; text columns are folded where the terminal is narrow."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold")
    for i, name in enumerate(header):
        is_text = i < text_columns
        table.add_column(
            Text(name),
            justify="left" if is_text else "right",
            overflow="fold",
            no_wrap=not is_text,
            min_width=max(len(row[i]) for row in rows) if i != 1 or not is_text else 12,
        )
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def change(difference: Difference) -> str:
    """The difference and half of its interval."""
    low, high = difference.ci95
    return f"{difference.delta_nll:+.4f} ± {(high - low) / 2:.4f}"


def difference_table(what: str, differences: list[tuple[str, Difference]]) -> list[str]:
    """Markdown: one row per difference."""
    return _markdown_table(
        [what, "difference", "95% interval", "better in", "detectable", "documents", "seeds"],
        [
            [
                *(name, f"{d.delta_nll:+.4f}", _range(d.ci95, "+.4f"), f"{d.win_rate:.0%}"),
                *(f"{d.minimum_detectable_effect:.4f}", str(d.documents), str(d.seeds)),
            ]
            for name, d in differences
        ],
    )


def position_table(what: str, differences: list[tuple[str, Difference]]) -> list[str]:
    """Markdown: one row per octave, one column per difference."""
    spans = [(bucket.start, bucket.end) for bucket in differences[0][1].buckets]
    return _markdown_table(
        [what, *(name for name, _ in differences)],
        [
            [
                f"{start}-{end}",
                *(
                    f"{d.buckets[i].delta_nll:+.4f} ({_range(d.buckets[i].ci95, '+.4f')})"
                    for _, d in differences
                ),
            ]
            for i, (start, end) in enumerate(spans)
        ],
    )


def _versus(difference: Difference | None) -> tuple[str, str]:
    if difference is None:
        return "–", "–"
    return change(difference), f"{difference.win_rate:.0%}"


def _names(comparison: Comparison) -> list[str]:
    return [run.name for run in comparison.runs]


def _headline(comparison: Comparison) -> str:
    return (
        f"{comparison.split} · {comparison.documents} documents of {comparison.length:,} tokens · "
        f"baseline {comparison.runs[0].name}"
    )


def _positions(comparison: Comparison) -> list[list[str]]:
    return [
        [
            f"{bucket.start}-{bucket.end}",
            *(_nll(run, i) for run in comparison.runs),
        ]
        for i, bucket in enumerate(comparison.runs[0].buckets)
    ]


def _nll(run: RunSummary, i: int) -> str:
    bucket = run.buckets[i]
    return f"{bucket.nll:.4f}{'*' if bucket.beyond_training else ''}"


def budget_rows(comparison: Comparison) -> list[list[str]]:
    """Training loss of every run at equal tokens, then at equal time."""

    def row(label: str, budget: Budget) -> list[str]:
        return [label, *(f"{bits:.4f}" for bits in budget.bits_per_byte)]

    return [
        *(row(f"{_si(budget.amount)} tokens", budget) for budget in comparison.iso_tokens),
        *(row(f"{_seconds(budget.amount)} of training", budget) for budget in comparison.iso_time),
    ]


def _seconds(seconds: float) -> str:
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"


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
        intervals += f", {comparison.resamples:,} resamples"
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
