"""`python -m hybrid_lm.compare`: pairing, tables against hand computation, runs it refuses."""

import dataclasses
import json
import math
from functools import partial

import numpy as np
import pytest
from scipy import stats

from hybrid_lm.compare import __main__ as command
from hybrid_lm.compare.difference import difference
from hybrid_lm.compare.results import compare
from hybrid_lm.compare.throughput import curve, iso_time, iso_tokens, loss_points
from hybrid_lm.run_dir import RunDir
from hybrid_lm.statistics import (
    minimum_detectable_effect,
    minimum_detectable_effect_over_seeds,
)
from tests.handmade import DOCUMENTS, LENGTH, SPANS, nats_of, report_of, write_run


@pytest.fixture
def call(run_main):
    return partial(run_main, command)


def test_differences_are_paired_by_document():
    """Documents differ by far more than the models do; pairing takes that out."""
    nats = nats_of(0) + 500 * np.arange(DOCUMENTS)[:, None]
    saved = np.array([3.0, 6.0, 9.0, 3.0, 6.0, -3.0])
    better = nats.copy()
    better[:, -1] -= saved
    found = difference([report_of(better)], [report_of(nats)])
    per_token = -saved / LENGTH
    half = stats.t.ppf(0.975, 5) * per_token.std(ddof=1) / math.sqrt(6)
    assert found.delta_nll == pytest.approx(per_token.mean())
    assert found.ci95 == pytest.approx((per_token.mean() - half, per_token.mean() + half))
    assert found.win_rate == pytest.approx(5 / 6)
    factor = stats.t.ppf(0.975, 5) + stats.t.ppf(0.8, 5)
    assert found.minimum_detectable_effect == pytest.approx(
        factor * per_token.std(ddof=1) / math.sqrt(6)
    )
    *earlier, last = found.buckets
    assert [(bucket.delta_nll, bucket.ci95) for bucket in earlier] == [(0, (0, 0))] * 2
    start, end = SPANS[-1]
    assert (last.start, last.end) == (start, end)
    assert last.delta_nll == pytest.approx(-saved.mean() / (end - start))
    assert (found.documents, found.seeds) == (DOCUMENTS, 1)


def test_seeds_are_paired_and_their_spread_counts():
    base = [nats_of(seed) for seed in (0, 1)]
    rng = np.random.default_rng(2)
    change = rng.normal(-3, 1, (DOCUMENTS, 1)) * np.ones((1, len(SPANS)))

    def found(*shifts):
        other = [report_of(n + change + shift) for n, shift in zip(base, shifts, strict=True)]
        return difference(other, [report_of(n) for n in base])

    alike, apart = found(0, 0), found(-6, 6)
    mean = (change.sum(axis=1) / LENGTH).mean()
    assert alike.delta_nll == pytest.approx(mean)
    assert apart.delta_nll == pytest.approx(mean)
    assert alike.ci95[1] < 0 < apart.ci95[1]
    assert alike.minimum_detectable_effect < apart.minimum_detectable_effect
    assert apart.win_rate == pytest.approx(0.5 * 1 + 0.5 * 0)
    assert apart.seeds == 2


def test_what_is_detectable_over_seeds_is_found_in_4_of_5_studies():
    """Two seeds that spread far more than documents: a t-test with one degree of freedom."""
    rng = np.random.default_rng(0)
    studies, sigma = 4000, 0.3
    seeds_SR = rng.normal(0, sigma, (2, studies))
    error = sigma / math.sqrt(2)
    effect = minimum_detectable_effect_over_seeds(
        np.array([[-1.0], [1.0]]) * error + rng.normal(0, 1e-6, (2, DOCUMENTS))
    )
    assert effect == pytest.approx(16.334 * error, rel=1e-3)
    found = stats.ttest_1samp(seeds_SR + effect, 0).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=4 * math.sqrt(0.16 / studies))


def test_seeds_that_agree_leave_the_documents():
    differences = np.random.default_rng(0).normal(size=25)
    assert minimum_detectable_effect_over_seeds(np.stack([differences] * 3)) == pytest.approx(
        minimum_detectable_effect(differences), rel=0.01
    )


def test_loss_at_equal_tokens_and_time(tmp_path):
    """The second run is twice as slow and half as long; text has half a token per byte."""
    losses = [4.0, 3.0, 2.0, 1.0]
    fast = RunDir(write_run(tmp_path / "fast", report_of(nats_of(0)), losses=losses))
    slow = RunDir(
        write_run(tmp_path / "slow", report_of(nats_of(0)), losses=losses[:2], step_ms=20.0)
    )
    curves = [curve(run, until=100) for run in (fast, slow)]
    assert curves[0].seconds.tolist() == pytest.approx([0.02, 0.04, 0.06, 0.08])
    assert curves[1].seconds.tolist() == pytest.approx([0.04, 0.08])
    assert curves[0].tokens_per_s == pytest.approx(2e4)
    bits = np.array(losses) / math.log(2) / 2
    assert [point.bits_per_byte for point in loss_points(curves[0])] == pytest.approx(bits)
    half, end = (dataclasses.astuple(point) for point in loss_points(curves[0], most=2))
    assert half == pytest.approx((200, 0.04, bits[:2].mean()))
    assert end == pytest.approx((400, 0.08, bits[2:].mean()))
    by_tokens, by_time = iso_tokens(curves), iso_time(curves)
    assert [budget.amount for budget in by_tokens] == [100, 200]
    assert by_tokens[-1].bits_per_byte == pytest.approx((bits[1], bits[1]))
    assert [budget.amount for budget in by_time] == pytest.approx([0.04, 0.08])
    assert by_time[0].bits_per_byte == pytest.approx((bits[1], bits[0]))
    assert by_time[1].bits_per_byte == pytest.approx((bits[3], bits[1]))


def test_what_was_trained_after_the_report_does_not_count(tmp_path):
    run = write_run(tmp_path / "run", report_of(nats_of(0)), losses=[4.0, 3.0, 2.0])
    other = write_run(tmp_path / "other", report_of(nats_of(1)), losses=[4.0, 3.0])
    first, _ = compare([run, other]).runs
    assert (first.step, first.trained_tokens) == (4, 200)


def test_tables_and_files(tmp_path, call):
    nats = nats_of(0)
    base = write_run(tmp_path / "base", report_of(nats))
    other = write_run(tmp_path / "other", report_of(nats + 3), tokens=200)
    code, printed, _ = call(base, other, "--output", tmp_path / "out")
    assert code == 0
    delta = 3 * len(SPANS) / LENGTH
    for text in ("vs base", f"{delta:+.4f} ± 0.0000", "6 documents of 300 tokens", "20,000"):
        assert text in printed
    record = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert [run["name"] for run in record["runs"]] == ["base", "other"]
    assert record["runs"][0]["difference"] is None
    found = record["runs"][1]["difference"]
    assert found["delta_nll"] == pytest.approx(delta)
    assert [b["delta_nll"] for b in found["buckets"]] == pytest.approx(
        [3 / (end - start) for start, end in SPANS]
    )
    markdown = (tmp_path / "out" / "compare.md").read_text()
    assert f"| other | {delta:+.4f} | {delta:+.4f} to {delta:+.4f} | 0% |" in markdown
    assert "not that of the training seed" in markdown
    assert max(map(len, printed.splitlines()[:-1])) <= 100


OTHER_SPLIT = {"split_sha256": "1" * 64}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "validation"}, "are not evaluated on the same documents: split: "),
        ({"length": 299}, "length: 300 tokens and 299 tokens"),
        ({"document_indices": (0, 1, 2, 3, 4, 7)}, "documents: 6 (0, 1, 2, 3, ...) and 6 (0"),
        ({"document_nats": ()}, "the report of other has no NLL per document"),
        ({"corpus": OTHER_SPLIT}, "documents of the split: "),
        ({"corpus": {"tokenizer_sha256": "1" * 64}}, "tokenizer: "),
    ],
)
def test_runs_on_other_documents_are_refused(tmp_path, call, changes, message):
    base, other = report_of(nats_of(0)), report_of(nats_of(0))
    base = dataclasses.replace(base, split="test")
    changes = {"split": "test"} | changes
    changes["corpus"] = base.corpus | changes.get("corpus", {})
    other = dataclasses.replace(other, **changes)
    paths = [write_run(tmp_path / "base", base), write_run(tmp_path / "other", other)]
    code, printed, error = call(*paths, "--output", tmp_path / "out")
    assert (code, printed) == (2, "")
    assert message in error
    assert "other" in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_bad_input_is_one_line_and_exit_code_2(tmp_path, call):
    run = write_run(tmp_path / "run", report_of(nats_of(0)))
    no_metrics = write_run(tmp_path / "mute", report_of(nats_of(1)))
    (no_metrics / "metrics.jsonl").unlink()
    for args, message in [
        ([run], "at least two runs"),
        ([run, run], "is given twice"),
        ([run, tmp_path / "nowhere"], "nowhere is no run directory"),
        ([run, no_metrics, "--report", "report-length9"], "report-length9"),
        ([run, no_metrics], "has no line up to step 4"),
        ([run, no_metrics, "--ouptut", "x"], "did you mean --output?"),
        ([], "at least two runs"),
    ]:
        code, printed, error = call(*args)
        assert (code, printed) == (2, "")
        assert message in error
        assert len(error.splitlines()) == 1
