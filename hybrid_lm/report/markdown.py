"""The whole report as Markdown."""

from collections.abc import Mapping

from hybrid_lm.report import show
from hybrid_lm.report.columns import markdown_of, markdown_table
from hybrid_lm.report.sections import Section, sections
from hybrid_lm.results import Knockout, Report

_LEVEL = 0.05


def to_markdown(report: Report) -> str:
    """The whole report: table per group, all octaves with intervals, caveats, protocol."""
    state = f"state@{show.position(report.length)}"
    groups = markdown_table(
        [
            *("group", "pattern", "layers", "params", "FLOPs/token", state, "exit ppl"),
            *("without it (nats)", "95% interval", "helps in", "detectable"),
        ],
        [
            [
                *(g.name, f"`{g.pattern}`", str(g.layers), show.count(g.params)),
                *(
                    show.count(g.flops_per_token),
                    show.memory(g.state_bytes),
                    show.perplexity(g.exit_perplexity),
                ),
                *(
                    show.change(g.knockout),
                    show.interval(g.knockout.ci95, "+.4f"),
                    f"{g.knockout.win_rate:.0%}",
                ),
                f"{g.knockout.minimum_detectable_effect:.4f}",
            ]
            for g in report.groups
        ],
        text_columns=2,
    )
    positions = [f"{b.start}-{b.end}{'*' if b.beyond_training else ''}" for b in report.buckets]
    model = markdown_table(
        ["position", "NLL", "95% interval", *(f"exit of {g.name}" for g in report.groups)],
        [
            [
                *(position, f"{bucket.nll:.4f}", show.interval(bucket.ci95)),
                *(f"{g.exit_buckets[i].nll:.4f}" for g in report.groups),
            ]
            for i, (position, bucket) in enumerate(zip(positions, report.buckets, strict=True))
        ],
    )
    knockouts = markdown_table(
        ["position", *(f"without {g.name}" for g in report.groups)],
        [
            [position, *(_cell(g.knockout, i) for g in report.groups)]
            for i, position in enumerate(positions)
        ],
    )
    beyond = (
        [f"\\* beyond the {report.training_length:,} tokens of a training row.", ""]
        if report.buckets[-1].beyond_training
        else []
    )
    lines = [
        f"# Evaluation at step {report.step:,}",
        "",
        f"Perplexity **{show.perplexity(report.perplexity)}** "
        f"({show.interval(report.perplexity_ci95)}), **{report.bits_per_byte:.4f}** bits per byte "
        f"({show.interval(report.bits_per_byte_ci95)}), "
        f"{report.nll:.4f} nats per token ({show.interval(report.nll_ci95)}); "
        f"{report.documents} documents of {report.length:,} tokens.",
        "",
        "## By layer group",
        "",
        *groups,
        "",
        "Without it: change of the NLL in nats per token when the group's mixers are skipped. "
        "Helps in: share of documents whose NLL rises. Detectable: the smallest change that such "
        "a set of documents shows in 4 of 5 cases.",
        "",
        "## By position",
        "",
        *model,
        "",
        *beyond,
        "## Without a group, by position",
        "",
        *knockouts,
        "",
        *beyond,
        *([f"Bold: adjusted p < {_LEVEL}; {report.correction}.", ""] if report.correction else []),
        *(line for section in sections(report) for line in _section(section)),
        "## Caveats",
        "",
        *(f"- {caveat}" for caveat in report.caveats),
        "",
        "## Protocol",
        "",
        *(f"- {line}" for line in _protocol(report)),
        "",
    ]
    return "\n".join(lines)


def _cell(knockout: Knockout, i: int) -> str:
    cell = show.cell(knockout.buckets[i])
    is_found = knockout.adjusted_p and knockout.adjusted_p[i] < _LEVEL
    return f"**{cell}**" if is_found else cell


def _section(section: Section) -> list[str]:
    caveat, protocol = section.instrument.caveat, section.instrument.protocol
    return [f"## {section.title}", "", *markdown_of(section.columns), "", caveat, protocol, ""]


def _protocol(report: Report) -> list[str]:
    corpus = report.corpus
    return [
        f"Each document alone in its row, {report.length:,} tokens from its start in one pass "
        f"(full scoring); rows of training had {report.training_length:,}.",
        f"{report.documents} documents of the {report.split} split, {report.tokens:,} tokens, "
        f"{report.bytes:,} bytes; all at least as long as the last position.",
        f"Intervals: 95%, {report.interval_method} over documents"
        + (f", {report.resamples:,} resamples." if "bootstrap" in report.interval_method else "."),
        f"Model: {show.count(report.params)} parameters, "
        f"{show.count(report.flops_per_token)} forward FLOPs per token, "
        f"{show.memory(report.state_bytes)} of state; {report.dtype} activations.",
        f"Corpus: `{corpus['source']}`, files {corpus['fingerprint'][:16]}, tokens of the split "
        f"{corpus['split_sha256'][:16]}.",
        f"Tokenizer: {corpus['tokenizer']}, {corpus['vocab_size']} ids, "
        f"{corpus['tokenizer_sha256'][:16]}.",
        *([f"Seeds: {_items(report.seeds)}."] if report.seeds else []),
        *([f"Versions: {_items(report.versions)}."] if report.versions else []),
        *(f"Not run: {part.name}, {part.reason}." for part in report.not_run),
        f"Device: {report.device}; jax {report.jax_version}; {report.date}.",
        "Documents: "
        + "; ".join(
            f"{index} {' '.join(name.split())}"
            for index, name in zip(report.document_indices, report.document_names, strict=True)
        )
        + ".",
    ]


def _items(values: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())
