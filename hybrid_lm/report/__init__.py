"""The evaluation report as files, as scalars and images for TensorBoard, and for the terminal."""

from hybrid_lm.report.files import read, write, write_events
from hybrid_lm.report.markdown import to_markdown
from hybrid_lm.report.scalars import scalars, to_board
from hybrid_lm.report.terminal import render

__all__ = ["read", "render", "scalars", "to_board", "to_markdown", "write", "write_events"]
