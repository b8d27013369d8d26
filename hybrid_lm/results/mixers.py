"""The mixers of a pattern, as they declare themselves."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class MixerReport:
    """One mixer of the pattern; costs are those of one layer on a document of the evaluation."""

    name: str
    """As the pattern has it."""
    key: str
    """As it is registered."""
    what: str
    arxiv: str | None
    """Number of the paper."""
    settings: dict[str, Any]
    """Hyper-parameters that are not the default."""
    layers: int
    flops_per_token: float
    state_bytes: int
    packable: bool
    """Whether documents packed in a row are kept exactly apart; if not, rows are not packed."""
    subquadratic: bool
    """Whether time and state stay bounded per token however long the document."""
