"""TensorBoard events of a run or of an evaluation."""

import struct
from collections.abc import Mapping
from pathlib import Path


class Board:
    """Adds to the events in a directory; what was kept of steps after ``step`` is dropped."""

    def __init__(self, directory: Path, step: int | None = None):
        from tensorboardX import SummaryWriter

        purge_step = None if step is None else step + 1
        self._writer = SummaryWriter(str(directory), purge_step=purge_step)

    def add_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Add numbers by name, e.g. ``train/loss``."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)

    def add_report(
        self,
        step: int,
        scalars: Mapping[str, float],
        markdown: str,
        images: Mapping[str, bytes],
    ) -> None:
        """Add the numbers of a report, its tables and its figures (PNG)."""
        self.add_scalars(step, scalars)
        self._writer.add_text("report", markdown, step)
        for name, png in images.items():
            self._add_png(name, png, step)
        self._writer.flush()

    def _add_png(self, name: str, png: bytes, step: int) -> None:
        """As `SummaryWriter.add_image`, which takes pixels and needs Pillow to encode them."""
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore (made at run time)

        # The header of a PNG: width and height stand at bytes 16 and 20.
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        assert self._writer.file_writer is not None
        self._writer.file_writer.add_summary(summary, step)

    def close(self) -> None:
        self._writer.close()
