"""Long-document perplexity of a model and of its layer groups, by position.

The command ``python -m hybrid_lm.evaluate RUN_DIR`` evaluates the newest checkpoint of a run.
"""

import dataclasses
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from hybrid_lm import compilation_cache, declared, report, sharding
from hybrid_lm.checkpoint import load_params
from hybrid_lm.cli import arguments, parse
from hybrid_lm.config import Config
from hybrid_lm.data.corpus import Corpus, evaluation_documents
from hybrid_lm.data.prepare import prepare
from hybrid_lm.errors import UserError, exit_on_user_error
from hybrid_lm.loss import token_nll
from hybrid_lm.mixers import Context
from hybrid_lm.model import Model, Params, count
from hybrid_lm.octaves import BLOCK, octave_means, octave_sums, octaves
from hybrid_lm.results import Bucket, ExitBucket, GroupReport, Knockout, KnockoutBucket, Report
from hybrid_lm.run_dir import RunDir
from hybrid_lm.sharding import MeshConfig
from hybrid_lm.statistics import (
    ci95,
    interval_method,
    minimum_detectable_effect,
    require_enough,
    win_rate,
)

_LARGEST_NLL = 700.0  # nats per token: exp of it is still a float64


class Evaluator:
    """Scores a fixed set of documents, each alone in its row, from its start in one pass.

    The documents are chosen and the two programs (the stack; the NLL of a residual stream) are
    compiled once. A knock-out runs the same program as the whole model, with one group's mixers
    skipped, so that a difference between the two is never one of compilation.

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
        self.model, self.corpus, self.config, self.mesh = model, corpus, config, mesh
        self.split = split or config.evaluation.split
        self.length = config.evaluation_length if length is None else length
        limit = config.evaluation.documents if documents is None else documents
        if self.length < 1:
            raise UserError(f"evaluation.length is {self.length}; it must be positive")
        require_enough(limit, config.evaluation.resamples)
        chosen = evaluation_documents(corpus, self.split, length=self.length, limit=limit)
        indices, tokens, targets = zip(*chosen, strict=True)
        self.document_indices: tuple[int, ...] = indices
        self._tokens_BL = np.stack(tokens)
        self._targets_BL = np.stack(targets)
        self._dtype = jnp.dtype(config.train.dtype)
        self._costs = [model.group_cost(g, self.length, self._dtype) for g in model.plan.groups]
        self._mixers = declared.mixers(model, self.length, self._dtype)
        self._flops_per_token = model.flops_per_token(self.length, self._dtype)
        whole = NamedSharding(mesh, PartitionSpec())
        self._forward = jax.jit(self._exits)
        self._score = jax.jit(self._block_nats, out_shardings=whole)

    def run(
        self,
        params: Params,
        *,
        step: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> Report:
        """Evaluate ``params``; ``on_progress(done, total)`` counts passes over a batch.

        Raises:
            UserError: if an NLL is not finite, naming the group and the document.
        """
        groups = [group.name for group in self.model.plan.groups]
        documents, rows = len(self._tokens_BL), self.config.evaluation.batch_size
        total, done = -(-documents // rows) * (1 + len(groups)), 0
        shape = (len(groups), documents, -(-self.length // BLOCK))
        exit_nats, knockout_nats = np.zeros(shape), np.zeros(shape)
        with jax.set_mesh(self.mesh):
            keep_all, *keeps = jax.device_put(
                [np.ones(len(groups), bool), *~np.eye(len(groups), dtype=bool)],
                NamedSharding(self.mesh, PartitionSpec()),
            )
            for first in range(0, documents, rows):
                # The last batch is filled up with its last document.
                batch = np.minimum(np.arange(first, first + rows), documents - 1)
                tokens_BL, targets_BL = self._put(batch)
                for g, exit_BLD in enumerate(self._forward(params, tokens_BL, keep_all)):
                    nats = jax.device_get(self._score(params, exit_BLD, targets_BL))
                    self._check(nats, batch, step, f"at the exit of group {groups[g]!r}")
                    exit_nats[g, batch] = nats
                for g, keep_G in enumerate(keeps):
                    done += 1
                    if on_progress is not None:
                        on_progress(done, total)
                    last_BLD = self._forward(params, tokens_BL, keep_G)[-1]
                    nats = jax.device_get(self._score(params, last_BLD, targets_BL))
                    self._check(nats, batch, step, f"without group {groups[g]!r}")
                    knockout_nats[g, batch] = nats
                done += 1
                if on_progress is not None:
                    on_progress(done, total)
        return self._report(params, exit_nats, knockout_nats, step)

    def _exits(self, params: Params, tokens_BL: jax.Array, keep_G: jax.Array) -> list[jax.Array]:
        ctx = Context.of_documents(
            *tokens_BL.shape,
            dtype=self._dtype,
            implementation=self.config.train.implementation,
        )
        return self.model.apply(params, tokens_BL, ctx, keep_G=keep_G).exits

    def _block_nats(self, params: Params, x_BLD: jax.Array, targets_BL: jax.Array) -> jax.Array:
        """Float32 sums of the NLL over every `BLOCK` tokens, [B, blocks], to add in float64."""
        readout_BLD = self.model.readout(params, x_BLD)
        nll_BL = token_nll(readout_BLD, params["embedding"], targets_BL)
        nll_BL = jnp.pad(nll_BL, ((0, 0), (0, -self.length % BLOCK)))
        return nll_BL.reshape(len(nll_BL), -1, BLOCK).sum(axis=-1)

    def _put(self, batch: np.ndarray) -> tuple[jax.Array, jax.Array]:
        shape = (len(batch), self.length)
        spec = sharding.spec(("batch", "length"), shape, self.mesh)
        pair = (self._tokens_BL[batch], self._targets_BL[batch])
        return jax.device_put(pair, NamedSharding(self.mesh, spec))

    def _check(self, nats: np.ndarray, batch: np.ndarray, step: int, where: str) -> None:
        nll_B = nats.sum(axis=-1) / self.length
        for nll, place in zip(nll_B, batch, strict=True):
            if not nll < _LARGEST_NLL:
                name = self.corpus.split(self.split).names[self.document_indices[place]]
                raise UserError(
                    f"evaluation at step {step}: the NLL {where} is {nll} nats per token in "
                    f"document {name!r}; evaluate an earlier checkpoint or a lower learning rate"
                )

    def _report(
        self, params: Params, exit_nats: np.ndarray, knockout_nats: np.ndarray, step: int
    ) -> Report:
        """The report of the block sums, [groups, documents, blocks]."""
        config, model, length = self.config, self.model, self.length
        manifest, split = self.corpus.manifest, self.corpus.split(self.split)
        spans = octaves(length)
        exit_nats = octave_sums(exit_nats, length)
        knockout_nats = octave_sums(knockout_nats, length)
        nats = exit_nats[-1]
        resamples = config.evaluation.resamples
        total, buckets = octave_means(nats, length, resamples=resamples)
        bytes_d = self.corpus.tokenizer.token_bytes_V[self._targets_BL].sum(axis=1)
        bits_d = nats.sum(axis=1) / np.log(2)
        bits_ci95 = ci95(bits_d[:, None], bytes_d[:, None], resamples=resamples)
        groups = tuple(
            GroupReport(
                name=group.name,
                pattern=group.pattern,
                layers=group.layers,
                params=count(params["groups"][group.name]),
                flops_per_token=self._costs[g].flops_per_token,
                state_bytes=self._costs[g].state_bytes,
                exit_nll=(exit_nll := float(exit_nats[g].sum() / self._targets_BL.size)),
                exit_perplexity=math.exp(exit_nll),
                exit_buckets=tuple(
                    ExitBucket(start, end, float(exit_nats[g, :, i].mean() / (end - start)))
                    for i, (start, end) in enumerate(spans)
                ),
                knockout=self._knockout(knockout_nats[g] - nats),
            )
            for g, group in enumerate(model.plan.groups)
        )
        return Report(
            documents=len(nats),
            tokens=self._targets_BL.size,
            bytes=int(bytes_d.sum()),
            nll=total.nats,
            nll_ci95=total.ci95,
            perplexity=math.exp(total.nats),
            perplexity_ci95=(_exp(total.ci95[0]), _exp(total.ci95[1])),
            bits_per_byte=float(bits_d.sum() / bytes_d.sum()),
            bits_per_byte_ci95=(float(bits_ci95[0, 0]), float(bits_ci95[0, 1])),
            buckets=tuple(
                Bucket(start, end, *bucket, beyond_training=end > config.train.length)
                for (start, end), bucket in zip(spans, buckets, strict=True)
            ),
            groups=groups,
            mixers=self._mixers,
            split=self.split,
            length=length,
            training_length=config.train.length,
            step=step,
            params=count(params),
            flops_per_token=self._flops_per_token,
            state_bytes=sum(cost.state_bytes for cost in self._costs),
            dtype=config.train.dtype,
            device=f"{self.mesh.size} x {self.mesh.devices.flat[0].device_kind}",
            jax_version=jax.__version__,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            interval_method=interval_method(len(nats)),
            resamples=resamples,
            corpus={
                "source": manifest["source"]["name"],
                "fingerprint": manifest["source"]["fingerprint"],
                "tokenizer": manifest["tokenizer"]["kind"],
                "vocab_size": manifest["tokenizer"]["vocab_size"],
                "tokenizer_sha256": manifest["tokenizer"]["sha256"],
                "split_sha256": manifest["splits"][self.split]["sha256"],
            },
            document_indices=self.document_indices,
            document_names=tuple(split.names[index] for index in self.document_indices),
        )

    def _knockout(self, delta_nats: np.ndarray) -> Knockout:
        """Statistics of differences to the whole model, [documents, octaves]."""
        total, buckets = octave_means(
            delta_nats, self.length, resamples=self.config.evaluation.resamples
        )
        delta_d = delta_nats.sum(axis=1) / self.length
        return Knockout(
            delta_nll=total.nats,
            ci95=total.ci95,
            win_rate=win_rate(delta_d),
            minimum_detectable_effect=minimum_detectable_effect(delta_d),
            buckets=tuple(
                KnockoutBucket(start, end, *bucket)
                for (start, end), bucket in zip(octaves(self.length), buckets, strict=True)
            ),
        )


def _exp(nats: float) -> float:
    """Of an end of an interval, which with few documents may lie beyond any real perplexity."""
    return math.exp(min(nats, _LARGEST_NLL))


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
    output: Path | None = None
    """Directory of the report's files. None: RUN_DIR/report, with the settings that differ
    from the run's in its name."""


def main() -> None:
    """Evaluate a run's newest checkpoint, write the report and print its table."""
    options = parse(Options, arguments(), description=__doc__ or "")
    compilation_cache.enable()
    run_dir = RunDir(options.run_dir)
    config = run_dir.config()
    if options.batch_size is not None:
        evaluation = dataclasses.replace(config.evaluation, batch_size=options.batch_size)
        config = dataclasses.replace(config, evaluation=evaluation)
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
    console = Console(stderr=True)
    with Progress(
        TextColumn("evaluating step {task.fields[step]:,}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=None, step=step)

        def on_progress(done: int, total: int) -> None:
            progress.update(task, completed=done, total=total)

        results = evaluator.run(params, step=step, on_progress=on_progress)
    report.write(results, directory)
    output = Console(width=None if sys.stdout.isatty() else 100)
    output.print(report.render(results))
    output.print(f"\nwritten to {directory}", soft_wrap=True, highlight=False)


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
