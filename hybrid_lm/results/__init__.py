"""What an evaluation found, as data: the content of ``report.json``.

NLLs are means in nats per token; intervals are 95%, over documents. What an instrument adds is None
or empty where it has not run.
"""

from hybrid_lm.results.causality import Causality, CausalityGroup
from hybrid_lm.results.control import Control
from hybrid_lm.results.field import Field, FieldWidth
from hybrid_lm.results.group import GroupReport, Knockout
from hybrid_lm.results.lens import Lens
from hybrid_lm.results.mixers import MixerReport
from hybrid_lm.results.report import (
    LEFT_TO_EVALUATE,
    NOT_ASKED_FOR,
    Instrument,
    NotRun,
    Report,
)
from hybrid_lm.results.scoring import Scoring, ScoringMode
from hybrid_lm.results.shapley import Shapley, ShapleyTotal
from hybrid_lm.results.spans import Bucket, ExitBucket, Interval, KnockoutBucket
from hybrid_lm.results.token_classes import TokenClass, TokenClassGroup

__all__ = [
    "LEFT_TO_EVALUATE",
    "NOT_ASKED_FOR",
    "Bucket",
    "Causality",
    "CausalityGroup",
    "Control",
    "ExitBucket",
    "Field",
    "FieldWidth",
    "GroupReport",
    "Instrument",
    "Interval",
    "Knockout",
    "KnockoutBucket",
    "Lens",
    "MixerReport",
    "NotRun",
    "Report",
    "Scoring",
    "ScoringMode",
    "Shapley",
    "ShapleyTotal",
    "TokenClass",
    "TokenClassGroup",
]
