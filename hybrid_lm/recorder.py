"""What becomes of a step's numbers: fetched one step late, checked, timed, written and shown."""

from typing import NamedTuple

import jax
import numpy as np

from hybrid_lm.metrics import MetricsLog, Row
from hybrid_lm.progress import Progress
from hybrid_lm.step import Metrics
from hybrid_lm.throughput import Stopwatch


class NonFiniteStep(Exception):
    """A step whose loss, gradient or update is not finite."""

    def __init__(self, dispatched: "Dispatched", metrics: Metrics):
        super().__init__(f"step {dispatched.step} is not finite")
        self.step, self.batch, self.metrics = dispatched.step, dispatched.batch, metrics


class Dispatched(NamedTuple):
    """A step that the device may still be busy with."""

    step: int
    batch: dict[str, np.ndarray]
    metrics: Metrics


class Recorder:
    """Records every step when the one after it is under way, so that the device never waits.

    Attributes:
        tokens: trained on in the recorded steps and before, padding left out.
    """

    def __init__(
        self,
        metrics_log: MetricsLog | None,
        progress: Progress,
        *,
        tokens: int,
        log_every: int,
        steps: int,
        flops_per_token: float,
        peak_flops_per_s: float,
    ):
        """``flops_per_token``: forward and backward; ``metrics_log``: None writes nothing."""
        self.tokens = tokens
        self._metrics_log = metrics_log
        self._progress = progress
        self._log_every = log_every
        self._steps = steps
        self._peak_tokens_per_s = peak_flops_per_s / flops_per_token
        self._stopwatch = Stopwatch()
        self._pending: Dispatched | None = None

    def begin(self) -> None:
        """A step is about to be prepared."""
        if self._pending is None:
            self._stopwatch.start()

    def add(self, dispatched: Dispatched) -> None:
        """Record the step before this one; raises `NonFiniteStep` if it was not finite."""
        previous, self._pending = self._pending, dispatched
        if previous is not None:
            self._record(previous)

    def flush(self) -> None:
        """Wait for the latest step and record it; raises `NonFiniteStep` if it was not finite."""
        previous, self._pending = self._pending, None
        if previous is not None:
            self._record(previous)

    def _record(self, dispatched: Dispatched) -> None:
        metrics: Metrics = jax.device_get(dispatched.metrics)
        if not metrics.finite:
            raise NonFiniteStep(dispatched, metrics)
        step = dispatched.step
        self.tokens += int(metrics.tokens)
        self._stopwatch.step_done(int(metrics.tokens))
        self._progress.step(step)
        if step % self._log_every != 0 and step != self._steps:
            return
        rate = self._stopwatch.rate()
        row = Row(
            step=step,
            loss=float(metrics.loss),
            grad_norm=float(metrics.grad_norm),
            learning_rate=float(metrics.learning_rate),
            tokens=self.tokens,
            tokens_per_s=rate.tokens_per_s,
            step_ms=rate.step_ms,
            mfu=rate.tokens_per_s / self._peak_tokens_per_s,
        )
        self._progress.row(row)
        if self._metrics_log is not None:
            self._metrics_log.write(row, {k: float(v) for k, v in metrics.grad_norms.items()})
