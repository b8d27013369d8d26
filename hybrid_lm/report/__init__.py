"""The evaluation report as files, as scalars and images for TensorBoard, and for the terminal."""

from hybrid_lm.report.files import read, write
from hybrid_lm.report.markdown import to_markdown
from hybrid_lm.report.scalars import images, scalars
from hybrid_lm.report.terminal import render

__all__ = ["images", "read", "render", "scalars", "to_markdown", "write"]
