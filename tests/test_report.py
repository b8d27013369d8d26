"""The report's files and table: everything is there, no number is cut, nothing half-written."""

import dataclasses
import io
import json
import os

import pytest
from rich.console import Console

from hybrid_lm.errors import UserError
from hybrid_lm.octaves import octaves
from hybrid_lm.report import read, render, scalars, to_markdown, write
from hybrid_lm.results import Bucket, ExitBucket, GroupReport, Knockout, KnockoutBucket, Report


def group_report(name, pattern, exit_perplexity, delta, length):
    spans = octaves(length)
    return GroupReport(
        name=name,
        pattern=pattern,
        layers=8,
        params=12_345_678,
        flops_per_token=24_691_356.0,
        state_bytes=16 * 2**20,
        exit_nll=3.0,
        exit_perplexity=exit_perplexity,
        exit_buckets=tuple(ExitBucket(*span, 3.0) for span in spans),
        knockout=Knockout(
            delta_nll=delta,
            ci95=(delta - 0.010, delta + 0.012),
            win_rate=0.875,
            minimum_detectable_effect=0.0156,
            buckets=tuple(
                KnockoutBucket(*span, delta + i / 1000, (delta - 1, delta + 1))
                for i, span in enumerate(spans)
            ),
        ),
    )


def make_report(length=8192, training_length=8192):
    return Report(
        documents=32,
        tokens=32 * length,
        bytes=40 * length,
        nll=1.4601,
        nll_ci95=(1.41, 1.52),
        perplexity=4.306,
        perplexity_ci95=(4.1, 4.572),
        bits_per_byte=2.1065,
        bits_per_byte_ci95=(2.034, 2.193),
        buckets=tuple(
            Bucket(start, end, 2.0 - i / 10, (1.0, 3.0), end > training_length)
            for i, (start, end) in enumerate(octaves(length))
        ),
        groups=(
            group_report("early", "attn*2", 41.234, 0.412, length),
            group_report("middle", "(mamba*3, swa)*2", 12345.6, 10.5, length),
            group_report("deep", "mamba2*4, (attn, mamba)*12", 4.3061, -0.0004, length),
        ),
        split="validation",
        length=length,
        training_length=training_length,
        step=3000,
        params=40_000_000,
        flops_per_token=8e7,
        state_bytes=48 * 2**20,
        dtype="bfloat16",
        device="1 x cpu",
        jax_version="0.11.2",
        date="2026-01-01T00:00:00+00:00",
        interval_method="BCa bootstrap",
        resamples=2000,
        corpus={
            "source": "books/*.parquet",
            "fingerprint": "f" * 64,
            "tokenizer": "bytes",
            "vocab_size": 257,
            "tokenizer_sha256": "a" * 64,
            "split_sha256": "b" * 64,
        },
        document_indices=(0, 7),
        document_names=("Moby Dick", "two\nlines"),
    )


REPORT = make_report()


def printed(report, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(report))
    return console.file.getvalue()


def test_the_table_fits_100_columns_with_every_number_but_the_cheapest():
    text = printed(REPORT, 100)
    assert max(map(len, text.splitlines())) <= 100
    for part in (
        *("step 3,000 · validation · 32 documents of 8,192 tokens = 262,144 tokens",),
        *("perplexity 4.306 (4.100 to 4.572)", "bits per byte 2.1065 (2.034 to 2.193)"),
        *("0-1k 1.788 · 1-2k 1.600 · 2-4k 1.500 · 4-8k 1.400",),
        *("41.23", "1.235e+04", "4.306", "16 MiB", "state", "@8k", "exit", "0-1k", "4-8k"),
        *("+0.412 ± 0.011", "+10.500 ± 0.011", "-0.000 ± 0.011"),
    ):
        assert part in text, part


@pytest.mark.parametrize("width", [*range(36, 130), 160])
def test_no_number_is_cut_at_any_width(width):
    text = printed(REPORT, width)
    table = text.split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= width
    values_by_header = {
        "(nats)": ["+0.412 ± 0.011", "+10.500 ± 0.011", "-0.000 ± 0.011"],
        "layers": ["8"],
        "params": ["12.3M"],
        "state": ["16 MiB"],
        "exit": ["41.23", "1.235e+04", "4.306"],
        "0-1k": ["+0.414", "+10.502", "+0.002"],
        "1-2k": ["+0.416", "+10.504", "+0.004"],
        "2-4k": ["+0.417", "+10.505", "+0.005"],
        "4-8k": ["+0.418", "+10.506", "+0.006"],
    }
    words = set(table.split())
    for header, values in values_by_header.items():
        if header in words:
            assert all(value in table for value in values), header
    assert "(nats)" in words
    left_out = "only in report.md" in " ".join(text.split())
    assert left_out == (len(values_by_header.keys() & words) < len(values_by_header))


def test_a_wide_terminal_has_every_column():
    text = printed(REPORT, 160)
    for header in ("group", "pattern", "layers", "params", "without it", "2-4k", "4-8k"):
        assert header in text
    assert "(mamba*3, swa)*2" in text
    assert "12.3M" in text


def test_earlier_octaves_are_merged_by_their_tokens():
    buckets = REPORT.groups[0].knockout.buckets
    first = sum(b.delta_nll * (b.end - b.start) for b in buckets[:4]) / 1024
    assert f"{first:+.3f}" == "+0.414"
    rows = [line for line in printed(REPORT, 160).splitlines() if line.startswith("early")]
    assert rows[0].split()[-4:] == ["+0.414", "+0.416", "+0.417", "+0.418"]


def test_a_short_evaluation_has_as_many_positions_as_octaves():
    assert "0-128 2.000 · 128-200 1.900" in printed(make_report(200, 200), 100)
    assert "nats per token by position: 0-50 2.000\n" in printed(make_report(50, 200), 100)


def test_positions_beyond_training_are_marked():
    text = printed(make_report(16384, 8192), 160)
    assert "8-16k*" in text
    assert "4-8k*" not in text
    assert "* beyond the 8,192 tokens of training" in text
    markdown = to_markdown(make_report(16384, 8192))
    assert "| 8192-16384* |" in markdown
    assert "| 4096-8192 |" in markdown
    assert "beyond the 8,192 tokens" in markdown


def test_markdown_holds_every_octave_caveat_hash_and_document():
    markdown = to_markdown(REPORT)
    for start, end in octaves(8192):
        assert markdown.count(f"| {start}-{end} |") == 2
    for caveat in REPORT.caveats:
        assert caveat in markdown
    for part in ("f" * 16, "a" * 16, "b" * 16, "jax 0.11.2", "0 Moby Dick; 7 two lines", "1 x cpu"):
        assert part in markdown
    assert "+0.4120 (-0.5880 to +1.4120)" in markdown
    assert "| +0.412 ± 0.011 | +0.4020 to +0.4240 | 88% | 0.0156 |" in markdown
    tables = [line for line in markdown.splitlines() if line.startswith("|")]
    assert {line.count("|") for line in tables} == {12, 7, 5}


def test_scalars_have_flat_names():
    values = scalars(REPORT)
    assert values["eval/bits_per_byte"] == 2.1065
    assert values["eval/perplexity"] == 4.306
    assert values["eval/nll_by_position/4096-8192"] == pytest.approx(1.4)
    assert values["group/early/exit_perplexity"] == 41.234
    assert values["group/early/knockout_nats"] == 0.412
    assert values["group/deep/knockout_by_position/0-128"] == -0.0004


def test_files_replace_earlier_ones_and_leave_nothing_else(tmp_path):
    directory = tmp_path / "run" / "report"
    write(REPORT, directory)
    write(dataclasses.replace(REPORT, step=4000), directory)
    assert sorted(os.listdir(directory)) == ["report.html", "report.json", "report.md"]
    assert json.loads((directory / "report.json").read_text())["step"] == 4000
    assert (directory / "report.md").read_text().startswith("# Evaluation at step 4,000")


def test_what_is_read_is_what_was_written(tmp_path):
    write(REPORT, tmp_path)
    assert read(tmp_path) == REPORT
    for content in ("{}", "not JSON", "[]"):
        (tmp_path / "report.json").write_text(content)
        with pytest.raises(UserError, match="holds no report of this version"):
            read(tmp_path)


def test_a_failure_leaves_the_earlier_report(tmp_path):
    write(REPORT, tmp_path)
    with pytest.raises(ValueError, match="JSON"):
        write(dataclasses.replace(REPORT, nll=float("nan")), tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["nll"] == REPORT.nll
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        write(REPORT, tmp_path / "file" / "report")
