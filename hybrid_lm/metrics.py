"""The numbers of a run as files: ``metrics.jsonl`` and TensorBoard events."""

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid_lm.errors import UserError
from hybrid_lm.run_dir import RunDir


@dataclass(frozen=True)
class Row:
    """One line of ``metrics.jsonl``: a step, and the speed since the line before.

    Attributes:
        loss: mean NLL of the step's tokens, in nats.
        grad_norm: global norm before clipping.
        tokens: trained on so far, padding left out.
        mfu: model FLOPs (3 x the forward pass) per second over the peak of the devices.
    """

    step: int
    loss: float
    grad_norm: float
    learning_rate: float
    tokens: int
    tokens_per_s: float
    step_ms: float
    mfu: float


def read(path: Path) -> list[Row]:
    """The rows of a ``metrics.jsonl``, of a run under way too; none where there is no file.

    Raises:
        UserError: if it holds anything else.
    """
    if not path.exists():
        return []
    whole_lines = path.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        return [Row(**json.loads(line)) for line in whole_lines]
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} holds no metrics of this version: {error}") from error


class MetricsLog:
    """Appends to the files of a run that continues after ``step``; later lines are dropped."""

    def __init__(self, run_dir: RunDir, step: int):
        from tensorboardX import SummaryWriter

        _drop_after(run_dir.metrics, step)
        self._file = run_dir.metrics.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(run_dir.tensorboard), purge_step=step + 1)

    def write(self, row: Row, grad_norms: Mapping[str, float]) -> None:
        """Add one line; ``grad_norms`` by part of the model go to TensorBoard alone."""
        record = asdict(row)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in record.items():
            if name != "step":
                self._board.add_scalar(f"train/{name}", value, row.step)
        for name, value in grad_norms.items():
            self._board.add_scalar(f"grad_norm/{name}", value, row.step)

    def write_report(
        self,
        step: int,
        scalars: Mapping[str, float],
        markdown: str,
        images: Mapping[str, bytes],
    ) -> None:
        """Add the numbers of a report, its tables and its figures (PNG)."""
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
        self._board.add_text("report", markdown, step)
        for name, png in images.items():
            self._add_png(name, png, step)
        self._board.flush()

    def _add_png(self, name: str, png: bytes, step: int) -> None:
        """As `SummaryWriter.add_image`, which takes pixels and needs Pillow to encode them."""
        from tensorboardX.proto.summary_pb2 import Summary  # pyright: ignore (made at run time)

        # The header of a PNG: width and height stand at bytes 16 and 20.
        width, height = struct.unpack(">II", png[16:24])
        image = Summary.Image(width=width, height=height, colorspace=4, encoded_image_string=png)
        summary = Summary(value=[Summary.Value(tag=name, image=image)])
        assert self._board.file_writer is not None
        self._board.file_writer.add_summary(summary, step)

    def close(self) -> None:
        self._file.close()
        self._board.close()


def _drop_after(path: Path, step: int) -> None:
    """Remove the lines of later steps, and one that was cut off, in one go."""
    if not path.exists():
        return
    kept = [line for line in path.read_text(encoding="utf-8").splitlines() if _step(line) <= step]
    shortened = path.with_suffix(".shortened")
    shortened.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
    os.replace(shortened, path)


def _step(line: str) -> float:
    """The step of a line; infinity for the start of a line that a killed process left."""
    try:
        return json.loads(line)["step"]
    except ValueError:
        return float("inf")
