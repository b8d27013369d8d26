"""Lines and tables for a terminal of any width."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from hybrid_lm.report.columns import Column, terminal_table


@dataclass(frozen=True)
class Page:
    """Parts one below the other; what a narrow terminal does without is named at the end."""

    parts: Sequence[Text | Sequence[Column]]
    whole: str
    """The file that has all columns."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text | Table]:
        missing: dict[str, None] = {}
        for part in self.parts:
            if isinstance(part, Text):
                yield part
                continue
            table, left_out = terminal_table(part, options.max_width)
            missing |= dict.fromkeys(left_out)
            yield table
            yield Text()
        if missing:
            yield Text(f"for want of width only in {self.whole}: {', '.join(missing)}", style="dim")


def notes(*lines: str) -> list[Text]:
    """Explanations below the tables."""
    return [Text(line, style="dim") for line in lines]
