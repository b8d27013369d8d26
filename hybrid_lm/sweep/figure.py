"""The figure of a study: what every point gains or loses against the baseline, by position."""

from hybrid_lm.compare.position_figure import differences
from hybrid_lm.page.images import png
from hybrid_lm.sweep.results import LengthTable


def differences_png(baseline: str, table: LengthTable) -> bytes:
    """The points with a difference, a line with its band each."""
    compared = [(p.name, p.difference) for p in table.points if p.difference is not None]
    return png(differences(baseline, [name for name, _ in compared], compared, table.length))
