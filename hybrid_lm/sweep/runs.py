"""The runs of a study: which there are, how far each has come, and what is to be done next."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hybrid_lm import metrics, train
from hybrid_lm import report as reports
from hybrid_lm.config import Config, Sweep
from hybrid_lm.errors import UserError
from hybrid_lm.instruments import suite
from hybrid_lm.instruments.suite import TABLE
from hybrid_lm.results import LEFT_TO_EVALUATE, NOT_ASKED_FOR
from hybrid_lm.run_dir import find_run


@dataclass(frozen=True)
class Run:
    """One point trained with one seed, by the commands that a user would type."""

    point: str
    seed: int
    config: Config
    directory: Path
    options: tuple[str, ...]
    """Of ``python -m hybrid_lm.train``."""
    lengths: tuple[int, ...]
    """To evaluate at; that of the config is the first."""
    instruments: tuple[str, ...]
    """Of ``python -m hybrid_lm.evaluate --only``, beside the table."""

    @property
    def name(self) -> str:
        return f"{self.point}-seed{self.seed}"

    @property
    def log(self) -> Path:
        """What the commands print."""
        return self.directory.with_name(f"{self.name}.log")

    def report_name(self, length: int) -> str:
        """Directory in the run of the report at a length, as ``hybrid_lm.evaluate`` names it."""
        return "report" if length == self.config.evaluation_length else f"report-length{length}"

    def has_report(self, length: int) -> bool:
        """Whether the whole training has been evaluated at a length."""
        run_dir, steps = find_run(self.directory), self.config.train.steps
        return run_dir is not None and run_dir.reported_step(self.report_name(length)) == steps

    def next_command(self) -> list[str] | None:
        """Arguments of ``python`` for what comes next; None where all is done."""
        if not self.has_report(self.config.evaluation_length):
            return [sys.executable, "-m", "hybrid_lm.train", *self.options]
        for length in self.lengths:
            if not self.has_report(length) or not self._has_instruments(length):
                only = ",".join((TABLE, *self.instruments))
                options = [str(self.directory), "--length", str(length), "--only", only]
                return [sys.executable, "-m", "hybrid_lm.evaluate", *options]
        return None

    def _has_instruments(self, length: int) -> bool:
        """Whether all have run on the report at a length, or it says why they cannot."""
        report = reports.read(self.directory / self.report_name(length))
        tried = {part.name for part in report.instruments} | {
            part.name
            for part in report.not_run
            if part.reason not in (NOT_ASKED_FOR, LEFT_TO_EVALUATE)
        }
        return tried.issuperset(self.instruments)

    def step(self) -> int:
        """The latest step in ``metrics.jsonl``; 0 where there is none."""
        rows = metrics.read(self.directory / "metrics.jsonl")
        return rows[-1].step if rows else 0

    def require_same_config(self) -> None:
        """Raise `UserError` where the directory holds anything but this run."""
        run_dir = find_run(self.directory)
        if run_dir is None:
            return
        differing = run_dir.differences(self.config)
        if differing:
            raise UserError(
                f"{self.directory} holds a run of another config: {'; '.join(differing)}; "
                "name another directory with --sweep-dir"
            )


def runs_of(study: Sweep, *, name: str, overrides: Sequence[str], directory: Path) -> list[Run]:
    """Every point with every seed; all points with the first seed come first.

    Args:
        name: of the config file, as `hybrid_lm.config.load` takes it.
        overrides: options of ``python -m hybrid_lm.train`` for all runs.

    Raises:
        UserError: for an override that a point does not know or that makes it impossible, and an
            instrument that there is not.
    """
    suite.chosen(",".join((TABLE, *study.instruments)), lens=False)
    runs = []
    for seed in study.seeds:
        for point in study.points:
            options = ["--config", f"{name}:{point}", *overrides, "--train.seed", str(seed)]
            path = directory / f"{point}-seed{seed}"
            config = train.parse(list(options)).run
            options += ["--run-dir", str(path)]
            lengths = tuple(dict.fromkeys((config.evaluation_length, *study.lengths)))
            run = Run(point, seed, config, path, tuple(options), lengths, study.instruments)
            runs.append(run)
    return runs
