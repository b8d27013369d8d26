"""The report for a terminal: tables that do without columns where it is narrow."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from hybrid_lm.report import show
from hybrid_lm.results import Report


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
            f"{show.span(spans)} {show.mean([b.nll for b in spans], spans):.3f}"
            f"{show.mark(report, spans)}"
            for spans in show.merged(report.buckets)
        )
        return [
            f"step {report.step:,} · {report.split} · {report.documents} documents of "
            f"{report.length:,} tokens = {report.tokens:,} tokens",
            f"perplexity {show.perplexity(report.perplexity)} "
            f"({show.interval(report.perplexity_ci95)}) · bits per byte "
            f"{report.bits_per_byte:.4f} ({show.interval(report.bits_per_byte_ci95)})",
            f"nats per token by position: {by_position}",
        ]

    def _columns(self) -> list[_Column]:
        groups = self.report.groups
        spans = show.merged(self.report.buckets)
        columns = [
            _Column("group", [g.name for g in groups], is_text=True),
            _Column("pattern", [g.pattern for g in groups], is_text=True, sacrifice=6),
            _Column("layers", [str(g.layers) for g in groups], sacrifice=1),
            _Column("params", [show.count(g.params) for g in groups], sacrifice=2),
            _Column(
                f"state\n@{show.position(self.report.length)}",
                [show.memory(g.state_bytes) for g in groups],
                sacrifice=3,
            ),
            _Column("exit\nppl", [show.perplexity(g.exit_perplexity) for g in groups], sacrifice=5),
            _Column("without it\n(nats)", [show.change(g.knockout) for g in groups]),
        ]
        first = 0
        for merged in spans:
            last = first + len(merged)
            cells = [
                f"{show.mean([b.delta_nll for b in g.knockout.buckets[first:last]], merged):+.3f}"
                for g in groups
            ]
            mark = show.mark(self.report, merged)
            columns.append(_Column(f"{show.span(merged)}{mark}", cells, sacrifice=4))
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
