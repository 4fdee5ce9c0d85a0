"use strict";
// Draws every figure of the page from the data block beside it, in the reader's theme.
(function () {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const narrow = window.matchMedia("(max-width: 640px)");

  function colour(name) {
    return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  }

  // Values that depend on the theme, as paths that Plotly.relayout understands.
  function themed(layout) {
    const update = {
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      "font.color": colour("--ink"),
      "font.family": colour("--sans"),
      "font.size": 13,
      // A finger that scrolls the page must not zoom a chart.
      dragmode: narrow.matches ? false : "zoom",
      "modebar.bgcolor": "rgba(0,0,0,0)",
      "modebar.color": colour("--quiet"),
      "modebar.activecolor": colour("--accent"),
      "hoverlabel.bgcolor": colour("--panel"),
      "hoverlabel.bordercolor": colour("--line"),
      "hoverlabel.font.color": colour("--ink"),
    };
    for (const axis of Object.keys(layout).filter((key) => /^[xy]axis\d*$/.test(key))) {
      update[axis + ".gridcolor"] = colour("--grid");
      update[axis + ".zerolinecolor"] = colour("--line");
      update[axis + ".linecolor"] = colour("--line");
      update[axis + ".title.standoff"] = 12;
      update[axis + ".title.font.size"] = narrow.matches ? 11 : 13;
    }
    return update;
  }

  function apply(layout, update) {
    for (const [path, value] of Object.entries(update)) {
      const keys = path.split(".");
      const last = keys.pop();
      let target = layout;
      for (const key of keys) {
        target = target[key] = target[key] || {};
      }
      target[last] = value;
    }
    return layout;
  }

  // Plotly offers to upload a chart to its makers' server unless told otherwise.
  const config = {
    responsive: true,
    displaylogo: false,
    showSendToCloud: false,
    plotlyServerURL: "",
    modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d", "sendChartToCloud"],
  };
  const drawn = [];
  for (const holder of document.querySelectorAll("[data-figure]")) {
    const block = document.getElementById(holder.dataset.figure);
    const figure = JSON.parse(block.textContent);
    const layout = apply(figure.layout, themed(figure.layout));
    const canZoom = figure.data.some((trace) => trace.type === "scatter");
    const tools = { ...config, displayModeBar: canZoom ? "hover" : false };
    drawn.push(Plotly.newPlot(holder, figure.data, layout, tools).then(() => holder));
  }
  Promise.all(drawn).then((holders) => {
    document.documentElement.dataset.drawn = String(holders.length);
    const redraw = () => {
      for (const holder of holders) {
        Plotly.relayout(holder, themed(holder.layout));
      }
    };
    dark.addEventListener("change", redraw);
    narrow.addEventListener("change", redraw);
  });
})();
