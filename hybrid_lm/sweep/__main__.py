"""Train every point of a study with every seed, and compare the points.

    python -m hybrid_lm.sweep --config exp/NAME.py [--dry-run] [--parallel N] [--OPTION VALUE ...]

NAME.py has a function sweep(). Every field of the config is an option for all points. The same
command goes on where an earlier one ended; a point that failed stops no other one.
"""

import dataclasses
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import jax
import tyro
from rich.console import Console

from hybrid_lm import cli
from hybrid_lm import config as configs
from hybrid_lm.config import Config, Sweep
from hybrid_lm.errors import UserError, exit_on_user_error
from hybrid_lm.progress import log_to
from hybrid_lm.sweep import dry_run, tables
from hybrid_lm.sweep.progress import SweepProgress
from hybrid_lm.sweep.results import collect
from hybrid_lm.sweep.runs import Run, runs_of
from hybrid_lm.sweep.schedule import device_slots, run_all

log = logging.getLogger("hybrid_lm.sweep")  # also as __main__


@dataclass(frozen=True)
class Options:
    """What to run of a study, and where to keep it."""

    config: str
    """Python file whose sweep() is the study: a path, or a name in experiments/."""
    only: str | None = None
    """Points to run, NAME,NAME; the table at the end has all points. None: all."""
    seeds: str | None = None
    """Seeds, N,N. None: those of the study."""
    baseline: str | None = None
    """The point that the others are compared with. None: that of the study."""
    parallel: int = 1
    """Runs at a time. With more than one, each has one GPU; on CPUs they share the cores."""
    sweep_dir: Path | None = None
    """Directory of the runs, of sweep.md, its figures and sweep.json. None: runs/NAME."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the points, their costs and what is done of them; nothing is run or written."""


@dataclass(frozen=True)
class _All:
    """The options and those of training, for ``--help`` and for names mistyped."""

    own: Annotated[Options, tyro.conf.arg(name="")]
    run: Annotated[Config, tyro.conf.arg(name="")]


def parse(args: list[str]) -> tuple[Options, Sweep, list[str]]:
    """(options, the study with them, options of training for every point).

    Raises:
        UserError: for a file without a study, or an option that cannot be used.
    """
    name = cli.take(list(args), "--config")
    if name is None and not {"--help", "-h"} & set(args):
        raise UserError("no --config; it names the Python file of a study, with a sweep()")
    if name is None:
        cli.parse(_All, ["--help"], description=__doc__ or "")
    study = configs.load_sweep(str(name))
    default = _All(Options(str(name)), next(iter(study.points.values())))
    cli.parse(_All, args, default=default, description=__doc__ or "")
    options, overrides = cli.parse_known(Options, args)
    if any(argument.split("=")[0] == "--train.seed" for argument in overrides):
        raise UserError("the seeds of a sweep are given with --seeds")
    study = dataclasses.replace(
        study,
        baseline=options.baseline or study.baseline,
        seeds=study.seeds if options.seeds is None else _seeds(options.seeds),
    )
    return options, study, overrides


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(seed) for seed in text.split(","))
    except ValueError:
        raise UserError(f"--seeds {text!r}: integers with commas between, as in 0,1") from None


def _chosen(runs: list[Run], study: Sweep, only: str | None) -> list[Run]:
    if only is None:
        return runs
    names = only.split(",")
    for name in names:
        study.point(name)
    return [run for run in runs if run.point in names]


def main() -> None:
    """Run what is left of a study and write its table."""
    options, study, overrides = parse(cli.arguments())
    jax.config.update("jax_platforms", "cpu")  # the devices are for the runs' own processes
    directory = options.sweep_dir or Path("runs", configs.find(options.config).stem)
    runs = runs_of(study, name=options.config, overrides=overrides, directory=directory)
    chosen = _chosen(runs, study, options.only)
    for run in runs:
        run.require_same_config()
    slots = device_slots(options.parallel)
    output = Console(width=None if sys.stdout.isatty() else 100)
    if options.dry_run:
        output.print(dry_run.describe(chosen))
        return
    console = Console(stderr=True)
    with log_to(console):
        try:
            directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{directory} cannot be written: {error}") from error
        with SweepProgress(console, chosen) as progress:
            errors, stopped = run_all(chosen, slots, on_poll=progress.update)
        results = collect(study, runs, errors)
        tables.write(results, directory)
        output.print(tables.render(results))
        output.print(f"\nwritten to {directory}", soft_wrap=True, highlight=False)
        if stopped:
            log.info("stopped; the same command goes on from there")
    if errors:
        sys.exit(1)


if __name__ == "__main__":
    exit_on_user_error(main)
