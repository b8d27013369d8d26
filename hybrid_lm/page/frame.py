"""The page around the figures: head line, legends, tables, protocol; style and script inlined."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
from markupsafe import Markup

from hybrid_lm.page import library, theme
from hybrid_lm.page.figure import Block, Figure, Protocol

_HERE = Path(__file__).parent


def document(
    title: str,
    subtitle: str,
    *,
    headlines: Sequence[tuple[str, str, str]],
    blocks: Sequence[Block],
    figures: Sequence[Figure],
    board: Block | None,
    protocol: Protocol,
) -> str:
    """The whole page, from top to bottom; ``headlines``: what is measured, its value, a note."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    charts = {}
    for figure in figures:
        for panel in figure.panels:
            scope = figure.legend.scope if figure.legend else None
            charts[f"{figure.name}-{panel.name}"] = {"scope": scope, "spec": spec(panel.chart)}
    return environment.get_template("template.html").render(
        title=title,
        subtitle=subtitle,
        headlines=headlines,
        blocks=blocks,
        figures=figures,
        board=board,
        protocol=protocol,
        marks=list(zip(theme.SERIES, theme.GLYPHS, strict=True)),
        style=Markup(_style()),
        script=Markup((_HERE / "page.js").read_text(encoding="utf-8")),
        library=Markup(library.script()),
        charts=Markup(_json({"charts": charts, "config": theme.config() | _NO_LEGENDS})),
    )


_NO_LEGENDS = {"legend": {"disable": True}}  # those of the page wrap, and hide series


def spec(chart: alt.LayerChart) -> dict[str, Any]:
    """The chart as Vega-Lite, without a config of its own."""
    found = chart.to_dict()
    found.pop("config", None)
    return found


def _style() -> str:
    light, dark = theme.style(theme.LIGHT), theme.style(theme.DARK)
    colours = f":root {{ color-scheme: light dark; {light} }}\n"
    colours += f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    return colours + (_HERE / "style.css").read_text(encoding="utf-8")


def _json(value: Any) -> str:
    """``value`` for a script element, which no ``<`` can end."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
