"""A table by its columns, for the terminal and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text


@dataclass(frozen=True)
class Column:
    """Cells of all rows under a header."""

    header: str
    cells: Sequence[str]
    is_text: bool = False
    sacrifice: int | None = None
    """The lowest is the first that a narrow terminal does without; None: never."""
    folds: bool = False
    """Whether long cells may go over several lines."""

    @property
    def width(self) -> int:
        return max(map(len, [*self.header.split("\n"), *self.cells]))

    @property
    def least_width(self) -> int:
        return min(self.width, 12) if self.folds else self.width


def terminal_table(columns: Sequence[Column], width: int) -> tuple[Table, list[str]]:
    """The columns that fit into ``width``, and the headers of the others."""
    kept, gap, spare = _fit(columns, width)
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
    return table, [column.header.replace("\n", " ") for column in columns if column not in kept]


def markdown_table(header: list[str], rows: list[list[str]], text_columns: int = 1) -> list[str]:
    """Lines of a table whose first columns are text and the others numbers."""
    aligned = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return [f"| {' | '.join(row)} |" for row in [header, aligned, *rows]]


def markdown_of(columns: Sequence[Column]) -> list[str]:
    """All columns, line by line."""
    header = [column.header.replace("\n", " ") for column in columns]
    rows = [list(row) for row in zip(*(column.cells for column in columns), strict=True)]
    return markdown_table(header, rows, sum(column.is_text for column in columns))


def _fit(columns: Sequence[Column], width: int) -> tuple[list[Column], int, int]:
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
