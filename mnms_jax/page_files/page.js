"use strict";
// Charts follow the light or dark colours of the page; columns of tables sort when clicked; the
// page of a running search reloads itself.

const charts = [];
const points = matchMedia("(hover: hover)").matches; // else fingers that drag want to scroll

function template() {
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  const axis = {
    gridcolor: colour("--line"), linecolor: colour("--line"), zerolinecolor: colour("--line"),
  };
  return {
    layout: {
      font: { color: colour("--text"), family: "system-ui, sans-serif", size: 13 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", xaxis: axis, yaxis: axis,
      modebar: {
        bgcolor: "rgba(0,0,0,0)", color: colour("--quiet"), activecolor: colour("--accent"),
      },
      hoverlabel: {
        bgcolor: colour("--raised"), bordercolor: colour("--line"), align: "left",
        font: { color: colour("--text") },
      },
    },
  };
}

function drawChart(figure) {
  const { data, layout } = JSON.parse(figure.querySelector("script").textContent);
  const parallel = data.some((trace) => trace.type === "parcoords");
  const whole = {
    ...layout, autosize: true, template: template(), hovermode: "closest", barmode: "group",
    margin: parallel
      ? { l: 100, r: 90, t: 100, b: 30 }
      : { l: 60, r: 15, t: layout.title.text ? 40 : 15, b: layout.showlegend ? 90 : 50 },
    legend: { orientation: "h", x: 0, yref: "container", y: 0, yanchor: "bottom" },
    dragmode: points && "zoom",
  };
  whole.title = { ...layout.title, font: { size: 15 }, x: 0, xref: "paper", xanchor: "left" };
  Plotly.newPlot(figure, data, whole, {
    responsive: true, displaylogo: false, displayModeBar: points && "hover",
    modeBarButtonsToRemove: ["lasso2d", "select2d", "zoomIn2d", "zoomOut2d", "autoScale2d"],
  });
  charts.push(figure);
}

function sortTable(table, column, header) {
  const descending = header.getAttribute("aria-sort") === "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const text = (row) => row.cells[column].textContent;
  const compare = (a, b) => {
    const [x, y] = [parseFloat(text(a)), parseFloat(text(b))];
    if (Number.isNaN(x) && Number.isNaN(y)) return text(a).localeCompare(text(b));
    if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
    return x - y;
  };
  const rows = [...body.rows].sort(compare);
  body.append(...(descending ? rows.reverse() : rows));
}

for (const table of document.querySelectorAll("table")) {
  [...table.querySelectorAll("th")].forEach((header, column) => {
    header.dataset.sorts = "";
    header.tabIndex = 0;
    header.addEventListener("click", () => sortTable(table, column, header));
    header.addEventListener("keydown", (event) => {
      if (event.key === "Enter") sortTable(table, column, header);
    });
  });
}
document.querySelectorAll("figure.chart").forEach(drawChart);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  for (const figure of charts) Plotly.relayout(figure, { template: template() });
});

const { reload, made } = document.body.dataset; // seconds; nothing where all is over
if (reload) {
  const age = Date.now() / 1000 - made;
  setTimeout(() => location.reload(), 1000 * Math.max(reload, age / 2));
}
