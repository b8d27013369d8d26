"""What a comparison of runs found, as data: the content of ``compare.json``."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hybrid_lm import report as reports
from hybrid_lm.compare.difference import Difference, difference
from hybrid_lm.compare.documents import require_same_documents
from hybrid_lm.compare.throughput import (
    Budget,
    Curve,
    LossPoint,
    curve,
    iso_time,
    iso_tokens,
    loss_points,
)
from hybrid_lm.errors import UserError
from hybrid_lm.results import Bucket, Interval, Report
from hybrid_lm.run_dir import RunDir

CAVEATS = (
    "Differences are paired by document; their intervals cover the choice of documents, not that "
    "of the training seed: python -m hybrid_lm.sweep trains several seeds.",
    "Intervals are per cell and not corrected for the number of runs or positions.",
    "At equal tokens or time: training loss, of batches that are the same only where seed, data "
    "and rows are. A run that is cut before its end has not let its learning rate decay.",
    "Time is that of training steps, without compilation, checkpoints and evaluations.",
)


@dataclass(frozen=True)
class RunSummary:
    """One run: what it is, what it cost, how good it is."""

    name: str
    path: str
    pattern: str
    step: int
    seed: int
    params: int
    flops_per_token: float
    """Forward, on a document of the evaluated length."""
    state_bytes: int
    trained_tokens: int
    train_seconds: float
    tokens_per_s: float
    """Median over training."""
    mfu: float
    """Median over training."""
    device: str
    """That of the evaluation."""
    nll: float
    nll_ci95: Interval
    bits_per_byte: float
    bits_per_byte_ci95: Interval
    buckets: tuple[Bucket, ...]
    training_loss: tuple[LossPoint, ...]
    difference: Difference | None
    """To the first run; None for that one."""


@dataclass(frozen=True)
class Comparison:
    """Several runs on the same documents; the first is the baseline."""

    runs: tuple[RunSummary, ...]
    split: str
    documents: int
    length: int
    training_lengths: tuple[int, ...]
    """Tokens of a row in training, of every run."""
    interval_method: str
    resamples: int
    corpus: dict[str, Any]
    document_indices: tuple[int, ...]
    """Place of each document in its split."""
    document_names: tuple[str, ...]
    iso_tokens: tuple[Budget, ...]
    """Training loss at equal tokens."""
    iso_time: tuple[Budget, ...]
    """Training loss at equal seconds of training."""
    caveats: tuple[str, ...] = CAVEATS

    def to_json(self) -> dict[str, Any]:
        """The comparison as JSON-ready dicts and lists."""
        return json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))


def compare(paths: Sequence[Path], *, report_name: str = "report") -> Comparison:
    """Compare the runs in directories ``paths`` with the first of them.

    Raises:
        UserError: for fewer than two runs, one named twice, a path that is no run or has no such
            report, and reports that are not of the same documents.
    """
    if len(paths) < 2:
        raise UserError("a comparison needs at least two runs")
    names = _names(paths)
    run_dirs = [RunDir(path) for path in paths]
    found = [reports.read(path / report_name) for path in paths]
    require_same_documents(dict(zip(names, found, strict=True)))
    curves = [
        curve(run_dir, until=report.step) for run_dir, report in zip(run_dirs, found, strict=True)
    ]
    base = found[0]
    return Comparison(
        runs=tuple(
            _summary(name, run_dir, report, curve, None if report is base else base)
            for name, run_dir, report, curve in zip(names, run_dirs, found, curves, strict=True)
        ),
        split=base.split,
        documents=base.documents,
        length=base.length,
        training_lengths=tuple(report.training_length for report in found),
        interval_method=base.interval_method,
        resamples=base.resamples,
        corpus=base.corpus,
        document_indices=base.document_indices,
        document_names=base.document_names,
        iso_tokens=iso_tokens(curves),
        iso_time=iso_time(curves),
    )


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or all of it where two would have the same name."""
    for i, path in enumerate(paths):
        if path.resolve() in [other.resolve() for other in paths[:i]]:
            raise UserError(f"{path} is given twice")
    names = [path.resolve().name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def _summary(
    name: str, run_dir: RunDir, report: Report, curve: Curve, base: Report | None
) -> RunSummary:
    config = run_dir.config()
    return RunSummary(
        name=name,
        path=str(run_dir.path),
        pattern="; ".join(f"{group.name}: {group.pattern}" for group in report.groups),
        step=report.step,
        seed=config.train.seed,
        params=report.params,
        flops_per_token=report.flops_per_token,
        state_bytes=report.state_bytes,
        trained_tokens=int(curve.tokens[-1]),
        train_seconds=float(curve.seconds[-1]),
        tokens_per_s=curve.tokens_per_s,
        mfu=curve.mfu,
        device=report.device,
        nll=report.nll,
        nll_ci95=report.nll_ci95,
        bits_per_byte=report.bits_per_byte,
        bits_per_byte_ci95=report.bits_per_byte_ci95,
        buckets=report.buckets,
        training_loss=loss_points(curve),
        difference=None if base is None else difference([report], [base]),
    )
