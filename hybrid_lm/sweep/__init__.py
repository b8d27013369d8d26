"""Studies: the points of a config file's ``sweep()``, trained one by one or several at a time."""

from hybrid_lm.sweep.swaps import swaps

__all__ = ["swaps"]
