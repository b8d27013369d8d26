"""Intervals, power and win rates over documents: the document is the unit that is resampled."""

import numpy as np
from scipy import stats

from hybrid_lm.errors import UserError

MIN_BOOTSTRAP_DOCUMENTS = 20
"""With fewer, resampling gives too narrow intervals (95% of normal data becomes 91% at 16 documents
and 85% at 5), and Student's t is used instead."""
MIN_RESAMPLES = 200
"""Fewer leave less than five resamples beyond either end of a 95% interval."""
_CONSTANT = 1e-12  # relative spread that is rounding, not variation between documents


def interval_method(documents: int) -> str:
    """How `ci95` makes an interval of so many documents."""
    return "Student's t" if documents < MIN_BOOTSTRAP_DOCUMENTS else "BCa bootstrap"


def require_enough(documents: int, resamples: int) -> None:
    """Raise `UserError` for fewer than 2 documents or `MIN_RESAMPLES` resamples."""
    if documents < 2:
        raise UserError(f"evaluation.documents is {documents}; an interval needs at least 2")
    if resamples < MIN_RESAMPLES:
        raise UserError(
            f"evaluation.resamples is {resamples}; an interval needs at least {MIN_RESAMPLES}"
        )


def ci95(numerators: np.ndarray, denominators: np.ndarray, *, resamples: int) -> np.ndarray:
    """95% interval of ``sum_d numerators / sum_d denominators`` over documents d, cell by cell.

    BCa bootstrap of whole documents (Efron 1987), all cells from the same resamples, seeded; below
    `MIN_BOOTSTRAP_DOCUMENTS` Student's t on the ratio's linearisation. A cell whose ratio is the
    same in every document has an interval of width 0.

    Args:
        numerators: [documents, cells], for example the nats of a bucket.
        denominators: [documents, cells], all positive, for example its tokens.

    Returns:
        [cells, 2], low and high.

    Raises:
        UserError: see `require_enough`.
    """
    documents = len(numerators)
    require_enough(documents, resamples)
    ratios = numerators / denominators
    total = numerators.sum(0) / denominators.sum(0)
    interval = np.stack([total, total], axis=-1)
    varies = np.ptp(ratios, axis=0) > _CONSTANT * np.abs(ratios).max(axis=0)
    if not varies.any():
        return interval
    numerators, denominators = numerators[:, varies], denominators[:, varies]
    if documents < MIN_BOOTSTRAP_DOCUMENTS:
        residuals = (numerators - total[varies] * denominators) / denominators.mean(0)
        half = stats.t.ppf(0.975, documents - 1) * _standard_error(residuals)
        interval[varies] += np.stack([-half, half], axis=-1)
    else:
        low_high = stats.bootstrap(
            (numerators, denominators),
            _ratio_of_sums,
            paired=True,
            axis=0,
            n_resamples=resamples,
            batch=500,
            rng=np.random.default_rng(0),
        ).confidence_interval
        interval[varies] = np.stack(low_high, axis=-1)
    return interval


def minimum_detectable_effect(differences: np.ndarray) -> float:
    """The mean difference that a paired two-sided t-test at 5% finds in 4 of 5 such samples.

    ``differences``: [documents], at least 2.
    """
    quantiles = stats.t.ppf([0.975, 0.8], len(differences) - 1)
    return float(quantiles.sum() * _standard_error(differences))


def win_rate(differences: np.ndarray) -> float:
    """Share of documents with a positive difference; ``differences``: [documents]."""
    return float(np.mean(differences > 0))


def _ratio_of_sums(numerators: np.ndarray, denominators: np.ndarray, axis: int) -> np.ndarray:
    return numerators.sum(axis) / denominators.sum(axis)


def _standard_error(values: np.ndarray) -> np.ndarray:
    return values.std(axis=0, ddof=1) / len(values) ** 0.5
