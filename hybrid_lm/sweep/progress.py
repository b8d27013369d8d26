"""How far a study is: one bar over the steps of all its runs."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from hybrid_lm.sweep.runs import Run

REFRESH_S = 1.0


class SweepProgress:
    """A bar with the time left on a terminal, nothing elsewhere; to be used as a context manager.

    The time left is that of training alone, and as if all points were equally fast.
    """

    def __init__(self, console: Console, runs: Sequence[Run]):
        self._steps = {run.name: run.step() for run in runs}
        self._latest = 0.0
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=16),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f} steps"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        total = sum(run.config.train.steps for run in runs)
        self._task = self._bar.add_task("", total=total, completed=sum(self._steps.values()))

    def __enter__(self) -> "SweepProgress":
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()

    def update(self, working: Sequence[Run]) -> None:
        """``working`` are the runs at work."""
        if self._bar.disable or time.monotonic() - self._latest < REFRESH_S:
            return
        self._latest = time.monotonic()
        self._steps |= {run.name: run.step() for run in working}
        at_work = ", ".join(f"{run.name} {self._steps[run.name]:,}" for run in working)
        self._bar.update(self._task, description=at_work, completed=sum(self._steps.values()))
