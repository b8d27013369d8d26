"""Results: a table for the terminal, JSON and markdown with dates, device and versions."""

import json
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

Row = dict[str, Any]


def markdown(rows: list[Row]) -> list[str]:
    """The lines of a table of rows; what a row does not have is a dash."""
    columns, *cells = _cells(rows)
    lines = [columns, ["---"] * len(columns), *cells]
    return [f"| {' | '.join(line)} |" for line in lines]


def _cells(rows: list[Row]) -> list[list[str]]:
    """The columns that any row has, then the cells of each row."""
    columns = dict.fromkeys(column for row in rows for column in row)
    return [list(columns), *([show(row.get(column, "–")) for column in columns] for row in rows)]


@dataclass(frozen=True)
class Form:
    """How the rows of a benchmark are kept.

    Attributes:
        key: columns that name a row. Rows are added to those that an earlier run left of the same
            device, versions and settings, in the place of rows of the same name.
        settings: what all rows were taken with.
        pages: the lines of the markdown under the head.
    """

    key: tuple[str, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    pages: Callable[[list[Row]], list[str]] = markdown


def publish(name: str, rows: list[Row], output: Path | None, form: Form) -> None:
    """Print ``rows``; write NAME.json and NAME.md under ``output``."""
    device = jax.devices()[0].device_kind
    columns, *cells = _cells(rows)
    table = Table(*columns, title=f"{name} on {device}")
    for row in cells:
        table.add_row(*row)
    # All of every number, if need be in lines longer than the terminal's.
    console = Console()
    width = Measurement.get(console, console.options.update(width=10_000), table).maximum
    Console(width=max(width, console.width)).print(table)
    if output is None:
        return
    about = {
        "device": device,
        "versions": {package: version(package) for package in ("jax", "jaxlib", "flax")},
        "settings": form.settings,
    }
    command = f"python -m hybrid_lm.bench {shlex.join(sys.argv[1:])}"
    runs = [{"date": datetime.now(UTC).strftime("%Y-%m-%d"), "command": command}]
    output.mkdir(parents=True, exist_ok=True)
    record = output / f"{name}.json"
    if record.exists():
        earlier = json.loads(record.read_text(encoding="utf-8"))
        if all(earlier.get(what) == value for what, value in about.items()):
            runs = [run for run in earlier["runs"] if run not in runs] + runs
            by_name = {tuple(row[k] for k in form.key): row for row in earlier["rows"] + rows}
            rows = list(by_name.values())
    text = json.dumps(about | {"runs": runs, "rows": rows}, indent=2)
    record.write_text(text + "\n", encoding="utf-8")
    settings = [", ".join(f"{what} {value}" for what, value in form.settings.items())]
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    lines = [f"{device}, {versions}.", *(f"{line}." for line in settings if line), ""]
    lines += [f"    {run['command']}    # {run['date']}" for run in runs]
    lines += ["", *form.pages(rows)]
    (output / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def show(value: Any) -> str:
    """A cell of a table."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
