"""The figures as PNG, drawn without a browser."""

import vl_convert

from hybrid_lm.page import frame, theme
from hybrid_lm.page.figure import Figure

_WIDTH, _SCALE = 640, 1.5


def png(figure: Figure) -> bytes:
    """The first chart of a figure in light colours, on white."""
    spec = frame.spec(figure.panels[0].chart) | {"width": _WIDTH, "config": theme.config()}
    spec = theme.resolved(spec) | {"background": theme.LIGHT["ground"]}
    return vl_convert.vegalite_to_png(spec, scale=_SCALE)
