"""What a study would run: its points, what they cost, and what is done of them."""

from collections.abc import Sequence

from rich.console import Group
from rich.table import Table

from hybrid_lm.data.prepare import find_prepared
from hybrid_lm.dry_run import vocab_size
from hybrid_lm.model import Model, count
from hybrid_lm.run_dir import find_run
from hybrid_lm.sweep.runs import Run


def describe(runs: Sequence[Run]) -> Group:
    """A table of points, to be printed.

    Raises:
        UserError: for a point that cannot be built, or a source that is not there.
    """
    table = Table(box=None)
    for column in ("point", "pattern"):
        table.add_column(column, overflow="fold")
    for column in ("params", "FLOPs/token", "steps", "tokens"):
        table.add_column(column, justify="right")
    table.add_column("seeds", overflow="fold")
    points: dict[str, list[Run]] = {}
    for run in runs:
        points.setdefault(run.point, []).append(run)
    for name, of_seeds in points.items():
        config = of_seeds[0].config
        corpus = find_prepared(config.data)
        model = Model(config.model, vocab_size(config, corpus))
        train = config.train
        table.add_row(
            name,
            str(model.plan),
            f"{count(model.abstract_params()):,}",
            f"{model.flops_per_token(train.length, train.dtype):.4g}",
            f"{train.steps:,}",
            f"{_tokens(of_seeds[0]):,}",
            ", ".join(f"{run.seed} {state(run)}" for run in of_seeds),
        )
    done = [run for run in runs if run.next_command() is None]
    left = sum(_tokens(run) * (1 - run.step() / run.config.train.steps) for run in runs)
    lengths = sorted({n for run in runs for n in run.lengths})
    evaluated = " and ".join(f"{length:,}" for length in lengths)
    return Group(
        table,
        "",
        f"{len(runs)} runs, {len(done)} done; {left:,.0f} of "
        f"{sum(map(_tokens, runs)):,} tokens left to train on",
        f"evaluated at {evaluated} tokens; FLOPs: forward, mean over a row of training",
    )


def state(run: Run) -> str:
    """How far a run is, in a word or two."""
    if run.next_command() is None:
        return "done"
    if find_run(run.directory) is None:
        return "left"
    return f"at step {run.step():,}"


def _tokens(run: Run) -> int:
    train = run.config.train
    return train.steps * train.batch_size * train.length
