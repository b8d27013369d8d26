"""Progress on the terminal: a bar, or plain lines where the output is no terminal."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from hybrid_lm.metrics import Row

log = logging.getLogger(__name__)


@contextmanager
def log_to(console: Console) -> Iterator[None]:
    """Show the package's log on ``console``, above a progress bar if there is one."""
    if console.is_terminal:
        handler = RichHandler(console=console, show_time=False, show_level=False, show_path=False)
    else:
        handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("hybrid_lm")
    level, propagate = package.level, package.propagate
    package.addHandler(handler)
    package.setLevel(logging.WARNING if console.quiet else logging.INFO)
    package.propagate = False  # libraries install handlers at the root
    try:
        yield
    finally:
        package.removeHandler(handler)
        package.setLevel(level)
        package.propagate = propagate


class Progress:
    """How far training is, how fast, and when it ends; to be used as a context manager."""

    def __init__(self, console: Console, *, step: int, steps: int, evaluate_every: int):
        self._steps = steps
        self._evaluate_every = evaluate_every
        self._is_plain = not console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),  # the numbers of a step fit in 80 columns beside it
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            disable=self._is_plain,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # a table sent to a file must arrive there
        )
        self._training = self._bar.add_task("train", total=steps, completed=step, numbers="")
        self._evaluation = self._bar.add_task("evaluate", total=1, visible=False, numbers="")

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *exception) -> None:
        self._bar.stop()

    def step(self, step: int) -> None:
        """``step`` is done."""
        self._bar.update(self._training, completed=step)

    def row(self, row: Row) -> None:
        """New numbers."""
        remaining = self._steps - row.step
        left = timedelta(seconds=round(remaining * row.step_ms / 1e3))
        to_evaluation = min(-row.step % self._evaluate_every, remaining)
        numbers = (
            f"loss {row.loss:.4f}  {row.tokens_per_s:,.0f} tokens/s  MFU {row.mfu:.1%}  {left} left"
        )
        next_evaluation = f"evaluation in {to_evaluation}"
        self._bar.update(self._training, numbers=numbers)
        self._bar.update(self._evaluation, completed=0, visible=True, numbers=next_evaluation)
        if self._is_plain:
            log.info("step %d/%d  %s  %s", row.step, self._steps, numbers, next_evaluation)

    def evaluating(self, done: int, total: int) -> None:
        """``done`` of ``total`` parts of an evaluation are done."""
        self._bar.update(self._evaluation, completed=done, total=total, visible=True, numbers="now")
