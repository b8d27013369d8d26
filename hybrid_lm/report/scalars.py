"""The report for TensorBoard."""

from hybrid_lm.results import Report


def scalars(report: Report) -> dict[str, float]:
    """The numbers to follow over training, by flat name, e.g. ``group/early/knockout_nats``."""
    values = {
        "eval/nll": report.nll,
        "eval/perplexity": report.perplexity,
        "eval/bits_per_byte": report.bits_per_byte,
    }
    for bucket in report.buckets:
        values[f"eval/nll_by_position/{bucket.start}-{bucket.end}"] = bucket.nll
    for group in report.groups:
        prefix = f"group/{group.name}"
        values[f"{prefix}/exit_perplexity"] = group.exit_perplexity
        values[f"{prefix}/knockout_nats"] = group.knockout.delta_nll
        for bucket in group.knockout.buckets:
            values[f"{prefix}/knockout_by_position/{bucket.start}-{bucket.end}"] = bucket.delta_nll
    return values


def images(report: Report) -> dict[str, bytes]:
    """The figures of the page as PNG, by name, e.g. ``figure/knockout``."""
    from hybrid_lm import page

    return page.pngs(report)
