"""How the numbers came about: everything needed to get them again, and what was not measured."""

from hybrid_lm.page.figure import Protocol, Table
from hybrid_lm.report import show
from hybrid_lm.results import Report


def protocol(report: Report) -> Protocol:
    """Of a report."""
    return Protocol(_items(report), _not_run(report), report.caveats, [_documents(report)])


def _items(report: Report) -> list[tuple[str, str]]:
    corpus = report.corpus
    found = [
        (
            "Scoring",
            f"each document alone in its row, {report.length:,} tokens from its start in one pass; "
            f"rows of training had {report.training_length:,}",
        ),
        (
            "Documents",
            f"{report.documents} of the {report.split} split, all at least as long as the last "
            f"position; {report.tokens:,} tokens, {report.bytes:,} bytes",
        ),
        (
            "Intervals",
            f"95%, {report.interval_method} over documents"
            + (f", {report.resamples:,} resamples" * ("bootstrap" in report.interval_method)),
        ),
        ("Correction of p values", report.correction or "none"),
        (
            "Model",
            f"step {report.step:,}; {show.count(report.params)} parameters, "
            f"{show.count(report.flops_per_token)} forward FLOPs per token, "
            f"{show.memory(report.state_bytes)} of state; {report.dtype} activations",
        ),
        ("Corpus", corpus["source"]),
        ("Hash of its files", corpus["fingerprint"]),
        ("Hash of the split's tokens", corpus["split_sha256"]),
        ("Tokenizer", f"{corpus['tokenizer']}, {corpus['vocab_size']} ids"),
        ("Hash of the tokenizer", corpus["tokenizer_sha256"]),
        ("Seeds", ", ".join(f"{name} {seed}" for name, seed in report.seeds.items())),
        ("Device", report.device),
        ("Versions", _versions(report)),
        ("Date", report.date),
        *((f"Instrument: {part.name}", part.protocol) for part in report.instruments),
    ]
    return [(term, text) for term, text in found if text]


def _not_run(report: Report) -> list[str]:
    """What was not measured, each with the reason that is known."""
    groups = report.groups
    has = {
        "causality": report.causality is not None,
        "knockout": any(group.knockout_mean for group in groups),
        "field": any(group.field for group in groups),
        "lens": any(group.lens for group in groups),
        "shapley": report.shapley is not None,
        "token_classes": bool(report.token_classes),
        "scoring": bool(report.scoring),
    }
    reasons = {part.name: part.reason for part in report.not_run}
    unsaid = [name for name, found in has.items() if not found and name not in reasons]
    return [
        *(f"{name}: {reason}" for name, reason in reasons.items()),
        *(f"{name}: not in this report" for name in unsaid),
    ]


def _versions(report: Report) -> str:
    versions = {"jax": report.jax_version} | report.versions
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _documents(report: Report) -> Table:
    places = zip(report.document_indices, report.document_names, strict=True)
    rows = [[f"{index}", " ".join(name.split())] for index, name in places]
    return Table("Documents that were scored", ["place in the split", "name"], rows, 2)
