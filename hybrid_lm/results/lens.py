"""The exit of a group read through a trained map."""

from dataclasses import dataclass

from hybrid_lm.results.spans import ExitBucket


@dataclass(frozen=True)
class Lens:
    """Tuned lens: a trained affine map, then final norm and unembedding, on a group's exit."""

    exit_nll: float
    exit_perplexity: float
    exit_buckets: tuple[ExitBucket, ...]
    gain: float
    """NLL at the entry of the group minus at its exit, both through their trained maps; the gains
    of all groups add up to ``lens_entry_nll`` - ``nll`` of the report."""
