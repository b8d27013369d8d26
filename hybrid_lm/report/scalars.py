"""The report for TensorBoard."""

from hybrid_lm.report.markdown import to_markdown
from hybrid_lm.results import GroupReport, Report
from hybrid_lm.tensorboard import Board


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
        values |= {f"{prefix}/{name}": value for name, value in _of_instruments(group).items()}
    for score in report.scoring:
        values[f"eval/{score.mode}/{score.length}/bits_per_byte"] = score.bits_per_byte
    return values


def _of_instruments(group: GroupReport) -> dict[str, float]:
    values: dict[str, float] = {}
    if group.knockout_mean is not None:
        values["mean_ablation_nats"] = group.knockout_mean.delta_nll
    if group.control is not None:
        values["control_nats"] = group.control.delta_nll
    if group.shapley is not None:
        values["shapley_nats"] = group.shapley.value
    if group.lens is not None:
        values["tuned_lens_perplexity"] = group.lens.exit_perplexity
    if group.field is not None and group.field.effective_context is not None:
        values["effective_context"] = group.field.effective_context
    return values


def to_board(report: Report, board: Board) -> None:
    """Add the numbers, the tables and one image per figure to TensorBoard."""
    from hybrid_lm import page

    board.add_report(report.step, scalars(report), to_markdown(report), page.pngs(report))
