"""The NLL of one model minus that of another on the same documents."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hybrid_lm.octaves import octave_means, octaves
from hybrid_lm.results import Interval, KnockoutBucket, Report
from hybrid_lm.statistics import (
    hierarchical_ci95,
    minimum_detectable_effect,
    minimum_detectable_effect_over_seeds,
    win_rate,
)

RESAMPLES = 10_000
"""Behind the intervals of differences, whatever the reports took for theirs."""


@dataclass(frozen=True)
class Difference:
    """Nats per token, paired by document and seed; negative: better than the baseline."""

    documents: int
    seeds: int
    """With one, the interval covers the choice of documents alone."""
    delta_nll: float
    ci95: Interval
    win_rate: float
    """Share of documents on which it is better, in the mean over seeds."""
    minimum_detectable_effect: float
    """Difference that a paired test at 5% finds in 4 of 5 such studies."""
    buckets: tuple[KnockoutBucket, ...]


def difference(reports: Sequence[Report], baselines: Sequence[Report]) -> Difference:
    """Mean over seeds and documents of ``report - baseline``, with intervals.

    With one seed the intervals are those of `hybrid_lm.statistics.ci95` over documents, with
    several those of `hierarchical_ci95` over seeds and documents.

    Args:
        reports: of one model by seed; of the same documents as the baselines, see
            `hybrid_lm.compare.documents`.
        baselines: of the other, in the same order of seeds.
    """
    nats_SDO = np.array([report.document_nats for report in reports])
    nats_SDO -= np.array([report.document_nats for report in baselines])
    length = reports[0].length
    spans = octaves(length)
    nll_SD = nats_SDO.sum(axis=2) / length
    if len(reports) == 1:
        total, means = octave_means(nats_SDO[0], length, resamples=RESAMPLES)
        values, intervals = [total.nats], [total.ci95]
        values += [mean.nats for mean in means]
        intervals += [mean.ci95 for mean in means]
        detectable = minimum_detectable_effect(nll_SD[0])
    else:
        widths_O = np.array([end - start for start, end in spans])
        cells_SDC = np.concatenate([nll_SD[..., None], nats_SDO / widths_O], axis=2)
        values = cells_SDC.mean(axis=(0, 1)).tolist()
        intervals = hierarchical_ci95(cells_SDC, resamples=RESAMPLES).tolist()
        detectable = minimum_detectable_effect_over_seeds(nll_SD)
    return Difference(
        documents=nats_SDO.shape[1],
        seeds=len(reports),
        delta_nll=values[0],
        ci95=(intervals[0][0], intervals[0][1]),
        win_rate=float(np.mean([win_rate(-nll_D) for nll_D in nll_SD])),
        minimum_detectable_effect=detectable,
        buckets=tuple(
            KnockoutBucket(start, end, value, (low, high))
            for (start, end), value, (low, high) in zip(
                spans, values[1:], intervals[1:], strict=True
            )
        ),
    )
