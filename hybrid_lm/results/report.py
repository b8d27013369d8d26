"""The whole report of one evaluation."""

import dataclasses
import json
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

from pydantic import ConfigDict, TypeAdapter

from hybrid_lm.results.causality import Causality
from hybrid_lm.results.group import GroupReport
from hybrid_lm.results.mixers import MixerReport
from hybrid_lm.results.scoring import Scoring
from hybrid_lm.results.shapley import ShapleyTotal
from hybrid_lm.results.spans import Bucket, Interval
from hybrid_lm.results.token_classes import TokenClass

CAVEATS = (
    "Exit perplexity (final norm and unembedding on the residual that leaves a group) measures "
    "what can be decoded there, not what the group causes.",
    "Without it: the group's mixers are skipped, its residual and MLPs stay. The layers after it "
    "then see inputs they were never trained on, so the change bounds no retrained model.",
    "Intervals and differences are per cell, paired by document; they are not corrected for the "
    "number of cells; adjusted p values are.",
    "Intervals cover the choice of documents, not the choice of the training seed.",
)


@dataclass(frozen=True)
class Instrument:
    """A part of the evaluation that has run."""

    name: str
    caveat: str
    """How its numbers must not be read."""
    protocol: str
    """What exactly was done, e.g. on how many documents."""


NOT_ASKED_FOR = "not asked for"
LEFT_TO_EVALUATE = "left to python -m hybrid_lm.evaluate"
"""Reasons of a `NotRun` that another evaluation may do away with."""


@dataclass(frozen=True)
class NotRun:
    """A part of the evaluation that has not run."""

    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """Long-document evaluation of one model at one step."""

    # Descriptions in the JSON schema are the docstrings of the fields.
    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(use_attribute_docstrings=True)

    documents: int
    tokens: int
    bytes: int
    """UTF-8 bytes of the scored tokens."""
    nll: float
    nll_ci95: Interval
    perplexity: float
    perplexity_ci95: Interval
    bits_per_byte: float
    bits_per_byte_ci95: Interval
    buckets: tuple[Bucket, ...]
    groups: tuple[GroupReport, ...]
    length: int
    """Tokens scored of each document, in one pass from its start."""
    training_length: int
    """Tokens of a row in training."""
    step: int
    params: int
    flops_per_token: float
    """Forward, the unembedding included."""
    state_bytes: int
    dtype: str
    device: str
    jax_version: str
    date: str
    """UTC, ISO 8601."""
    interval_method: str
    resamples: int
    corpus: dict[str, Any]
    """``source``, ``fingerprint`` (of its files), ``tokenizer``, ``vocab_size``,
    ``tokenizer_sha256`` and ``split_sha256`` (of the split's tokens)."""
    split: str
    document_indices: tuple[int, ...]
    """Place of each document in its split."""
    document_names: tuple[str, ...]
    caveats: tuple[str, ...] = CAVEATS
    """Of the parts that always run; `instruments` carry their own."""
    document_nats: tuple[tuple[float, ...], ...] = ()
    """Sum of the NLL over the tokens of every bucket, [documents][buckets], for paired differences
    between runs."""
    document_bytes: tuple[int, ...] = ()
    """UTF-8 bytes of the scored tokens of each document."""
    seeds: dict[str, int] = dataclasses.field(default_factory=dict)
    """``training`` (parameters and data order), ``resampling``, ``control`` (draws of layers)."""
    mixers: tuple[MixerReport, ...] = ()
    """Of the pattern, in its order."""
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    """Of hybrid_lm and the libraries whose numbers these are."""
    entry_nll: float | None = None
    """NLL read off the embedding, before the first group."""
    lens_entry_nll: float | None = None
    """The same through its trained map."""
    correction: str | None = None
    """How every ``adjusted_p`` is corrected for the number of cells."""
    causality: Causality | None = None
    shapley: ShapleyTotal | None = None
    token_classes: tuple[TokenClass, ...] = ()
    scoring: tuple[Scoring, ...] = ()
    instruments: tuple[Instrument, ...] = ()
    """That have run, beside exits and knock-out by skipping."""
    not_run: tuple[NotRun, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready dicts and lists."""
        return json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Report":
        """Inverse of `to_json`; ValueError for anything else. Unknown keys are left out."""
        return adapter().validate_python(record)


@cache
def adapter() -> TypeAdapter[Report]:
    """Reads and describes a `Report`."""
    return TypeAdapter(Report)
