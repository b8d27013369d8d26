"""Reports for tests: made up, but with numbers of a plausible size, and everything measured."""

import math

from hybrid_lm.octaves import octaves
from hybrid_lm.results import (
    Bucket,
    Causality,
    CausalityGroup,
    Control,
    ExitBucket,
    Field,
    FieldWidth,
    GroupReport,
    Instrument,
    Knockout,
    KnockoutBucket,
    Lens,
    MixerReport,
    NotRun,
    Report,
    Scoring,
    Shapley,
    ShapleyTotal,
    TokenClass,
    TokenClassGroup,
)

GROUPS = (
    # name, pattern, exit NLL, tuned exit NLL, NLL change without it, reach in tokens
    ("early", "attn*2", 3.91, 2.61, 0.412, 700),
    ("middle", "(mamba*3, swa)*2", 2.12, 1.71, 0.957, 3000),
    ("late", "(mamba, hashed)*3", 1.62, 1.39, 0.041, 200),
    ("deep", "mamba2*4", 1.31, 1.31, 0.0007, 100),
)
KINDS = (
    ("repeat <256", 0.62, 0.1),
    ("repeat 256-1k", 0.71, 0.25),
    ("repeat 1-2k", 0.83, 0.4),
    ("repeat 2-4k", 0.97, 0.6),
    ("repeat >4k", 1.12, 1.0),
    ("first occurrence", 2.06, 0.05),
    ("frequent token", 1.02, 0.1),
    ("rare token", 3.31, 0.3),
    ("closing delimiter", 0.44, 0.7),
)


def full_report(length: int = 16384, training_length: int = 8192) -> Report:
    """Everything but sliding windows has run, on a model of four groups."""
    spans = octaves(length)
    buckets = _buckets(length, training_length, 1.35)
    total = sum(group[4] for group in GROUPS)
    return Report(
        documents=25,
        tokens=25 * length,
        bytes=25 * length,
        nll=1.3127,
        nll_ci95=(1.2861, 1.3402),
        perplexity=3.7162,
        perplexity_ci95=(3.6187, 3.8198),
        bits_per_byte=1.8938,
        bits_per_byte_ci95=(1.8555, 1.9335),
        buckets=buckets,
        groups=tuple(_group(spans, *group) for group in GROUPS),
        split="test",
        length=length,
        training_length=training_length,
        step=1700,
        params=51_720_704,
        flops_per_token=1.21e8,
        state_bytes=46_500_000,
        dtype="bfloat16",
        device="1 x NVIDIA H100 80GB HBM3",
        jax_version="0.11.2",
        date="2026-01-01T00:00:00+00:00",
        interval_method="BCa bootstrap",
        resamples=10_000,
        corpus={
            "source": "books/*.parquet",
            "fingerprint": "0123456789abcdef" * 4,
            "tokenizer": "bytes",
            "vocab_size": 257,
            "tokenizer_sha256": "a" * 64,
            "split_sha256": "b" * 64,
        },
        document_indices=tuple(range(25)),
        document_names=(*(f"Book {i}" for i in range(24)), "A <b>long</b> name & more"),
        seeds={"training": 0, "resampling": 0, "control": 0},
        versions={"hybrid_lm": "0.1.0", "flax": "0.12.12"},
        mixers=_mixers(),
        entry_nll=5.41,
        lens_entry_nll=3.02,
        correction="Holm over the 32 cells group x octave",
        causality=Causality(
            8191, 8, tuple(CausalityGroup(group[0], 0.0, 3.4 + i) for i, group in enumerate(GROUPS))
        ),
        shapley=ShapleyTotal(1.3127 + total, total, (total - 0.04, total + 0.05)),
        token_classes=tuple(
            TokenClass(
                name=name,
                definition=f"the predicted token is of the kind: {name}",
                tokens=int(40_000 / nll),
                documents=25,
                nll=nll,
                ci95=(nll - 0.04, nll + 0.05),
                groups=tuple(
                    TokenClassGroup(g[0], (d := g[4] * weight), (d - 0.01, d + 0.012), 0.0004)
                    for g in GROUPS
                ),
            )
            for name, nll, weight in KINDS
        ),
        scoring=tuple(
            _scoring(mode, size, training_length, shift)
            for size in (length, 2 * length)
            for mode, shift in (("full", 0.0), ("streaming", 0.011))
        ),
        instruments=(
            Instrument("causality", "A few documents prove little.", "8 documents."),
            Instrument("knockout", "Neither form bounds a retrained model.", "5 draws a group."),
            Instrument("field", "Cut to w, a token sees w to 2w tokens.", "Widths 128 to 4096."),
            Instrument("shapley", "Coalitions are far from anything trained.", "16 coalitions."),
            Instrument("token_classes", "Classes overlap.", "n-grams of 8 tokens."),
            Instrument("lens", "What a trained map can decode.", "200 steps of AdamW."),
        ),
        not_run=(NotRun("sliding", "not asked for"),),
    )


def _buckets(length: int, training_length: int, level: float) -> tuple[Bucket, ...]:
    found = []
    for i, (start, end) in enumerate(octaves(length)):
        nll = level + 0.28 * math.exp(-i) + 0.06 * (end > training_length)
        wide = 0.05 / (1 + i / 2)
        found.append(Bucket(start, end, nll, (nll - wide, nll + 1.1 * wide), end > training_length))
    return tuple(found)


def _changes(spans, delta: float, reach: int) -> tuple[KnockoutBucket, ...]:
    found = []
    for start, end in spans:
        change = delta * (0.6 + 0.4 * math.tanh(end / reach))
        wide = 0.004 + 0.03 * abs(delta)
        found.append(KnockoutBucket(start, end, change, (change - wide, change + 1.2 * wide)))
    return tuple(found)


def _knockout(spans, delta: float, reach: int) -> Knockout:
    return Knockout(
        delta_nll=delta,
        ci95=(delta - 0.009, delta + 0.011),
        win_rate=1.0 if delta > 0.01 else 0.56,
        minimum_detectable_effect=0.0123,
        buckets=_changes(spans, delta, reach),
        adjusted_p=tuple(0.0004 if delta > 0.01 else 0.7312 for _ in spans),
    )


def _group(spans, name, pattern, exit_nll, tuned_nll, delta, reach) -> GroupReport:
    length = spans[-1][1]
    sizes = [2**i for i in range(7, 30) if 2**i <= length // 4]
    widths = []
    for width in sizes:
        lost = delta * math.exp(-width / reach)
        widths.append(
            FieldWidth(width, lost, (lost - 0.003, lost + 0.003), _changes(spans, lost, 1))
        )
    last = [width.buckets[-1].delta_nll for width in widths]
    enough = [width for width, lost in zip(sizes, last, strict=True) if lost <= 0.01]
    layers = {"early": 2, "middle": 8, "late": 6, "deep": 4}[name]
    return GroupReport(
        name=name,
        pattern=pattern,
        layers=layers,
        params=layers * 2_586_000,
        flops_per_token=layers * 6_100_000.0,
        state_bytes=layers * 2_300_000,
        exit_nll=exit_nll,
        exit_perplexity=math.exp(exit_nll),
        exit_buckets=tuple(ExitBucket(*span, exit_nll - i / 50) for i, span in enumerate(spans)),
        knockout=_knockout(spans, delta, reach),
        exit_gain=0.5,
        knockout_mean=_knockout(spans, 0.7 * delta, reach),
        control=Control(layers, ((3, 5),), 0.3, (0.29, 0.32), _changes(spans, 0.3, 500)),
        field=Field(tuple(widths), enough[0] if enough else None, 0.01),
        lens=Lens(
            exit_nll=tuned_nll,
            exit_perplexity=math.exp(tuned_nll),
            exit_buckets=tuple(ExitBucket(*span, tuned_nll) for span in spans),
            gain=0.4,
        ),
        shapley=Shapley(delta, (delta - 0.02, delta + 0.03), _changes(spans, delta, reach)),
    )


def _scoring(mode, length, training_length, shift) -> Scoring:
    return Scoring(
        mode=mode,
        length=length,
        window=None if mode == "full" else training_length,
        documents=21,
        nll=1.33 + shift,
        ci95=(1.3 + shift, 1.36 + shift),
        bits_per_byte=1.92 + shift,
        bits_per_byte_ci95=(1.88 + shift, 1.97 + shift),
        delta_nll=shift,
        delta_ci95=(shift - 0.002, shift + 0.002) if shift else (0.0, 0.0),
        buckets=_buckets(length, training_length, 1.35 + shift),
    )


def _mixers() -> tuple[MixerReport, ...]:
    attention = "Softmax attention: grouped queries, rotary positions, normalised queries and keys"
    rows = (
        ("attn", "attention", attention, "1706.03762", {"heads": 8}, 2, False),
        ("mamba", "mamba", "Mamba: a selective state space", "2312.00752", {}, 9, True),
        ("swa", "attention", attention, "1706.03762", {"heads": 8, "window": 1024}, 2, True),
        ("hashed", "reformer", "Attention by hashing", "2001.04451", {"rounds": 2}, 3, True),
        ("mamba2", "mamba2", "Mamba-2: state-space duality", "2405.21060", {}, 4, True),
    )
    return tuple(
        MixerReport(name, key, what, arxiv, settings, layers, 6.1e6, 2_300_000, True, bounded)
        for name, key, what, arxiv, settings, layers, bounded in rows
    )
