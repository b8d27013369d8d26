"""One layer group and what the instruments found about it."""

from dataclasses import dataclass

from hybrid_lm.results.control import Control
from hybrid_lm.results.field import Field
from hybrid_lm.results.lens import Lens
from hybrid_lm.results.shapley import Shapley
from hybrid_lm.results.spans import ExitBucket, Interval, KnockoutBucket


@dataclass(frozen=True)
class Knockout:
    """NLL change when the mixers of a group are knocked out; positive: the group helps."""

    delta_nll: float
    ci95: Interval
    win_rate: float
    """Share of documents for which the group helps."""
    minimum_detectable_effect: float
    """Change that a paired test at 5% would find in 4 of 5 such sets of documents."""
    buckets: tuple[KnockoutBucket, ...]
    adjusted_p: tuple[float, ...] = ()
    """Of every bucket, corrected for all cells group x bucket of this form of knock-out; see
    ``correction`` of the report."""


@dataclass(frozen=True)
class GroupReport:
    """One layer group: what it is, what it costs, what it buys."""

    name: str
    pattern: str
    layers: int
    params: int
    flops_per_token: float
    """Forward, on a document of the evaluated length."""
    state_bytes: int
    """Of one document after the evaluated length."""
    exit_nll: float
    exit_perplexity: float
    exit_buckets: tuple[ExitBucket, ...]
    knockout: Knockout
    """Mixers skipped: only the residual and the MLPs stay."""
    exit_gain: float | None = None
    """NLL at the entry of the group minus at its exit (logit lens); the gains of all groups add up
    to ``entry_nll`` - ``nll`` of the report."""
    knockout_mean: Knockout | None = None
    """Every mixer replaced by its mean output over training documents."""
    control: Control | None = None
    field: Field | None = None
    lens: Lens | None = None
    shapley: Shapley | None = None
