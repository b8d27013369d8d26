"""What an evaluation found, as data.

NLLs are means in nats per token; intervals are 95%, over documents.
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

Interval = tuple[float, float]
"""Low and high end of a 95% interval."""

CAVEATS = (
    "Exit perplexity (final norm and unembedding on the residual that leaves a group) measures "
    "what can be decoded there, not what the group causes.",
    "Without it: the group's mixers are skipped, its residual and MLPs stay. The layers after it "
    "then see inputs they were never trained on, so the change bounds no retrained model.",
    "Intervals and differences are per cell, paired by document; they are not corrected for the "
    "number of cells.",
    "Intervals cover the choice of documents, not the choice of the training seed.",
)


@dataclass(frozen=True)
class Bucket:
    """The model's NLL on the tokens at positions [start, end) of every document."""

    start: int
    end: int
    nll: float
    ci95: Interval
    beyond_training: bool
    """Whether it reaches past the rows that the model was trained on."""


@dataclass(frozen=True)
class ExitBucket:
    """NLL of a group's exit at positions [start, end)."""

    start: int
    end: int
    nll: float


@dataclass(frozen=True)
class KnockoutBucket:
    """NLL change without a group at positions [start, end)."""

    start: int
    end: int
    delta_nll: float
    ci95: Interval


@dataclass(frozen=True)
class Knockout:
    """NLL change when the mixers of a group are skipped; positive: the group helps."""

    delta_nll: float
    ci95: Interval
    win_rate: float
    """Share of documents for which the group helps."""
    minimum_detectable_effect: float
    """Change that a paired test at 5% would find in 4 of 5 such sets of documents."""
    buckets: tuple[KnockoutBucket, ...]


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


@dataclass(frozen=True)
class Report:
    """Long-document evaluation of one model at one step."""

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

    def to_json(self) -> dict[str, Any]:
        """The report as JSON-ready dicts and lists."""
        return json.loads(json.dumps(dataclasses.asdict(self), allow_nan=False))

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> "Report":
        """Inverse of `to_json`; KeyError or TypeError for anything else."""
        groups = []
        for group in record["groups"]:
            knockout = group["knockout"]
            buckets = [_make(KnockoutBucket, bucket) for bucket in knockout["buckets"]]
            exit_buckets = [_make(ExitBucket, bucket) for bucket in group["exit_buckets"]]
            parts = {
                "knockout": _make(Knockout, knockout | {"buckets": buckets}),
                "exit_buckets": exit_buckets,
            }
            groups.append(_make(GroupReport, group | parts))
        buckets = [_make(Bucket, bucket) for bucket in record["buckets"]]
        return _make(cls, record | {"buckets": buckets, "groups": groups})


def _make[T](kind: type[T], fields: dict[str, Any]) -> T:
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()})
