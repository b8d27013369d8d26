"""report.html: whole, self-contained, and right in a real browser, wide and narrow."""

import dataclasses
import json
import re
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from hybrid_lm import page
from hybrid_lm.octaves import octaves
from hybrid_lm.page import heatmap, theme
from hybrid_lm.page.mixers import LAWS
from hybrid_lm.report import to_markdown
from hybrid_lm.results import NotRun, Report
from tests.browser import MEASURE, MODES, WIDTHS, needs_browser, words
from tests.reports import GROUPS, KINDS, full_report

FULL = full_report()
PUBLISHED = Report.from_json(
    json.loads(Path("experiments/results/hybrid_8k_h100_report.json").read_text(encoding="utf-8"))
)


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Files of a page with everything and of one without the instruments."""
    directory = tmp_path_factory.mktemp("pages")
    for name, report in {"full": FULL, "published": PUBLISHED}.items():
        (directory / f"{name}.html").write_text(page.render(report), encoding="utf-8")
    return directory


def test_the_tables_have_the_numbers_of_the_markdown(pages):
    text = words((pages / "published.html").read_text(encoding="utf-8"))
    numbers = re.findall(r"[+-]?\d+\.\d{3,}", to_markdown(PUBLISHED))
    assert len(numbers) > 100
    assert not [number for number in numbers if number not in text]


def test_every_part_that_has_run_is_there_with_its_caveat(pages):
    text = words((pages / "full.html").read_text(encoding="utf-8"))
    for part in FULL.instruments:
        assert part.caveat in text
        assert part.protocol in text
    for name, *_ in (*GROUPS, *KINDS):
        assert name in text
    for start, end in octaves(FULL.length):
        assert f"{start}-{end}" in text
    assert "adjusted p position without early" in text
    assert "0-128 < 0.001 < 0.001 < 0.001 0.731" in text
    for hash_ in ("fingerprint", "split_sha256", "tokenizer_sha256"):
        assert FULL.corpus[hash_] in text
    assert "A <b>long</b> name & more" in text
    for caveat in FULL.caveats:
        assert caveat in text


def test_what_has_not_run_is_named_and_not_drawn(pages):
    published = (pages / "published.html").read_text(encoding="utf-8")
    full = (pages / "full.html").read_text(encoding="utf-8")
    for name in ("field", "shapley", "token-classes", "scoring", "mixers"):
        assert f'<section id="{name}"' not in published
        assert f'<section id="{name}"' in full
    text = words(published)
    for name in ("causality", "knockout", "field", "lens", "shapley", "token_classes", "scoring"):
        assert f"{name}: not in this report" in text
    reason = dataclasses.replace(PUBLISHED, not_run=(NotRun("shapley", "more than 6 groups"),))
    text = words(page.render(reason))
    assert "shapley: more than 6 groups" in text
    assert "shapley: not in this report" not in text


def test_the_laws_on_the_board_are_those_of_the_tests():
    files = {path.name for path in Path("tests/laws").glob("test_*.py")}
    assert {law.test for law in LAWS} == files - {"test_bidirectional.py"}


def test_images_need_no_browser():
    images = page.pngs(PUBLISHED)
    assert images.keys() == {"figure/positions", "figure/knockout", "figure/exits"}
    assert all(png.startswith(b"\x89PNG") for png in images.values())
    assert len(set(images.values())) == 3


@needs_browser
@pytest.mark.parametrize("name", ["full", "published"])
@pytest.mark.parametrize(("width", "mode"), [*product(WIDTHS, MODES)])
def test_nothing_is_cut_overlaps_or_fails(opened, name, width, mode):
    tab = opened(name, width, mode)
    tab.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true })")
    charts = {"full": 10, "published": 3}[name]
    expected = dict(page=0, wide=[], cut=[], small=[], overlapping=[], charts=charts)
    assert tab.evaluate(MEASURE) == expected
    assert tab.trouble == []


@needs_browser
def test_what_is_wrong_would_be_seen(opened):
    tab = opened("published", 400)
    tab.evaluate(
        """() => {
          const text = document.querySelector(".chart svg text");
          text.parentNode.append(text.cloneNode(true));
          const tiny = text.cloneNode(true);
          tiny.setAttribute("transform", "translate(-500,0)");
          tiny.setAttribute("font-size", "5px");
          text.parentNode.append(tiny);
          document.querySelector("main").insertAdjacentHTML(
            "beforeend", "<p style='width: 500px'>wide</p>");
          console.log("said");
        }"""
    )
    found = tab.evaluate(MEASURE)
    assert found["page"] > 0
    assert found["wide"][-1].startswith("<p")
    assert [len(found[name]) for name in ("cut", "small", "overlapping")] == [1, 1, 1]
    assert tab.trouble == ["said"]


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const luminance = (colour) => {
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) => {
      const share = value / 255;
      return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = luminance(getComputedStyle(document.body).backgroundColor);
  const contrast = (colour) => {
    const ink = luminance(colour);
    return (Math.max(ink, ground) + 0.05) / (Math.min(ink, ground) + 0.05);
  };
  const style = (selector, name) =>
    [...document.querySelectorAll(selector)].map((node) => contrast(getComputedStyle(node)[name]));
  return {
    ground,
    words: Math.min(...style(".role-axis-label text, .role-axis-title text", "fill")),
    page: Math.min(...style("p, h1, h2, td, th, dt, dd", "color")),
    marks: Math.min(...style("#field .mark-line path", "stroke")),
  };
}"""


@needs_browser
def test_both_modes_and_paper_can_be_read(opened):
    tab = opened("full", mode="light")
    light = tab.evaluate(CONTRASTS)
    tab.emulate_media(color_scheme="dark")
    dark = tab.evaluate(CONTRASTS)
    tab.emulate_media(color_scheme="dark", media="print")
    printed = tab.evaluate(CONTRASTS)
    assert light["ground"] == printed["ground"] == 1
    assert dark["ground"] < 0.05
    for seen in (light, dark, printed):
        assert seen["words"] > 4.5
        assert seen["page"] > 4.5
        assert seen["marks"] > 3
    assert tab.trouble == []


def luminance(rgb):
    """WCAG 2.2."""
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


@pytest.mark.parametrize("colours", [theme.LIGHT, theme.DARK], ids=MODES)
@pytest.mark.parametrize("sign", ["worse", "better"])
def test_numbers_can_be_read_on_every_cell_of_a_heat_map(colours, sign):
    def rgb(name):
        return np.array([int(colours[name][i : i + 2], 16) / 255 for i in (1, 3, 5)])

    for strength in np.linspace(0, 1, 101):
        opacity = heatmap.FAINTEST + (1 - heatmap.FAINTEST) * strength
        cell = luminance(opacity * rgb(sign) + (1 - opacity) * rgb("ground"))
        number = luminance(rgb("on-strong" if strength > heatmap.STRONG else "ink"))
        assert (max(cell, number) + 0.05) / (min(cell, number) + 0.05) > 4


@needs_browser
def test_a_group_is_hidden_in_all_figures_and_shown_again(opened):
    tab = opened("full")
    cells = "#knockout-skip .mark-rect path"
    lines = "#field-widths .mark-line path"
    bars = "#shapley-values .mark-rect path"

    def counts():
        return [tab.locator(selector).count() for selector in (cells, lines, bars)]

    before = counts()
    assert before == [len(GROUPS) * len(octaves(FULL.length)), len(GROUPS), len(GROUPS)]
    tab.locator("#knockout input[value=middle]").uncheck()
    tab.wait_for_function(f"document.querySelectorAll('{bars}').length === {len(GROUPS) - 1}")
    assert counts() == [count * (len(GROUPS) - 1) // len(GROUPS) for count in before]
    assert not tab.locator("#field input[value=middle]").is_checked()
    tab.locator("#shapley input[value=middle]").check()
    tab.wait_for_function(f"document.querySelectorAll('{bars}').length === {len(GROUPS)}")
    assert counts() == before
    assert tab.trouble == []


@needs_browser
def test_hovering_a_mark_shows_its_numbers(opened):
    tab = opened("full")
    tab.locator("#knockout-skip .mark-rect path").first.hover()
    tip = tab.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    first = FULL.groups[0].knockout.buckets[0]
    for part in ("early", "0-128", f"{first.delta_nll:+.4f} nats", "< 0.001"):
        assert part in tip.inner_text()
    assert tab.trouble == []
