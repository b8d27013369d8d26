"""Time what runs on the device at hand: every mixer, every kernel, or a config's training step.

``--output DIR`` keeps the result as JSON and markdown, with the rows that are there already.
"""

from dataclasses import dataclass
from pathlib import Path

import tyro

from hybrid_lm.bench.kernels import Kernels
from hybrid_lm.bench.mixers import Mixers
from hybrid_lm.bench.results import publish
from hybrid_lm.bench.step import Step
from hybrid_lm.cli import arguments, parse, take
from hybrid_lm.errors import exit_on_user_error


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    what: tyro.conf.OmitSubcommandPrefixes[tyro.conf.OmitArgPrefixes[Mixers | Kernels | Step]]


def main() -> None:
    args = arguments()
    output = take(args, "--output")
    what = parse(Arguments, args, description=__doc__ or "").what
    name = f"bench_{type(what).__name__.lower()}"
    publish(name, what.rows(), Path(output) if output else None, what.form())


if __name__ == "__main__":
    exit_on_user_error(main)
