"""The tables of the instruments: every number, no number cut, and how not to read it."""

import dataclasses
import io

import pytest
from rich.console import Console

from hybrid_lm.report import render, scalars, to_markdown
from hybrid_lm.results import Instrument
from tests.reports import full_report
from tests.test_report import REPORT

FULL = full_report()
NAMES = ("causality", "knockout", "field", "shapley", "token_classes", "scoring", "lens")
FULL = dataclasses.replace(
    FULL, instruments=tuple(Instrument(name, f"{name} caveat", f"{name} rows") for name in NAMES)
)
TITLES = (
    *("Later tokens drawn anew", "Knock-outs and their control", "Receptive field cut"),
    *("Shapley values", "By token class", "Scoring modes", "What can be decoded at the exits"),
)


def printed(report, width):
    console = Console(file=io.StringIO(), width=width)
    console.print(render(report))
    return console.file.getvalue()


def test_every_instrument_has_its_table_and_its_caveat():
    text, markdown = printed(FULL, 120), to_markdown(FULL)
    for title in TITLES:
        assert title in text
        assert f"## {title}" in markdown
    for name in NAMES:
        assert f"{name} caveat" in text
        assert f"{name} caveat\n{name} rows" in markdown
    missing = FULL.not_run[0]
    assert f"{missing.name} ({missing.reason})" in text
    assert f"Not run: {missing.name}, {missing.reason}." in markdown


def test_an_instrument_that_has_not_run_has_no_table():
    for title in TITLES:
        assert title not in printed(REPORT, 120)
        assert title not in to_markdown(REPORT)


@pytest.mark.parametrize("width", [*range(40, 124, 4), 200])
def test_no_number_of_a_table_is_cut(width):
    text = printed(FULL, width)
    early = FULL.groups[0]
    half = (early.shapley.ci95[1] - early.shapley.ci95[0]) / 2
    assert f"{early.shapley.value:+.3f} ± {half:.3f}" in text
    assert f"{early.knockout.delta_nll:+.3f} ± 0.010" in text
    kind = FULL.token_classes[0]
    half = (kind.groups[0].ci95[1] - kind.groups[0].ci95[0]) / 2
    assert f"{kind.groups[0].delta_nll:+.3f} ± {half:.3f}" in text
    streaming = next(score for score in FULL.scoring if score.mode == "streaming")
    assert f"{streaming.delta_nll:+.4f} ± 0.0020" in text


def test_numbers_are_those_of_the_report():
    markdown = to_markdown(FULL)
    early = FULL.groups[0]
    cuts = [f"{cut.buckets[-1].delta_nll:+.4f}" for cut in early.field.widths]
    reach = early.field.effective_context
    shown = "> 4k" if reach is None else f"{reach // 1024}k" if reach >= 1024 else str(reach)
    assert f"| early | {' | '.join(cuts)} | {shown} |" in markdown
    lens = early.lens
    assert f"| {early.exit_nll:.4f} | +0.5000 | {lens.exit_nll:.4f} | +0.4000 |" in markdown
    assert f"| all | +{FULL.shapley.total:.3f} ± 0.045 | 100.0% |" in markdown


def test_cells_that_stand_the_correction_are_bold():
    markdown = to_markdown(FULL)
    found, not_found = FULL.groups[0].knockout, FULL.groups[3].knockout
    assert found.adjusted_p[0] < 0.05 < not_found.adjusted_p[0]
    assert f"**{found.buckets[0].delta_nll:+.4f} (" in markdown
    assert f"| {not_found.buckets[0].delta_nll:+.4f} (" in markdown
    assert f"Bold: adjusted p < 0.05; {FULL.correction}." in markdown


def test_scalars_of_the_instruments_have_flat_names():
    values = scalars(FULL)
    assert values["group/early/control_nats"] == 0.3
    assert values["group/early/shapley_nats"] == FULL.groups[0].shapley.value
    assert values["group/early/mean_ablation_nats"] == FULL.groups[0].knockout_mean.delta_nll
    assert values["eval/full/16384/bits_per_byte"] == FULL.scoring[0].bits_per_byte
    assert "group/early/shapley_nats" not in scalars(REPORT)
