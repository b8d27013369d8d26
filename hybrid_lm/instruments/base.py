"""What an instrument is: it measures arrays, which are kept, and adds to a report from them."""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from hybrid_lm.data.corpus import Corpus
from hybrid_lm.instruments.bench import Bench, Session
from hybrid_lm.instruments.cache import Arrays, Cache
from hybrid_lm.octaves import octave_means, octave_sums, octaves
from hybrid_lm.results import Interval, Knockout, KnockoutBucket, Report
from hybrid_lm.statistics import max_t, minimum_detectable_effect, win_rate

FLIPS = 10_000
"""Of the signs of documents, behind the p values of the cells of a heat map."""


class CannotRun(Exception):
    """Why an instrument has nothing to measure here; the report says so."""


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        table: the arrays of `hybrid_lm.instruments.table`.
        key: what tells this evaluation from all others.
        cache: arrays of this evaluation.
        kept: arrays of the run, which other evaluations of it can use; their key must name
            ``key["checkpoint"]``.
    """

    session: Session
    corpus: Corpus
    table: Arrays
    key: dict[str, Any]
    cache: Cache
    kept: Cache

    @property
    def bench(self) -> Bench:
        return self.session.bench

    @property
    def nats(self) -> np.ndarray:
        """NLL of the whole model summed by octave, [documents, octaves]."""
        return octave_sums(self.table["nll"])


class Instrument(Protocol):
    """A part of the evaluation; a frozen dataclass of its settings.

    Attributes:
        name: as in ``--only``.
        caveat: how its numbers must not be read.
    """

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: ClassVar[str]
    caveat: ClassVar[str]

    def passes(self, bench: Bench, corpus: Corpus) -> float:
        """About how many passes of a batch through the whole model `measure` takes.

        Raises:
            CannotRun: if there is nothing to measure.
        """
        ...

    def measure(self, subject: Subject) -> Arrays:
        """What is to be kept; calls ``subject.session.advance``."""
        ...

    def extend(self, report: Report, arrays: Arrays, subject: Subject) -> Report:
        """The report with what ``arrays`` say."""
        ...

    def protocol(self, arrays: Arrays, subject: Subject) -> str:
        """What exactly was done, in a sentence."""
        ...


class Differences(NamedTuple):
    """Changes of the NLL per token, overall and by octave."""

    delta_nll: float
    ci95: Interval
    buckets: tuple[KnockoutBucket, ...]


def differences(delta_nats: np.ndarray, bench: Bench) -> Differences:
    """Means and intervals of differences to the whole model, sums [documents, octaves]."""
    length = bench.documents.length
    total, buckets = octave_means(delta_nats, length, resamples=bench.resamples)
    return Differences(
        total.nats,
        total.ci95,
        tuple(
            KnockoutBucket(start, end, *mean)
            for (start, end), mean in zip(octaves(length), buckets, strict=True)
        ),
    )


def knockouts(delta_nats: np.ndarray, bench: Bench) -> list[Knockout]:
    """Statistics of differences to the whole model, sums [groups, documents, octaves].

    P values are corrected for all cells group x octave.
    """
    p = adjusted_p(np.moveaxis(delta_nats, 1, 0))
    return [_knockout(of_group, tuple(p[g]), bench) for g, of_group in enumerate(delta_nats)]


def adjusted_p(differences: np.ndarray) -> list:
    """P values of differences [documents, ...cells], corrected for the cells, as nested lists."""
    cells = differences.reshape(len(differences), -1)
    return max_t(cells, flips=FLIPS).reshape(differences.shape[1:]).tolist()


def _knockout(delta_nats: np.ndarray, adjusted_p: tuple[float, ...], bench: Bench) -> Knockout:
    found = differences(delta_nats, bench)
    delta = delta_nats.sum(axis=1) / bench.documents.length
    return Knockout(
        found.delta_nll,
        found.ci95,
        win_rate(delta),
        minimum_detectable_effect(delta),
        found.buckets,
        adjusted_p,
    )
