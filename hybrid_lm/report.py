"""The evaluation report as files, as TensorBoard scalars and as a table for the terminal."""

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from hybrid_lm.errors import UserError
from hybrid_lm.results import Bucket, GroupReport, Interval, KnockoutBucket, Report

MAX_POSITION_COLUMNS = 4


def write(report: Report, directory: Path) -> None:
    """Write ``report.json``, ``.md`` and ``.html``, each in one step, in place of earlier ones.

    Raises:
        UserError: if the directory cannot be written.
    """
    from hybrid_lm import page

    texts = {
        "report.json": json.dumps(report.to_json(), indent=2) + "\n",
        "report.md": to_markdown(report),
        "report.html": page.render(report),
    }
    try:
        directory.mkdir(parents=True, exist_ok=True)
        # In the same file system as the report, so that the replacement is one step.
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=directory) as work:
            for name, text in texts.items():
                Path(work, name).write_text(text, encoding="utf-8")
            for name in texts:
                os.replace(Path(work, name), directory / name)
    except OSError as error:
        raise UserError(f"the report cannot be written: {error}") from error


def read(directory: Path) -> Report:
    """The report that `write` left in a directory.

    Raises:
        UserError: if there is none, or of another version.
    """
    path = directory / "report.json"
    try:
        return Report.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} holds no report of this version: {error!r}") from error


def scalars(report: Report) -> dict[str, float]:
    """The numbers to follow over training, by flat name, e.g. ``group/early/knockout_nats``."""
    values = {
        "eval/nll": report.nll,
        "eval/perplexity": report.perplexity,
        "eval/bits_per_byte": report.bits_per_byte,
    }
    for bucket in report.buckets:
        values[f"eval/nll_by_position/{bucket.start}-{bucket.end}"] = bucket.nll
    for group in report.groups:
        prefix = f"group/{group.name}"
        values[f"{prefix}/exit_perplexity"] = group.exit_perplexity
        values[f"{prefix}/knockout_nats"] = group.knockout.delta_nll
        for bucket in group.knockout.buckets:
            values[f"{prefix}/knockout_by_position/{bucket.start}-{bucket.end}"] = bucket.delta_nll
    return values


def images(report: Report) -> dict[str, bytes]:
    """The figures of the page as PNG, by name, e.g. ``figure/knockout``."""
    from hybrid_lm import page

    return page.pngs(report)


def render(report: Report) -> RenderableType:
    """The table per layer group for a terminal, under the model's own numbers.

    Where the terminal is narrow, whole columns are left out and named below; no number is cut.
    """
    return _TerminalReport(report)


class _Column(NamedTuple):
    header: str
    cells: list[str]
    is_text: bool = False
    sacrifice: int | None = None  # the lowest is the first that a narrow terminal does without

    @property
    def width(self) -> int:
        return max(map(len, [*self.header.split("\n"), *self.cells]))

    @property
    def least_width(self) -> int:
        """Only patterns are folded."""
        return min(self.width, 12) if self.header == "pattern" else self.width


@dataclass(frozen=True)
class _TerminalReport:
    report: Report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Table]:
        yield from map(Text, self._headlines())
        yield Text()
        columns = self._columns()
        kept, gap, spare = _fit(columns, options.max_width)
        table = Table(box=None, padding=(0, gap, 0, 0), pad_edge=False, header_style="bold")
        for column in kept:
            table.add_column(
                column.header,
                justify="left" if column.is_text else "right",
                width=min(column.width, column.least_width + spare),
                overflow="fold",
                vertical="top",
            )
        for row in zip(*(column.cells for column in kept), strict=True):
            table.add_row(*map(Text, row))
        yield table
        yield Text()
        for note in self._notes([c.header for c in columns if c not in kept]):
            yield Text(note, style="dim")

    def _headlines(self) -> list[str]:
        report = self.report
        by_position = " · ".join(
            f"{_span(spans)} {_mean([b.nll for b in spans], spans):.3f}{_beyond(report, spans)}"
            for spans in _merged(report.buckets)
        )
        return [
            f"step {report.step:,} · {report.split} · {report.documents} documents of "
            f"{report.length:,} tokens = {report.tokens:,} tokens",
            f"perplexity {_perplexity(report.perplexity)} ({_range(report.perplexity_ci95)}) · "
            f"bits per byte {report.bits_per_byte:.4f} ({_range(report.bits_per_byte_ci95)})",
            f"nats per token by position: {by_position}",
        ]

    def _columns(self) -> list[_Column]:
        groups = self.report.groups
        spans = _merged(self.report.buckets)
        columns = [
            _Column("group", [g.name for g in groups], is_text=True),
            _Column("pattern", [g.pattern for g in groups], is_text=True, sacrifice=6),
            _Column("layers", [str(g.layers) for g in groups], sacrifice=1),
            _Column("params", [_si(g.params) for g in groups], sacrifice=2),
            _Column(
                f"state\n@{_position(self.report.length)}",
                [_bytes(g.state_bytes) for g in groups],
                sacrifice=3,
            ),
            _Column("exit\nppl", [_perplexity(g.exit_perplexity) for g in groups], sacrifice=5),
            _Column("without it\n(nats)", [_change(g) for g in groups]),
        ]
        first = 0
        for merged in spans:
            last = first + len(merged)
            cells = [
                f"{_mean([b.delta_nll for b in g.knockout.buckets[first:last]], merged):+.3f}"
                for g in groups
            ]
            mark = _beyond(self.report, merged)
            columns.append(_Column(f"{_span(merged)}{mark}", cells, sacrifice=4))
            first = last
        return columns

    def _notes(self, left_out: list[str]) -> list[str]:
        notes = [
            "exit ppl: what can be decoded after the group, not what the group causes",
            "without it: NLL change with the group's mixers skipped, ± half of the 95% interval;",
            "  the columns after it by position in the document",
        ]
        if self.report.buckets[-1].beyond_training:
            notes.append(f"* beyond the {self.report.training_length:,} tokens of training")
        if left_out:
            names = ", ".join(header.replace("\n", " ") for header in left_out)
            notes.append(f"for want of width only in report.md: {names}")
        return notes


def _fit(columns: list[_Column], width: int) -> tuple[list[_Column], int, int]:
    """The columns that fit, the gap that `rich` puts after each, and the width to spare."""
    kept = list(columns)
    while True:
        for gap in (2, 1):
            spare = width - sum(column.least_width + gap for column in kept)
            if spare >= 0:
                return kept, gap, spare
        expendable = [column for column in kept if column.sacrifice is not None]
        if not expendable:
            return kept, 1, 0
        kept.remove(min(expendable, key=lambda column: column.sacrifice or 0))


def to_markdown(report: Report) -> str:
    """The whole report: table per group, all octaves with intervals, caveats, protocol."""
    state = f"state@{_position(report.length)}"
    groups = _markdown_table(
        [
            *("group", "pattern", "layers", "params", "FLOPs/token", state, "exit ppl"),
            *("without it (nats)", "95% interval", "helps in", "detectable"),
        ],
        [
            [
                *(g.name, f"`{g.pattern}`", str(g.layers), _si(g.params)),
                *(_si(g.flops_per_token), _bytes(g.state_bytes), _perplexity(g.exit_perplexity)),
                *(_change(g), _range(g.knockout.ci95, "+.4f"), f"{g.knockout.win_rate:.0%}"),
                f"{g.knockout.minimum_detectable_effect:.4f}",
            ]
            for g in report.groups
        ],
        text_columns=2,
    )
    positions = [f"{b.start}-{b.end}{'*' if b.beyond_training else ''}" for b in report.buckets]
    model = _markdown_table(
        ["position", "NLL", "95% interval", *(f"exit of {g.name}" for g in report.groups)],
        [
            [
                *(position, f"{bucket.nll:.4f}", _range(bucket.ci95)),
                *(f"{g.exit_buckets[i].nll:.4f}" for g in report.groups),
            ]
            for i, (position, bucket) in enumerate(zip(positions, report.buckets, strict=True))
        ],
    )
    knockouts = _markdown_table(
        ["position", *(f"without {g.name}" for g in report.groups)],
        [
            [position, *(_cell(g.knockout.buckets[i]) for g in report.groups)]
            for i, position in enumerate(positions)
        ],
    )
    beyond = (
        [f"\\* beyond the {report.training_length:,} tokens of a training row.", ""]
        if report.buckets[-1].beyond_training
        else []
    )
    lines = [
        f"# Evaluation at step {report.step:,}",
        "",
        f"Perplexity **{_perplexity(report.perplexity)}** ({_range(report.perplexity_ci95)}), "
        f"**{report.bits_per_byte:.4f}** bits per byte ({_range(report.bits_per_byte_ci95)}), "
        f"{report.nll:.4f} nats per token ({_range(report.nll_ci95)}); "
        f"{report.documents} documents of {report.length:,} tokens.",
        "",
        "## By layer group",
        "",
        *groups,
        "",
        "Without it: change of the NLL in nats per token when the group's mixers are skipped. "
        "Helps in: share of documents whose NLL rises. Detectable: the smallest change that such "
        "a set of documents shows in 4 of 5 cases.",
        "",
        "## By position",
        "",
        *model,
        "",
        *beyond,
        "## Without a group, by position",
        "",
        *knockouts,
        "",
        *beyond,
        "## Caveats",
        "",
        *(f"- {caveat}" for caveat in report.caveats),
        "",
        "## Protocol",
        "",
        *(f"- {line}" for line in _protocol(report)),
        "",
    ]
    return "\n".join(lines)


def _protocol(report: Report) -> list[str]:
    corpus = report.corpus
    return [
        f"Each document alone in its row, {report.length:,} tokens from its start in one pass "
        f"(full scoring); rows of training had {report.training_length:,}.",
        f"{report.documents} documents of the {report.split} split, {report.tokens:,} tokens, "
        f"{report.bytes:,} bytes; all at least as long as the last position.",
        f"Intervals: 95%, {report.interval_method} over documents"
        + (f", {report.resamples:,} resamples." if "bootstrap" in report.interval_method else "."),
        f"Model: {_si(report.params)} parameters, {_si(report.flops_per_token)} forward FLOPs per "
        f"token, {_bytes(report.state_bytes)} of state; {report.dtype} activations.",
        f"Corpus: `{corpus['source']}`, files {corpus['fingerprint'][:16]}, tokens of the split "
        f"{corpus['split_sha256'][:16]}.",
        f"Tokenizer: {corpus['tokenizer']}, {corpus['vocab_size']} ids, "
        f"{corpus['tokenizer_sha256'][:16]}.",
        f"Device: {report.device}; jax {report.jax_version}; {report.date}.",
        "Documents: "
        + "; ".join(
            f"{index} {' '.join(name.split())}"
            for index, name in zip(report.document_indices, report.document_names, strict=True)
        )
        + ".",
    ]


def _markdown_table(header: list[str], rows: list[list[str]], text_columns: int = 1) -> list[str]:
    aligned = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return [f"| {' | '.join(row)} |" for row in [header, aligned, *rows]]


def _merged(buckets: Sequence[Bucket]) -> list[Sequence[Bucket]]:
    """The last octaves one by one, after all the earlier ones together."""
    alone = min(len(buckets), MAX_POSITION_COLUMNS) - 1
    first = len(buckets) - alone
    return [buckets[:first], *([bucket] for bucket in buckets[first:])]


def _mean(values: Sequence[float], spans: Sequence[Bucket]) -> float:
    """Mean per token of neighbouring spans from the mean of each."""
    widths = [span.end - span.start for span in spans]
    return sum(v * w for v, w in zip(values, widths, strict=True)) / sum(widths)


def _beyond(report: Report, spans: Sequence[Bucket]) -> str:
    return "*" if spans[-1].end > report.training_length else ""


def _span(spans: Sequence[Bucket]) -> str:
    start, end = _position(spans[0].start), _position(spans[-1].end)
    shared = end.endswith("k") and (start.endswith("k") or start == "0")
    return f"{start.removesuffix('k')}-{end}" if shared else f"{start}-{end}"


def _position(tokens: int) -> str:
    return f"{tokens // 1024}k" if tokens >= 1024 and tokens % 1024 == 0 else str(tokens)


def _change(group: GroupReport) -> str:
    low, high = group.knockout.ci95
    return f"{group.knockout.delta_nll:+.3f} ± {(high - low) / 2:.3f}"


def _cell(bucket: KnockoutBucket) -> str:
    return f"{bucket.delta_nll:+.4f} ({_range(bucket.ci95, '+.4f')})"


def _range(interval: Interval, number: str = "#.4g") -> str:
    return f"{interval[0]:{number}} to {interval[1]:{number}}"


def _perplexity(value: float) -> str:
    return f"{value:#.4g}"


def _si(value: float) -> str:
    for unit in ("", "k", "M", "G"):
        if value < 999.5:
            return f"{value:.0f}" if not unit else f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}T"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB"):
        if value < 1023.5:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} GiB"
