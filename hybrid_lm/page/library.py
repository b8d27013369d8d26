"""The script that draws the charts: Vega, Vega-Lite and vega-embed in one."""

import os
import tempfile
from functools import cache
from importlib.metadata import version
from pathlib import Path

import vl_convert

from hybrid_lm import user_cache


@cache
def script() -> str:
    """JavaScript that defines ``vegaEmbed``; bundling takes seconds, so it is kept on disk."""
    directory = user_cache.directory("page")
    path = directory / f"vega-embed-{version('vl-convert-python')}.js"
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    _keep(text, path)
    return text


def _keep(text: str, path: Path) -> None:
    """Write ``path`` in one step; where nothing can be written, nothing is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=path.parent) as work:
            whole = Path(work, path.name)
            whole.write_text(text, encoding="utf-8")
            os.replace(whole, path)
    except OSError:
        pass
