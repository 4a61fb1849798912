"""One HTML page, whole in itself: sections, sortable tables, and charts drawn by plotly.js.

plotly.js, as it draws parallel coordinates that can be filtered, heat maps and curves, works
without a network, and is what Optuna's plots are drawn with. The page holds it once, 4.8 MB.
"""

import html
import importlib
import json
import pathlib
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from mnms_jax.charts import (
    SCALE,
    Bars,
    Chart,
    Heat,
    Panel,
    Parallel,
    Plot,
    Series,
    colour_of,
    heights,
    reach,
)
from mnms_jax.types import UserError

_FILES = pathlib.Path(__file__).parent / "page_files"

_Converted: TypeAlias = tuple[list[dict[str, Any]], dict[str, Any]]  # plotly's traces and layout

# Nothing may be fetched, whatever the page holds. Plotly compiles its parallel coordinates.
_POLICY = (
    "default-src 'none'; img-src data: blob:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline' 'unsafe-eval'"
)


def require_plotly() -> str:
    """Returns plotly.js.

    Raises:
      UserError: it isn't installed.
    """
    try:
        return importlib.import_module("plotly.offline").get_plotlyjs()
    except ImportError:
        raise UserError("the report needs plotly: pip install 'mnms_jax[report]'") from None


def render_page(
    title: str,
    sections: Mapping[str, str],
    scripts: Sequence[str] = (),
    *,
    note: str = "",
    reload_seconds: float = 0.0,
) -> str:
    """Returns a page.

    Args:
      title: plain text.
      sections: HTML by title, which is plain text.
      scripts: what charts need: `require_plotly()`, or nothing where there are none.
      note: plain text under the title.
      reload_seconds: after which a page with scripts reloads itself; it waits longer the longer ago
        it was made, as nobody may be left who makes a newer one. 0: never.
    """
    links = " ".join(
        f'<a href="#s{i}">{html.escape(name)}</a>' for i, name in enumerate(sections, 1)
    )
    body = "\n".join(
        f'<section id="s{i}"><h2>{html.escape(name)}</h2>{content}</section>'
        for i, (name, content) in enumerate(sections.items(), 1)
    )
    sources = [*scripts, (_FILES / "page.js").read_text(encoding="utf-8")] if scripts else []
    code = "\n".join(f"<script>{source}</script>" for source in sources)
    times = f' data-reload="{reload_seconds}" data-made="{time.time()}"' if reload_seconds else ""
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<title>{html.escape(title)}</title>
<style>{(_FILES / "page.css").read_text(encoding="utf-8")}</style>
</head><body{times}><h1>{html.escape(title)}</h1>{render_note(note)}<nav>{links}</nav>
{body}
{code}
</body></html>
"""


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table of plain texts; in a page with scripts its columns sort when clicked."""

    def lines() -> Iterator[str]:
        cells = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in header)
        yield f'<div class="wide"><table><thead><tr>{cells}</tr></thead><tbody>'
        for row in rows:
            yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        yield "</tbody></table></div>"

    return "\n".join(lines())


def render_note(text: str) -> str:
    """Returns a paragraph of plain text."""
    return f'<p class="note">{html.escape(text)}</p>' if text else ""


def render_chart(chart: Chart) -> str:
    """Returns a chart's panels, which the page's scripts draw."""
    panels = []
    for panel in chart.panels:
        traces, layout = _convert(panel, chart)
        layout["title"] = {"text": _text(panel.title)}
        # A "<" could end the script that holds the data.
        data = json.dumps({"data": traces, "layout": layout}).replace("<", "\\u003c")
        width = 85 * len(panel.axes) if isinstance(panel, Parallel) else 0
        panels.append(
            f'<div class="wide"><figure class="chart" style="min-width:{width}px;'
            f'height:{layout["height"]}px"><script type="application/json">{data}</script>'
            "</figure></div>"
        )
    kind = "panels" if len(panels) > 1 else "panel"
    return f'{render_note(chart.note)}<div class="{kind}">{"".join(panels)}</div>'


def _convert(panel: Panel, chart: Chart) -> _Converted:
    if isinstance(panel, Plot):
        return _plot(panel, chart)
    if isinstance(panel, Bars):
        return _bars(panel, chart)
    return _heat(panel) if isinstance(panel, Heat) else _parallel(panel)


def _plot(panel: Plot, chart: Chart) -> _Converted:
    names = dict.fromkeys(_text(series.name) for series in panel.series)
    labelled = any(series.kind == "labels" for series in panel.series)
    x: dict[str, Any] = {"title": {"text": _text(panel.x_label)}}
    y: dict[str, Any] = {"title": {"text": _text(panel.y_label)}}
    if labelled:
        x["range"] = y["range"] = [-reach(panel), reach(panel)]
    elif panel.ticks:
        x |= {"type": "log", "tickvals": list(panel.ticks)}
        x["ticktext"] = list(map(str, panel.ticks))
    elif all(len(series.x) <= 10 for series in panel.series):
        x["dtick"] = 1  # numbers of trials or rounds
    if any(len(series.low) for series in panel.series):
        y["range"] = heights(panel)
    shapes = []
    if panel.level is not None:
        line = {"dash": "dot", "width": 1, "color": "gray"}
        ends = {"xref": "paper", "x0": 0, "x1": 1, "y0": panel.level, "y1": panel.level}
        shapes.append({"type": "line", "line": line, **ends})
    shows = len(names) > 1 and not labelled
    traces = [t for s in panel.series for t in _traces(s, colour_of(chart, s.name))]
    for trace in traces:  # the first one of a name stands for all
        trace["showlegend"] = names.pop(trace["name"], trace) is None
    layout = {"height": 340, "xaxis": x, "yaxis": y, "shapes": shapes, "showlegend": shows}
    return traces, layout


def _traces(series: Series, colour: str) -> list[dict]:
    points = series.kind in ("points", "labels")
    trace: dict[str, Any] = {
        "type": "scatter",
        "name": _text(series.name),
        "legendgroup": _text(series.name),
        "x": list(map(float, series.x)),
        "y": _finite(series.y),
        "mode": {"points": "markers", "labels": "markers+text"}.get(series.kind, "lines"),
        "line": {"color": colour, "shape": "hv" if series.kind == "steps" else "linear"},
        "marker": {"color": colour, "size": 7 if points else 5, "opacity": 0.75},
    }
    if series.kind == "labels":
        trace |= {"text": [_text(series.name)] * len(series.x), "textposition": "top center"}
    if series.notes:
        trace |= {"hovertext": [_text(note) for note in series.notes], "hoverinfo": "text"}
    if not len(series.low):
        return [trace]
    xs = list(map(float, series.x))
    band = {
        "type": "scatter",
        "x": xs + xs[::-1],
        "y": _finite(series.high) + _finite(series.low)[::-1],
        "fill": "toself",
        "fillcolor": colour + "2b",
        "line": {"width": 0},
        "mode": "lines",
        "hoverinfo": "skip",
        "name": _text(series.name),
        "legendgroup": _text(series.name),
    }
    return [trace, band]


def _bars(panel: Bars, chart: Chart) -> _Converted:
    traces = []
    for key, values in panel.values.items():
        trace = {
            "type": "bar",
            "orientation": "h",
            "name": _text(key),
            "y": [_text(name) for name in panel.names],
            "x": _finite(values),
            "marker": {"color": colour_of(chart, key)},
        }
        if key in panel.errors:
            widths = _finite(panel.errors[key])
            trace["error_x"] = {"type": "data", "array": widths, "thickness": 1, "color": "gray"}
        traces.append(trace)
    return traces, {
        "height": 110 + (8 + 12 * len(panel.values)) * len(panel.names),
        "xaxis": {"title": {"text": _text(panel.x_label)}},
        "yaxis": {"type": "category", "autorange": "reversed", "automargin": True, "dtick": 1},
        "showlegend": len(panel.values) > 1,
    }


def _heat(panel: Heat) -> _Converted:
    low, high = panel.limits
    notes = [
        [f"{_text(y)}<br>{_text(x)}: {v:.2f}" for x, v in zip(panel.x_labels, row, strict=True)]
        for y, row in zip(panel.y_labels, panel.values, strict=True)
    ]
    trace = {
        "type": "heatmap",
        "z": [_finite(row) for row in panel.values],
        "zmin": low,
        "zmax": high,
        "colorscale": "Viridis",
        "hoverongaps": False,
        "hovertext": notes,
        "hoverinfo": "text",
        "colorbar": {"thickness": 10, "lenmode": "pixels", "len": 170, "y": 1, "yanchor": "top"},
    }
    if panel.numbers:
        trace["texttemplate"] = "%{z:.2f}"
    y = _categories(panel.y_ticks or panel.y_labels) | {"autorange": "reversed"}
    for row in np.flatnonzero(np.isnan(panel.values).all(axis=1)):
        y["ticktext"][row] = f"<b>{y['ticktext'][row]}</b>"
    return [trace], {
        "height": 140 + (34 if panel.numbers else 16) * len(panel.y_labels),
        "xaxis": _categories(panel.x_labels) | {"tickangle": -90},
        "yaxis": y,
    }


def _categories(labels: Sequence[str]) -> dict[str, Any]:
    """Returns an axis of places 0, 1, ... with labels, which may be equal."""
    texts = [_text(label) for label in labels]
    places = list(range(len(labels)))
    look = {"automargin": True, "showgrid": False, "zeroline": False, "ticks": ""}
    return {"tickvals": places, "ticktext": texts, **look}


def _parallel(panel: Parallel) -> _Converted:
    dimensions = []
    for (name, labels), values in zip(panel.axes, panel.values.T, strict=True):
        dimension = {"label": _text(name), "values": _finite(values)}
        if labels:
            texts = [_text(label) for label in labels]
            dimension |= {"tickvals": list(range(len(labels))), "ticktext": texts}
            dimension["range"] = [-0.3, len(labels) - 0.7]
        dimensions.append(dimension)
    scale = [[i / (len(SCALE) - 1), colour] for i, colour in enumerate(SCALE)]
    line = {"color": dimensions[-1]["values"], "colorscale": scale, "showscale": False}
    trace = {"type": "parcoords", "dimensions": dimensions, "line": line, "labelangle": -25}
    return [trace], {"height": 460}


def _text(text: str) -> str:
    """Returns text that plotly shows as it is; it knows some HTML."""
    return html.escape(text, quote=False).replace("\n", "<br>")


def _finite(values: Any) -> list[float | None]:
    return [float(value) if np.isfinite(value) else None for value in values]
