"""Whether cheap measures of a group rank the groups as retraining without its mixers does."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hybrid_lm.config import Config
from hybrid_lm.results import Interval, Report
from hybrid_lm.sweep.swaps import swapped_group

MIN_SWAPS = 3
"""With fewer there is no order to speak of."""


@dataclass(frozen=True)
class Swap:
    """A group's mixers replaced and the model trained anew, beside what was said of the group."""

    point: str
    group: str
    cost: float
    """NLL of the swap minus that of the baseline."""
    ci95: Interval
    cheap: dict[str, float]
    """Of the group in the baseline, by name of the instrument, mean over seeds."""


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's correlation over swaps, between a cheap measure and the cost."""

    instrument: str
    swaps: int
    rho: float
    p_value: float
    """Two-sided, by permutation; with 3 swaps it is at least 1/3, with 4 at least 1/12."""


def swap(
    name: str,
    point: Config,
    baseline: Config,
    reports: Sequence[Report],
    *,
    cost: float,
    ci95: Interval,
) -> Swap | None:
    """The swap that ``point`` is; None where it differs in more than one group's layers.

    ``reports`` are the baseline's by seed.
    """
    group = swapped_group(baseline, point)
    if group is None:
        return None
    by_instrument: dict[str, list[float]] = {}
    for report in reports:
        (found,) = [row for row in report.groups if row.name == group]
        by_instrument.setdefault("knock-out (skip)", []).append(found.knockout.delta_nll)
        if found.knockout_mean is not None:
            values = by_instrument.setdefault("knock-out (mean)", [])
            values.append(found.knockout_mean.delta_nll)
        if found.shapley is not None:
            by_instrument.setdefault("Shapley", []).append(found.shapley.value)
    cheap = {
        instrument: sum(values) / len(values)
        for instrument, values in by_instrument.items()
        if len(values) == len(reports)
    }
    return Swap(name, group, cost, ci95, cheap)


def rank_correlations(swaps: Sequence[Swap]) -> tuple[RankCorrelation, ...]:
    """Of every instrument that has measured all swaps, where there are `MIN_SWAPS`."""
    if len(swaps) < MIN_SWAPS:
        return ()
    costs = [made.cost for made in swaps]
    correlations = []
    for instrument in swaps[0].cheap:
        values = [made.cheap[instrument] for made in swaps if instrument in made.cheap]
        if len(values) < len(swaps) or len(set(values)) == 1 or len(set(costs)) == 1:
            continue
        test = stats.permutation_test(
            (values,),
            lambda values: stats.spearmanr(values, costs)[0],
            permutation_type="pairings",
            n_resamples=2000,  # all orders of up to 6 swaps
            rng=np.random.default_rng(0),
        )
        rho, p_value = float(test.statistic), float(test.pvalue)
        correlations.append(RankCorrelation(instrument, len(swaps), rho, p_value))
    return tuple(correlations)
