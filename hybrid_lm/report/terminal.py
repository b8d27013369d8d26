"""The report for a terminal: tables that do without columns where it is narrow."""

from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from hybrid_lm.report import show
from hybrid_lm.report.columns import Column, terminal_table
from hybrid_lm.report.sections import sections
from hybrid_lm.results import Report


def render(report: Report) -> RenderableType:
    """The table per layer group for a terminal, under the model's own numbers.

    Where the terminal is narrow, whole columns are left out and named below; no number is cut.
    """
    return _TerminalReport(report)


@dataclass(frozen=True)
class _TerminalReport:
    report: Report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Table]:
        yield from map(Text, self._headlines())
        yield Text()
        table, left_out = terminal_table(self._columns(), options.max_width)
        yield table
        yield Text()
        yield from (Text(note, style="dim") for note in self._notes(left_out))
        for section in sections(self.report):
            table, left_out = terminal_table(section.columns, options.max_width)
            yield Text(f"\n{section.title}", style="bold")
            yield table
            yield Text(section.instrument.caveat, style="dim")
            if left_out:
                yield Text(_left_out(left_out), style="dim")
        if self.report.not_run:
            missing = ", ".join(f"{part.name} ({part.reason})" for part in self.report.not_run)
            yield Text(f"\nnot run: {missing}", style="dim")

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

    def _columns(self) -> list[Column]:
        groups = self.report.groups
        spans = show.merged(self.report.buckets)
        columns = [
            Column("group", [g.name for g in groups], is_text=True),
            Column("pattern", [g.pattern for g in groups], is_text=True, sacrifice=6, folds=True),
            Column("layers", [str(g.layers) for g in groups], sacrifice=1),
            Column("params", [show.count(g.params) for g in groups], sacrifice=2),
            Column(
                f"state\n@{show.position(self.report.length)}",
                [show.memory(g.state_bytes) for g in groups],
                sacrifice=3,
            ),
            Column("exit\nppl", [show.perplexity(g.exit_perplexity) for g in groups], sacrifice=5),
            Column("without it\n(nats)", [show.change(g.knockout) for g in groups]),
        ]
        first = 0
        for merged in spans:
            last = first + len(merged)
            cells = [
                f"{show.mean([b.delta_nll for b in g.knockout.buckets[first:last]], merged):+.3f}"
                for g in groups
            ]
            mark = show.mark(self.report, merged)
            columns.append(Column(f"{show.span(merged)}{mark}", cells, sacrifice=4))
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
            notes.append(_left_out(left_out))
        return notes


def _left_out(headers: list[str]) -> str:
    return f"for want of width only in report.md: {', '.join(headers)}"
