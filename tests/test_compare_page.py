"""compare.html: the numbers of the tables, and right in a real browser, wide and narrow."""

import dataclasses

import numpy as np
import pytest

from hybrid_lm.compare import page
from hybrid_lm.compare.results import compare
from hybrid_lm.compare.tables import to_markdown
from hybrid_lm.octaves import octaves
from tests.browser import MEASURE, WIDTHS, needs_browser, words
from tests.handmade import write_run
from tests.test_page import PUBLISHED

NAMES = ("none-seed0", "middle-seed0", "late-seed0", "<b>early<b> & long name of a run")


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    """The published report under four names, with differences and losses of their own."""
    root = tmp_path_factory.mktemp("runs")
    rng = np.random.default_rng(0)
    shape = (PUBLISHED.documents, len(octaves(PUBLISHED.length)))
    base = rng.normal(1e3, 100, shape)
    paths = []
    for i, name in enumerate(NAMES):
        nats = base + i * rng.normal(-2, 1, shape)
        report = dataclasses.replace(PUBLISHED, document_nats=tuple(map(tuple, nats.tolist())))
        losses = (2 + 2 / np.sqrt(np.arange(1, 121)) + rng.normal(0, 0.05, 120)).tolist()
        run = write_run(root / name, report, losses=losses, step_ms=200 + i)
        paths.append(run)
    return compare(paths)


@pytest.fixture(scope="module")
def pages(comparison, tmp_path_factory):
    directory = tmp_path_factory.mktemp("page")
    (directory / "compare.html").write_text(page.render(comparison), encoding="utf-8")
    return directory


def test_the_page_has_the_numbers_of_the_markdown(comparison, pages):
    text = words((pages / "compare.html").read_text(encoding="utf-8"))
    runs = [run for run in comparison.runs if run.difference is not None]
    assert len(runs) == 3
    for run in runs:
        for bucket in run.difference.buckets:
            cell = f"{bucket.delta_nll:+.4f} ({bucket.ci95[0]:+.4f} to {bucket.ci95[1]:+.4f})"
            assert cell in text
            assert cell in to_markdown(comparison)
    assert "<b>early<b> & long name of a run" in text
    for caveat in comparison.caveats:
        assert caveat in text


@needs_browser
@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_overlaps_or_fails(opened, width):
    tab = opened("compare", width)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    expected = dict(page=0, wide=[], cut=[], small=[], overlapping=[], charts=5)
    assert tab.evaluate(MEASURE) == expected
    assert tab.trouble == []
