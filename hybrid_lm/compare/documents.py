"""Whether reports are of the same documents, so that they can be paired."""

from collections.abc import Mapping

from hybrid_lm.errors import UserError
from hybrid_lm.results import Report


def mismatch(report: Report, other: Report) -> str | None:
    """In what two reports cannot be paired document by document; None if they can."""
    for what, here, there in (
        ("split", report.split, other.split),
        ("length", f"{report.length:,} tokens", f"{other.length:,} tokens"),
        ("tokenizer", _hash(report, "tokenizer"), _hash(other, "tokenizer")),
        ("documents of the split", _hash(report, "split"), _hash(other, "split")),
    ):
        if here != there:
            return f"{what}: {here} and {there}"
    if report.document_indices != other.document_indices:
        return f"documents: {_indices(report)} and {_indices(other)}"
    return None


def require_same_documents(reports: Mapping[str, Report]) -> None:
    """Raise `UserError` where a report, by name of its run, cannot be paired with the first."""
    for name, report in reports.items():
        if not report.document_nats:
            raise UserError(
                f"the report of {name} has no NLL per document; python -m hybrid_lm.evaluate "
                "writes one that has"
            )
    (first_name, first), *others = reports.items()
    for name, report in others:
        if difference := mismatch(first, report):
            raise UserError(
                f"{first_name} and {name} are not evaluated on the same documents: {difference}"
            )


def _hash(report: Report, what: str) -> str:
    return report.corpus[f"{what}_sha256"][:12]


def _indices(report: Report) -> str:
    shown = ", ".join(str(index) for index in report.document_indices[:4])
    return f"{len(report.document_indices)} ({shown}, ...)"
