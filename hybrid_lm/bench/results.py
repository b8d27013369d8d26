"""Benchmark results: a table for the terminal, JSON and markdown with device, date and versions."""

import json
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

Row = dict[str, Any]


def publish(name: str, rows: list[Row], output: Path | None) -> None:
    """Print ``rows`` (dicts with the same keys); write NAME.json and NAME.md under ``output``."""
    columns = list(rows[0])
    table = Table(*columns, title=f"{name} on {jax.devices()[0].device_kind}")
    for row in rows:
        table.add_row(*(_show(row[column]) for column in columns))
    Console().print(table)
    if output is None:
        return
    about = {
        "device": jax.devices()[0].device_kind,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "command": " ".join(["python -m hybrid_lm.bench", *sys.argv[1:]]),
        "versions": {package: version(package) for package in ("jax", "jaxlib", "flax")},
    }
    output.mkdir(parents=True, exist_ok=True)
    record = json.dumps(about | {"rows": rows}, indent=2)
    (output / f"{name}.json").write_text(record + "\n", encoding="utf-8")
    versions = ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    lines = [
        f"{about['device']}, {about['date']}, {versions}.",
        "",
        f"    {about['command']}",
        "",
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' for _ in columns)} |",
        *(f"| {' | '.join(_show(row[column]) for column in columns)} |" for row in rows),
    ]
    (output / f"{name}.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
