"""Ending a run early and cleanly: SIGTERM, or Ctrl-C once."""

import logging
import signal
from types import FrameType

import jax
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class Interrupted(Exception):
    """Raised out of work that can be done again, such as an evaluation, to save and end."""


class StopSignal:
    """While entered, the first SIGTERM or SIGINT asks to stop; the next acts as it usually would.

    With several processes signals are left to JAX, which has all of them stop at the same step.
    """

    def __init__(self):
        self._name: str | None = None
        self._previous = {}

    def __enter__(self) -> "StopSignal":
        signals = (signal.SIGTERM, signal.SIGINT) if jax.process_count() == 1 else ()
        self._previous = {number: signal.signal(number, self._ask) for number in signals}
        return self

    def __exit__(self, *exception) -> None:
        self._restore()

    def asked(self, step: int) -> bool:
        """Whether to stop after ``step``; every process calls it with every step."""
        if jax.process_count() > 1:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._name is not None

    def raise_if_asked(self) -> None:
        """Raise `Interrupted` if the signal came."""
        if self._name is not None:
            raise Interrupted(self._name)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._name = signal.Signals(number).name
        self._restore()
        log.info("%s: saving and ending; a second one ends at once", self._name)

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
