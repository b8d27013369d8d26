"""The figure of a study: what every point gains or loses against the baseline, by position."""

from collections.abc import Sequence

from hybrid_lm.compare.difference import Difference
from hybrid_lm.compare.position_figure import differences
from hybrid_lm.page.images import png


def differences_png(
    baseline: str, compared: Sequence[tuple[str, Difference]], length: int
) -> bytes:
    """The points with a difference, a line with its band each."""
    return png(differences(baseline, [name for name, _ in compared], compared, length))
