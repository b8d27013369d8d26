"""Colours, shapes and type of the page and its charts.

Charts name colours as CSS variables, so that one drawing follows the reader's light or dark mode
and the printer; where there is no style sheet (images), `resolved` puts the light ones in.
"""

import json
import re
from typing import Any

_SERIES = 8
# Okabe and Ito's colours, which readers with any colour vision tell apart; lighter on dark ground.
_LIGHT_SERIES = ("0072b2", "d55e00", "00805c", "a8478a", "8a6d00", "3b3bb3", "a02020", "555555")
_DARK_SERIES = ("56b4e9", "f28e4c", "3fcf9f", "e39ac8", "e6c84f", "a3a3ff", "ff8f8f", "c0c0c0")

LIGHT = {
    "ground": "#ffffff",
    "raised": "#f5f6f8",
    "ink": "#1b1f24",
    "muted": "#57606a",
    "grid": "#e3e6ea",
    "line": "#8c959f",
    "worse": "#a8480a",
    "better": "#1d66aa",
    "on-strong": "#ffffff",
    **{f"series-{i}": f"#{value}" for i, value in enumerate(_LIGHT_SERIES)},
}
DARK = {
    "ground": "#14171b",
    "raised": "#1e2228",
    "ink": "#e8eaed",
    "muted": "#a3abb5",
    "grid": "#2b3037",
    "line": "#6b7480",
    "worse": "#b35c14",
    "better": "#2a72b5",
    "on-strong": "#ffffff",
    **{f"series-{i}": f"#{value}" for i, value in enumerate(_DARK_SERIES)},
}

INK, MUTED, GRID, LINE = "var(--ink)", "var(--muted)", "var(--grid)", "var(--line)"
WORSE, BETTER, ON_STRONG = "var(--worse)", "var(--better)", "var(--on-strong)"
SERIES = tuple(f"var(--series-{i})" for i in range(_SERIES))
SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "stroke", "arrow")
GLYPHS = ("●", "■", "▲", "◆", "▼", "✚", "━", "➤")
"""The shapes as text, for legends outside the charts."""

_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Noto Sans', 'DejaVu Sans', sans-serif"


def config() -> dict[str, Any]:
    """The Vega-Lite config that all charts share."""
    return {
        "background": "transparent",
        "font": _FONT,
        "aria": False,  # the table beside each chart is for screen readers
        "view": {"stroke": None},
        "axis": {
            "labelColor": MUTED,
            "titleColor": INK,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
            "titlePadding": 8,
            "gridColor": GRID,
            "domainColor": LINE,
            "tickColor": LINE,
        },
        "legend": {"labelColor": INK, "labelFontSize": 11, "orient": "top", "columns": 4},
        "text": {"color": INK, "fontSize": 11},
        "rule": {"color": LINE},
        "line": {"strokeWidth": 2},
        "point": {"size": 45, "filled": True, "opacity": 1},
        "area": {"opacity": 0.16, "line": False},
    }


def resolved(spec: dict[str, Any]) -> dict[str, Any]:
    """``spec`` with the light colours in place of their names."""
    text = re.sub(r"var\(--([a-z0-9-]+)\)", lambda name: LIGHT[name[1]], json.dumps(spec))
    return json.loads(text)


def style(colours: dict[str, str]) -> str:
    """CSS declarations of the colours."""
    return " ".join(f"--{name}: {value};" for name, value in colours.items())
