"""The numbers of a run as files: ``metrics.jsonl`` and TensorBoard events."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from hybrid_lm.errors import UserError
from hybrid_lm.run_dir import RunDir
from hybrid_lm.tensorboard import Board


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
    """Appends to the files of a run that continues after ``step``; later lines are dropped.

    Attributes:
        board: the run's TensorBoard events.
    """

    def __init__(self, run_dir: RunDir, step: int):
        _drop_after(run_dir.metrics, step)
        self._file = run_dir.metrics.open("a", encoding="utf-8")
        self.board = Board(run_dir.tensorboard, step)

    def write(self, row: Row, grad_norms: Mapping[str, float]) -> None:
        """Add one line; ``grad_norms`` by part of the model go to TensorBoard alone."""
        record = asdict(row)
        self._file.write(json.dumps(record, allow_nan=False) + "\n")
        self._file.flush()
        scalars = {f"train/{name}": value for name, value in record.items() if name != "step"}
        scalars |= {f"grad_norm/{name}": value for name, value in grad_norms.items()}
        self.board.add_scalars(row.step, scalars)

    def close(self) -> None:
        self._file.close()
        self.board.close()


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
