"""Positions in a document by octave, and means over them with intervals over documents."""

from typing import NamedTuple

import numpy as np

from hybrid_lm.results import Interval
from hybrid_lm.statistics import ci95

BLOCK = 128
"""Tokens of the first octave; every octave starts at a multiple of it."""


class Mean(NamedTuple):
    """Nats per token and its interval over documents."""

    nats: float
    ci95: Interval


def octaves(length: int) -> list[tuple[int, int]]:
    """Position buckets [0, 128), [128, 256), [256, 512), ... up to ``length``, the last one cut."""
    starts = [0]
    while (start := max(BLOCK, 2 * starts[-1])) < length:
        starts.append(start)
    return list(zip(starts, [*starts[1:], length], strict=True))


def octave_sums(nll: np.ndarray) -> np.ndarray:
    """NLL per token [..., length] -> float64 sums [..., octaves]."""
    starts = [start for start, _ in octaves(nll.shape[-1])]
    return np.add.reduceat(nll, starts, axis=-1, dtype=np.float64)


def octave_means(nats: np.ndarray, length: int, *, resamples: int) -> tuple[Mean, list[Mean]]:
    """Means per token, overall and by octave, of sums [documents, octaves]."""
    tokens = np.array([length, *(end - start for start, end in octaves(length))])
    sums = np.concatenate([nats.sum(axis=1, keepdims=True), nats], axis=1)
    intervals = ci95(sums, np.broadcast_to(tokens, sums.shape), resamples=resamples)
    means = (sums / tokens).mean(axis=0)
    total, *by_octave = (
        Mean(float(mean), (float(low), float(high)))
        for mean, (low, high) in zip(means, intervals, strict=True)
    )
    return total, by_octave
