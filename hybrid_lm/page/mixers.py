"""The causality board: what the mixers of the pattern promise, and by which laws."""

from typing import NamedTuple

from hybrid_lm.page.figure import Block, Table, caveats
from hybrid_lm.report import show
from hybrid_lm.results import MixerReport, Report


class Law(NamedTuple):
    """What the tests hold every registered mixer to."""

    name: str
    text: str
    test: str


LAWS = (
    Law("causal", "later tokens change no bit of an earlier output", "test_causal.py"),
    Law("noise floor", "trained on noise, the loss stays above its entropy", "test_noise_floor.py"),
    Law("document-tight", "a packed row equals its documents apart", "test_document_tight.py"),
    Law("hand-off", "a row in parts, states handed on, equals one pass", "test_hand_off.py"),
    Law("chunk-invariant", "chunk sizes change nothing but rounding", "test_chunk_invariant.py"),
    Law("limit", "where it must equal full softmax attention, it does", "test_limit.py"),
    Law("truth", "values and gradients of a float64 step-by-step form", "test_truth.py"),
    Law("any length", "1, 2, 63, 65, 127, 1000 tokens, one row", "test_any_length.py"),
    Law("honest cost", "the bytes of the state are those stated", "test_honest_cost.py"),
    Law("stacks", "stacked layers and shards equal a loop on one device", "test_stacks.py"),
    Law("finite", "no NaN or infinity at 16k tokens of any scale", "test_finite.py"),
)
_DECLARED = (
    "What the mixers of this model declare of themselves; the laws, tests of the project, hold "
    "every registered mixer to it at small sizes. This evaluation did not run the laws again."
)


def board(report: Report) -> Block | None:
    """What is declared and what was measured; None for a report that has neither."""
    tables = [table for table in (_measured(report), _mixers(report)) if table is not None]
    if not tables:
        return None
    text = " ".join([_DECLARED, *caveats(report, "causality")])
    return Block("mixers", "Causality board", [*tables, _laws()], text)


def _measured(report: Report) -> Table | None:
    found = report.causality
    if found is None:
        return None
    return Table(
        f"Measured on this model: tokens from {found.position:,} on drawn anew in "
        f"{found.documents} documents, largest change of what leaves a group, over its RMS "
        "(0: not one bit)",
        ["group", f"at tokens before {found.position:,}", "from there on"],
        [[group.name, _change(group.before), _change(group.after)] for group in found.groups],
    )


def _change(value: float) -> str:
    return "0" if value == 0 else f"{value:.2g}"


def _mixers(report: Report) -> Table | None:
    if not report.mixers:
        return None
    header = ["mixer", "what it is", "settings", "packed documents", "time and state per token"]
    header += ["layers", "FLOPs/token", f"state@{show.position(report.length)}"]
    rows = [_row(mixer) for mixer in report.mixers]
    return Table("Declared by the mixers; costs are those of one layer", header, rows, 5)


def _row(mixer: MixerReport) -> list[str]:
    source = f" (arXiv {mixer.arxiv})" if mixer.arxiv else ""
    return [
        mixer.name,
        f"{mixer.key}: {mixer.what}{source}",
        ", ".join(f"{name} {value}" for name, value in mixer.settings.items()) or "defaults",
        "kept apart" if mixer.packable else "rows are not packed",
        "bounded" if mixer.subquadratic else "grow with the position",
        *(str(mixer.layers), show.count(mixer.flops_per_token), show.memory(mixer.state_bytes)),
    ]


def _laws() -> Table:
    header = ["law", "what holds", "in tests/laws/"]
    return Table("The laws", header, [list(law) for law in LAWS], text_columns=3)
