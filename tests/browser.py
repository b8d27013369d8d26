"""A page in a real browser, and what can be wrong with it there."""

import html
import re
import shutil

import pytest

WIDTHS, MODES = (400, 1400), ("light", "dark")
CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

# Everything on the page reaches from its left to its right edge at most, tables that scroll aside;
# words in a chart are inside it, large enough, and none lies on another.
MEASURE = """() => {
  const wide = [...document.querySelectorAll("body *")].filter((element) => {
    if (element.closest(".scroll") !== null || element.closest("svg svg, defs")) return false;
    const box = element.getBoundingClientRect();
    return box.width > 0 && (box.right > innerWidth + 0.5 || box.left < -0.5);
  });
  const cut = [], small = [], overlapping = [];
  for (const chart of document.querySelectorAll(".chart svg")) {
    const frame = chart.getBoundingClientRect();
    const words = [...chart.querySelectorAll("text")].filter(
      (text) => text.textContent.trim() && text.getAttribute("opacity") !== "0"
    );
    const boxes = words.map((text) => text.getBoundingClientRect());
    words.forEach((text, i) => {
      const box = boxes[i];
      if (box.left < frame.left - 1 || box.right > frame.right + 1
          || box.top < frame.top - 1 || box.bottom > frame.bottom + 1
          || text.textContent.includes("…")) cut.push(text.textContent);
      if (parseFloat(getComputedStyle(text).fontSize) < 7) small.push(text.textContent);
      for (let j = 0; j < i; j++) {
        const other = boxes[j];
        if (box.left < other.right - 1 && other.left < box.right - 1
            && box.top < other.bottom - 3 && other.top < box.bottom - 3)
          overlapping.push([text.textContent, words[j].textContent]);
      }
    });
  }
  return {
    page: document.documentElement.scrollWidth - innerWidth,
    wide: wide.map((element) => element.outerHTML.slice(0, 80)),
    cut, small, overlapping,
    charts: document.querySelectorAll(".chart svg").length,
  };
}"""


def words(text):
    """What a page says, without style, scripts and tags."""
    text = re.sub(r"<(style|script)\b.*?</\1>", "", text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", text)).split())
