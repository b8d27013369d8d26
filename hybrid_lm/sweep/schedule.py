"""Run the commands of many runs, a few at a time, each in a process of its own."""

import fcntl
import logging
import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from hybrid_lm.errors import UserError
from hybrid_lm.stop import StopSignal
from hybrid_lm.sweep.runs import Run

POLL_S = 0.2

log = logging.getLogger("hybrid_lm.sweep")


def device_slots(parallel: int) -> list[dict[str, str]]:
    """Environment of each process that runs at a time.

    One process at a time has all devices; several have a GPU each where there are GPUs.

    Raises:
        UserError: if there are fewer GPUs than processes.
    """
    if parallel < 1:
        raise UserError(f"--parallel is {parallel}; it must be positive")
    gpus = _gpus()
    if parallel == 1 or not gpus:
        return [{}] * parallel
    if parallel > len(gpus):
        raise UserError(
            f"--parallel {parallel}, but {len(gpus)} GPU(s): a process takes a GPU for itself"
        )
    return [{"CUDA_VISIBLE_DEVICES": gpu} for gpu in gpus[:parallel]]


def run_all(
    runs: Sequence[Run],
    slots: Sequence[Mapping[str, str]],
    *,
    on_poll: Callable[[list[Run]], None],
) -> tuple[dict[str, str], bool]:
    """Do what is left of every run, as many at a time as there are slots.

    A run that fails stops no other. The first SIGTERM or Ctrl-C has the processes save and end.
    Processes that outlived the kill of an earlier sweep are waited for.

    Args:
        slots: environment variables of the processes in each place.
        on_poll: gets the runs at work, several times a second.

    Returns:
        (errors by name of the run, whether a signal ended it).
    """
    left, errors = deque(runs), {}
    jobs: list[_Job | None] = [None] * len(slots)
    with StopSignal() as stop:
        try:
            while left or any(jobs):
                stopping = stop.asked(0)
                if stopping:
                    left.clear()
                for place, env in enumerate(slots):
                    job = jobs[place]
                    if job is None and left:
                        job = jobs[place] = _Job(left.popleft(), env)
                    if job is not None and job.advance(stopping):
                        jobs[place] = None
                        if job.error is not None:
                            errors[job.run.name] = job.error
                on_poll([job.run for job in jobs if job is not None])
                if any(jobs):
                    time.sleep(POLL_S)
            return errors, stop.asked(0)
        finally:
            for job in jobs:
                if job is not None:
                    job.kill()


class _Job:
    """The commands of one run, one after the other.

    Attributes:
        error: what went wrong, in a line.
    """

    def __init__(self, run: Run, env: Mapping[str, str]):
        self.run, self.error = run, None
        self._env = env
        self._command: list[str] | None = None
        self._process: subprocess.Popen | None = None
        self._log_start = 0
        self._has_waited = self._has_ended = False

    def advance(self, stopping: bool) -> bool:
        """Look at the process, start the next; whether the run is at its end."""
        try:
            return self._advance(stopping)
        except (UserError, OSError) as error:  # of this run's directory; the others go on
            self._fail(str(error))
            return True

    def _advance(self, stopping: bool) -> bool:
        if self._process is None:
            return stopping or self._start()
        if stopping and not self._has_ended:
            self._process.terminate()
            self._has_ended = True
        code = self._process.poll()
        if code is None:
            return False
        self._process = None
        if stopping:
            return True
        if code != 0:
            self._fail(_last_error(self.run.log, self._log_start, code))
        elif self.run.next_command() == self._command:
            self._fail("ended before its end, with exit code 0")
        return self.error is not None or self._start()

    def kill(self) -> None:
        """End the process at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _start(self) -> bool:
        """Start the next command; True if there is none."""
        if self.run.next_command() is None:
            log.info("%s: done", self.run.name)
            return True
        with self.run.log.open("ab") as output:
            try:
                # The process inherits the lock with its output, and holds it as long as it lives.
                fcntl.flock(output, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if not self._has_waited:
                    log.info("%s: waiting for the process of another sweep", self.run.name)
                self._has_waited = True
                return False
            self._command = self.run.next_command()
            if self._command is None:
                log.info("%s: done", self.run.name)
                return True
            log.info("%s: %s", self.run.name, " ".join(["python", *self._command[1:]]))
            self._log_start = output.tell()
            self._process = subprocess.Popen(
                self._command,
                env={**os.environ, **self._env},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C comes once, from here
            )
        return False

    def _fail(self, error: str) -> None:
        self.error = error
        log.error("%s: failed: %s (%s)", self.run.name, error, self.run.log)


def _last_error(path: Path, start: int, code: int) -> str:
    """The last error line of what a failed process printed, or the signal that ended it."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}"
    with path.open("rb") as file:
        file.seek(start)
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
    for line in reversed(lines):
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    return next(filter(None, reversed(lines)), f"exit code {code}")


def _gpus() -> list[str]:
    """CUDA's names of the GPUs that processes started from here see."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [name for name in chosen.split(",") if name]
    return [str(i) for i, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]
