"""The causality board: what the mixers of the pattern promise, and by which laws."""

from typing import NamedTuple

from hybrid_lm.page.figure import Table
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
    Law("limit", "where it must equal full softmax attention, it does", "test_limit.py"),
    Law("truth", "values and gradients of a float64 step-by-step form", "test_truth.py"),
    Law("honest cost", "the bytes of the state are those stated", "test_honest_cost.py"),
)
TEXT = (
    "What the mixers of this model declare of themselves. The project's tests hold every "
    "registered mixer to it at small sizes, in float32; this evaluation did not run them again."
)


def board(report: Report) -> Table | None:
    """One row per mixer of the pattern; None for a report that does not name them."""
    if not report.mixers:
        return None
    state = f"state@{show.position(report.length)}"
    header = ["mixer", "what it is", "settings", "packed documents", "time and state per token"]
    header += ["layers", "FLOPs/token", state]
    return Table(
        "The mixers of the pattern; costs are those of one layer",
        header,
        [_row(mixer) for mixer in report.mixers],
        text_columns=5,
    )


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


def laws() -> Table:
    """The laws as a table."""
    header = ["law", "what holds", "in tests/laws/"]
    return Table("The laws", header, [list(law) for law in LAWS], text_columns=3)
