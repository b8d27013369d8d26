"use strict";

// Draws the charts of #charts and hides the series that the reader switches off. A chart follows
// the colours of the page by itself: it names them as CSS variables.
const { charts, config } = JSON.parse(document.getElementById("charts").textContent);
const options = {
  config,
  mode: "vega-lite",
  renderer: "svg",
  actions: false,
  tooltip: { theme: "page", disableDefaultStyle: true },
};
const views = Object.entries(charts).map(async ([id, { scope, spec }]) => {
  const { view } = await vegaEmbed(`#${CSS.escape(id)}`, spec, options);
  return { scope, view };
});

const boxes = [...document.querySelectorAll("input[data-scope]")];
for (const box of boxes) {
  box.checked = true; // a reload must not keep what an earlier visit hid
  box.addEventListener("change", () => toggle(box.dataset.scope, box.value, box.checked));
}

async function toggle(scope, name, shown) {
  for (const box of boxes) {
    if (box.dataset.scope === scope && box.value === name) box.checked = shown;
  }
  const hidden = boxes.filter((box) => box.dataset.scope === scope && !box.checked);
  const names = [...new Set(hidden.map((box) => box.value))];
  for (const chart of await Promise.all(views)) {
    if (chart.scope === scope) await chart.view.signal("hidden", names).runAsync();
  }
}

Promise.all(views).then(() => document.documentElement.setAttribute("data-drawn", ""));
