"use strict";
(() => {
  const config = { responsive: true, displayModeBar: false };
  const touch = matchMedia("(pointer: coarse)").matches;

  // Draws the panels that the lists above a chart choose; names hidden in the legend stay hidden.
  function show(chart) {
    const spec = JSON.parse(chart.querySelector("script").textContent);
    const stage = chart.querySelector(".panels");
    const hidden = new Set();
    for (const drawn of stage.querySelectorAll(".figure")) {
      for (const trace of drawn.data) if (trace.visible === "legendonly") hidden.add(trace.name);
      drawn.ready.then(() => Plotly.purge(drawn));
    }
    let index = 0;
    chart.querySelectorAll("select").forEach((select) => {
      index = index * select.options.length + select.selectedIndex;
    });
    const panels = spec[index];
    stage.className = "panels" + (panels.length === 2 ? " pair" : panels.length > 2 ? " several" : "");
    stage.replaceChildren();
    // All boxes first: a chart takes the width its box has when it is drawn.
    const boxes = panels.map((panel) => {
      const box = document.createElement("div");
      if (panel.title) box.appendChild(document.createElement("h4")).textContent = panel.title;
      const plot = box.appendChild(document.createElement("div"));
      plot.className = "figure";
      stage.appendChild(box);
      return plot;
    });
    panels.forEach((panel, at) => {
      const { data, layout } = structuredClone(panel.figure);
      for (const trace of data) if (hidden.has(trace.name)) trace.visible = "legendonly";
      // A finger that drags means to scroll; a legend below needs a row of its own for each name.
      if (touch) layout.dragmode = false;
      if (layout.showlegend !== false && stage.clientWidth < 560) layout.height += 22 * data.length;
      boxes[at].ready = Plotly.newPlot(boxes[at], data, layout, config);
    });
    chart.dataset.drawn = "yes";
  }

  function showVisible() {
    for (const chart of document.querySelectorAll("[data-chart]:not([data-drawn])")) {
      if (chart.offsetParent !== null) show(chart);
    }
  }

  const radios = [...document.querySelectorAll("input[name=view]")];
  function choose() {
    const chosen = radios.find((radio) => radio.checked);
    for (const block of document.querySelectorAll(".view")) {
      block.hidden = chosen !== undefined && block.dataset.view !== chosen.value;
    }
    showVisible();
  }

  for (const chart of document.querySelectorAll("[data-chart]")) {
    chart.addEventListener("change", () => show(chart));
  }
  for (const radio of radios) radio.addEventListener("change", choose);
  choose();
  // Both views go to paper, with their charts.
  addEventListener("beforeprint", () => {
    for (const block of document.querySelectorAll(".view")) block.hidden = false;
    showVisible();
  });
  addEventListener("afterprint", choose);
})();
