"""Compare finished runs on the same documents: the first is the baseline of the others.

python -m hybrid_lm.compare RUN RUN ... [--output DIR]
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from hybrid_lm.cli import arguments, parse
from hybrid_lm.compare import tables
from hybrid_lm.compare.results import compare
from hybrid_lm.errors import exit_on_user_error


@dataclass(frozen=True)
class Options:
    """Which runs, by which of their reports."""

    runs: Annotated[tyro.conf.Positional[tuple[Path, ...]], tyro.conf.arg(metavar="RUN ...")]
    """Run directories; differences are to the first."""
    report: str = "report"
    """Name of the report in every run, e.g. report-length32768."""
    output: Path | None = None
    """Directory for compare.md, compare.html and compare.json. None: they are not written."""


def main() -> None:
    """Print the comparison, and write it where asked to."""
    options = parse(Options, arguments(), description=__doc__ or "")
    comparison = compare(options.runs, report_name=options.report)
    output = Console(width=None if sys.stdout.isatty() else 100)
    output.print(tables.render(comparison))
    if options.output is not None:
        tables.write(comparison, options.output)
        output.print(f"\nwritten to {options.output}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    exit_on_user_error(main)
