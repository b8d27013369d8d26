"""Long-document perplexity of a model and of its layer groups, by position.

The command ``python -m hybrid_lm.evaluate RUN_DIR`` evaluates the newest checkpoint of a run.
"""

import dataclasses
import itertools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import jax
import tyro
from jax.sharding import Mesh
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from hybrid_lm import compilation_cache, report
from hybrid_lm.checkpoint import load_params
from hybrid_lm.cli import arguments, parse
from hybrid_lm.config import Config
from hybrid_lm.data.corpus import Corpus
from hybrid_lm.data.prepare import prepare
from hybrid_lm.errors import UserError, exit_on_user_error
from hybrid_lm.instruments import suite, table
from hybrid_lm.instruments.bench import Bench, Session
from hybrid_lm.instruments.documents import Documents
from hybrid_lm.model import Model, Params
from hybrid_lm.results import LEFT_TO_EVALUATE, NotRun, Report
from hybrid_lm.run_dir import RunDir
from hybrid_lm.sharding import MeshConfig
from hybrid_lm.statistics import require_enough


class Evaluator:
    """Scores a fixed set of documents, each alone in its row, from its start in one pass.

    The documents are chosen and the programs are compiled once.

    Raises:
        UserError: if fewer than two documents of the split are as long as ``length``.
    """

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        config: Config,
        mesh: Mesh,
        *,
        split: str | None = None,
        length: int | None = None,
        documents: int | None = None,
    ):
        self.corpus = corpus
        self.split = split or config.evaluation.split
        self.length = config.evaluation_length if length is None else length
        limit = config.evaluation.documents if documents is None else documents
        if self.length < 1:
            raise UserError(f"evaluation.length is {self.length}; it must be positive")
        require_enough(limit, config.evaluation.resamples)
        chosen = Documents.choose(corpus, self.split, length=self.length, limit=limit)
        self.bench = Bench(model, config, mesh, chosen)

    def run(
        self,
        params: Params,
        *,
        step: int,
        on_progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Report:
        """The table of ``params``, without the instruments of `hybrid_lm.instruments.suite`.

        ``on_progress(done, total)`` counts passes over a batch.

        Raises:
            UserError: if an NLL is not finite, naming the group and the document.
        """
        total = table.passes(self.bench)
        passes = itertools.count(1)
        session = Session(
            self.bench, params, step=step, advance=lambda _: on_progress(next(passes), total)
        )
        with jax.set_mesh(self.bench.mesh):
            measured = table.measure(session)
        report = table.report(session, self.corpus, measured)
        not_run = tuple(NotRun(part.name, LEFT_TO_EVALUATE) for part in suite.INSTRUMENTS)
        return dataclasses.replace(report, not_run=not_run)


@dataclass(frozen=True)
class Options:
    """What to evaluate, where it is not as in the run's config."""

    run_dir: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN_DIR")]
    """The run; its newest intact checkpoint is evaluated."""
    corpus: str | None = None
    """Other documents, read with the run's tokenizer: a path, glob or hub:owner/name."""
    text_column: str | None = None
    """Column of the other corpus that holds the documents. None: as in the run's."""
    length: int | None = None
    """Tokens scored of each document, also beyond the rows of training. None: as in the run."""
    split: Literal["validation", "test"] | None = None
    """Documents that are scored. None: as in the run."""
    documents: int | None = None
    """At most so many, evenly spaced over those that are long enough. None: as in the run."""
    batch_size: int | None = None
    """Documents scored at a time. None: as in the run."""
    resamples: int = 10_000
    """Bootstrap resamples of the documents behind each interval."""
    only: str | None = None
    """Instruments, separated by commas: causality, knockout, field, shapley, token_classes,
    scoring, lens, or table for none of them. None: all but lens."""
    lens: bool = False
    """Also train a tuned lens on training documents (kept in RUN_DIR/lens)."""
    output: Path | None = None
    """Directory of the report's files. None: RUN_DIR/report, with the settings that differ
    from the run's in its name."""


def main() -> None:
    """Evaluate a run's newest checkpoint, write the report and print its table."""
    options = parse(Options, arguments(), description=__doc__ or "")
    names = suite.chosen(options.only, options.lens)
    compilation_cache.enable()
    run_dir = RunDir(options.run_dir)
    config = _config(run_dir.config(), options)
    corpus = _open_corpus(run_dir, config, options)
    mesh = MeshConfig().build()
    model = Model(config.model, corpus.vocab_size)
    evaluator = Evaluator(
        model,
        corpus,
        config,
        mesh,
        split=options.split,
        length=options.length,
        documents=options.documents,
    )
    directory = options.output or run_dir.path / _report_name(evaluator, options, config)
    if options.output is not None and (options.output / "report.json").exists():
        raise UserError(f"{options.output} already holds a report; name another directory")
    params, step = load_params(run_dir, model, mesh)
    with _progress(step) as on_progress:
        results = suite.run(
            evaluator.bench,
            corpus,
            params,
            step=step,
            names=names,
            directory=directory / "instruments",
            kept=run_dir.path / "lens",
            on_progress=on_progress,
        )
    report.write(results, directory)
    report.write_events(results, directory)
    output = Console(width=None if sys.stdout.isatty() else 100)
    output.print(report.render(results))
    output.print(f"\nwritten to {directory}", soft_wrap=True, highlight=False)


def _config(config: Config, options: Options) -> Config:
    """The run's, with what the options change."""
    changes: dict[str, int] = {"resamples": options.resamples}
    if options.batch_size is not None:
        changes["batch_size"] = options.batch_size
    evaluation = dataclasses.replace(config.evaluation, **changes)
    return dataclasses.replace(config, evaluation=evaluation)


@contextmanager
def _progress(step: int) -> Iterator[Callable[[str, float], None]]:
    """A bar with the time left over all instruments; a line for each where there is no terminal."""
    console, begun = Console(stderr=True), set()
    bar = Progress(
        TextColumn("evaluating step {task.fields[step]:,}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[instrument]}"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    task = bar.add_task("", total=1.0, step=step, instrument="")

    def on_progress(name: str, share: float) -> None:
        bar.update(task, completed=share, instrument=name)
        if not console.is_terminal and name not in begun:
            begun.add(name)
            console.print(f"evaluating step {step:,}: {name}, {share:.0%} done")

    with bar:
        yield on_progress


def _open_corpus(run_dir: RunDir, config: Config, options: Options) -> Corpus:
    """The run's corpus, or another one in the tokens of the run."""
    if options.corpus is not None:
        text_column = options.text_column or config.data.text_column
        data = dataclasses.replace(config.data, source=options.corpus, text_column=text_column)
        return prepare(data, tokenizer=run_dir.tokenizer())
    if options.text_column is not None:
        raise UserError("--text-column goes with --corpus")
    corpus = prepare(config.data)
    try:
        run_dir.require_corpus(corpus)
    except UserError as error:
        # Documents trained on may by now be among those held out.
        raise UserError(
            f"{error}; --corpus {config.data.source} evaluates on it as it is now"
        ) from error
    return corpus


def _report_name(evaluator: Evaluator, options: Options, config: Config) -> str:
    """``report``, and what differs from the run's own evaluation."""
    evaluation = config.evaluation
    parts = ["report"]
    if evaluator.split != evaluation.split:
        parts.append(evaluator.split)
    if evaluator.length != config.evaluation_length:
        parts.append(f"length{evaluator.length}")
    if options.documents not in (None, evaluation.documents):
        parts.append(f"documents{options.documents}")
    if options.corpus is not None:
        parts.append(evaluator.corpus.directory.name)
    return "-".join(parts)


if __name__ == "__main__":
    exit_on_user_error(main)
