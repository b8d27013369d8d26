"""What a section of the page is made of, whatever it shows."""

from collections.abc import Sequence
from dataclasses import dataclass

import altair as alt

from hybrid_lm.results import Report


@dataclass(frozen=True)
class Table:
    """Numbers as text, the first ``text_columns`` of each row being words."""

    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: int = 1


@dataclass(frozen=True)
class Panel:
    """One chart of a figure; ``name`` is in the id of its element and in the tag of its image."""

    name: str
    title: str
    chart: alt.LayerChart


@dataclass(frozen=True)
class Legend:
    """Names of the series of a figure, in the order of their colours and shapes.

    The reader hides a series in all figures whose legend has the same ``scope``.
    """

    scope: str
    names: Sequence[str]


@dataclass(frozen=True)
class Block:
    """A titled section of tables, and what to know about them."""

    name: str
    title: str
    tables: Sequence[Table]
    text: str


@dataclass(frozen=True)
class Protocol:
    """How the numbers came about: terms and what they are, what is missing, how not to read it."""

    items: Sequence[tuple[str, str]]
    not_run: Sequence[str] | None
    """None where there is nothing that could have run."""
    caveats: Sequence[str]
    tables: Sequence[Table]


@dataclass(frozen=True)
class Figure:
    """A titled section: charts, what they say and do not say, and the same numbers as tables."""

    name: str
    title: str
    panels: Sequence[Panel]
    text: str
    tables: Sequence[Table]
    caveats: Sequence[str] = ()
    legend: Legend | None = None


def caveats(report: Report, instrument: str) -> list[str]:
    """What the report says about an instrument that has run."""
    return [part.caveat for part in report.instruments if part.name == instrument]
