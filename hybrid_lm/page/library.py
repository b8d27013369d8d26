"""The script that draws the charts: Vega, Vega-Lite and vega-embed in one."""

from contextlib import suppress
from functools import cache
from importlib.metadata import version

import vl_convert

from hybrid_lm import user_cache
from hybrid_lm.errors import UserError
from hybrid_lm.files import write_files


@cache
def script() -> str:
    """JavaScript that defines ``vegaEmbed``; bundling takes seconds, so it is kept on disk."""
    directory = user_cache.directory("page")
    path = directory / f"vega-embed-{version('vl-convert-python')}.js"
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        text = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    with suppress(UserError):  # it is only slower without
        write_files(directory, {path.name: text})
    return text
