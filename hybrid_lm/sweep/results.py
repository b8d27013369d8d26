"""What a study found, as data: the content of ``sweep.json``."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from hybrid_lm import metrics
from hybrid_lm import report as reports
from hybrid_lm.compare.difference import RESAMPLES, Difference, difference
from hybrid_lm.compare.documents import mismatch
from hybrid_lm.config import Sweep
from hybrid_lm.results import Report
from hybrid_lm.sweep.ranks import RankCorrelation, Swap, rank_correlations, swap
from hybrid_lm.sweep.runs import Run

CAVEATS = (
    "Differences are paired by document and seed. With several seeds their intervals cover other "
    "seeds and documents; with one, other documents alone.",
    "Intervals are per cell and not corrected for the number of points or positions.",
    "Without it: the group's mixers are skipped in the trained model, its residual and MLPs stay; "
    "the layers after it then see inputs they were never trained on.",
)


@dataclass(frozen=True)
class GroupRow:
    """A layer group of a point."""

    name: str
    pattern: str
    layers: int
    params: int
    flops_per_token: float
    state_bytes: int
    knockout_nll: float
    """NLL change without it (skipped), mean over seeds."""
    knockout_by_seed: tuple[float, ...]
    exit_nll: float
    """Mean over seeds."""


@dataclass(frozen=True)
class PointRow:
    """A point at one evaluated length, over the seeds that are done."""

    name: str
    seeds: tuple[int, ...]
    steps: int
    params: int
    flops_per_token: float
    state_bytes: int
    tokens_per_s: float
    """Median over training, mean over seeds."""
    nll: float
    nll_by_seed: tuple[float, ...]
    bits_per_byte: float
    bits_per_byte_by_seed: tuple[float, ...]
    difference: Difference | None
    """To the baseline, over the seeds that both have; None for the baseline."""
    not_compared: str | None
    """Why there is no difference, where there could be one."""
    groups: tuple[GroupRow, ...]


@dataclass(frozen=True)
class LengthTable:
    """All points evaluated at one length."""

    length: int
    split: str
    documents: int
    training_length: int
    interval_method: str
    resamples: int
    corpus: dict[str, Any]
    points: tuple[PointRow, ...]
    swaps: tuple[Swap, ...]
    rank_correlations: tuple[RankCorrelation, ...]


@dataclass(frozen=True)
class Unfinished:
    """A run that is not at its end."""

    name: str
    step: int
    steps: int
    error: str | None
    """Of the latest attempt."""


@dataclass(frozen=True)
class SweepResults:
    """A study as far as it has come."""

    baseline: str
    seeds: tuple[int, ...]
    points: dict[str, str]
    """Pattern of every point."""
    tables: tuple[LengthTable, ...]
    unfinished: tuple[Unfinished, ...]
    caveats: tuple[str, ...] = CAVEATS

    def to_json(self) -> dict[str, Any]:
        """The results as JSON-ready dicts and lists."""
        return json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))


def collect(study: Sweep, runs: Sequence[Run], errors: Mapping[str, str]) -> SweepResults:
    """The results of the runs that are done; ``errors`` by name of those that failed."""
    baseline = study.baseline or next(iter(study.points))
    lengths = dict.fromkeys(n for run in runs for n in run.lengths)
    tables = [_table(baseline, runs, length) for length in lengths]
    return SweepResults(
        baseline=baseline,
        seeds=study.seeds,
        points={run.point: run.config.model.layers for run in runs},
        tables=tuple(table for table in tables if table is not None),
        unfinished=tuple(
            Unfinished(run.name, run.step(), run.config.train.steps, errors.get(run.name))
            for run in runs
            if run.next_command() is not None
        ),
    )


def _table(baseline: str, runs: Sequence[Run], length: int) -> LengthTable | None:
    """The points that have a report at a length; None where there is none."""
    found: dict[str, dict[int, tuple[Run, Report]]] = {}
    for run in runs:
        if run.has_report(length):
            report = reports.read(run.directory / run.report_name(length))
            found.setdefault(run.point, {})[run.seed] = run, report
    if not found:
        return None
    of_baseline = found.get(baseline, {})
    names = [name for name in dict.fromkeys(run.point for run in runs) if name in found]
    points = tuple(_point(name, found[name], baseline, of_baseline) for name in names)
    swaps = tuple(
        made
        for point in points
        if point.difference is not None
        if (made := _swap(point, found[point.name], of_baseline)) is not None
    )
    example = next(iter((of_baseline or next(iter(found.values()))).values()))[1]
    return LengthTable(
        length=length,
        split=example.split,
        documents=example.documents,
        training_length=example.training_length,
        interval_method=example.interval_method,
        resamples=RESAMPLES,
        corpus=example.corpus,
        points=points,
        swaps=swaps,
        rank_correlations=rank_correlations(swaps),
    )


def _point(
    name: str,
    by_seed: dict[int, tuple[Run, Report]],
    baseline: str,
    of_baseline: dict[int, tuple[Run, Report]],
) -> PointRow:
    runs = [run for run, _ in by_seed.values()]
    found = [report for _, report in by_seed.values()]
    first = found[0]
    delta, reason = (None, None) if name == baseline else _difference(by_seed, of_baseline)
    return PointRow(
        name=name,
        seeds=tuple(by_seed),
        steps=first.step,
        params=first.params,
        flops_per_token=first.flops_per_token,
        state_bytes=first.state_bytes,
        tokens_per_s=float(np.mean([_tokens_per_s(run) for run in runs])),
        nll=_mean(report.nll for report in found),
        nll_by_seed=tuple(report.nll for report in found),
        bits_per_byte=_mean(report.bits_per_byte for report in found),
        bits_per_byte_by_seed=tuple(report.bits_per_byte for report in found),
        difference=delta,
        not_compared=reason,
        groups=tuple(
            GroupRow(
                name=group.name,
                pattern=group.pattern,
                layers=group.layers,
                params=group.params,
                flops_per_token=group.flops_per_token,
                state_bytes=group.state_bytes,
                knockout_nll=_mean(report.groups[g].knockout.delta_nll for report in found),
                knockout_by_seed=tuple(report.groups[g].knockout.delta_nll for report in found),
                exit_nll=_mean(report.groups[g].exit_nll for report in found),
            )
            for g, group in enumerate(first.groups)
        ),
    )


def _difference(
    by_seed: dict[int, tuple[Run, Report]], of_baseline: dict[int, tuple[Run, Report]]
) -> tuple[Difference | None, str | None]:
    """(over the seeds that both have, None), or (None, why there is no difference)."""
    shared = [seed for seed in by_seed if seed in of_baseline]
    if not shared:
        return None, "no seed is done of it and of the baseline"
    here = [by_seed[seed][1] for seed in shared]
    there = [of_baseline[seed][1] for seed in shared]
    for report in (*here, *there):
        if not report.document_nats:
            return None, "a report has no NLL per document: evaluate again"
        if reason := mismatch(there[0], report):
            return None, f"not the same documents: {reason}"
    return difference(here, there), None


def _swap(
    point: PointRow,
    by_seed: dict[int, tuple[Run, Report]],
    of_baseline: dict[int, tuple[Run, Report]],
) -> Swap | None:
    shared = [seed for seed in by_seed if seed in of_baseline]
    assert point.difference is not None
    return swap(
        point.name,
        by_seed[shared[0]][0].config,
        of_baseline[shared[0]][0].config,
        [of_baseline[seed][1] for seed in shared],
        cost=point.difference.delta_nll,
        ci95=point.difference.ci95,
    )


def _tokens_per_s(run: Run) -> float:
    rows = metrics.read(run.directory / "metrics.jsonl")
    return float(np.median([row.tokens_per_s for row in rows]))


def _mean(values) -> float:
    return float(np.mean(list(values)))
