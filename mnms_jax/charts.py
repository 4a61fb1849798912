"""Charts as plain data, and the same charts as PNG and as CSV."""

import csv
import importlib
import itertools
import math
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from mnms_jax.types import UserError

# Told apart by those who see fewer colours, and on dark and light ground alike.
COLOURS = ("#3b8bd4", "#e0731d", "#1d9e75", "#b14fc5", "#c9a000", "#d4537e", "#7a8b99", "#5f6fd8")
SCALE = (COLOURS[0], COLOURS[3], COLOURS[1])  # from low to high
_COLUMNS = 3  # panels side by side

Numbers: TypeAlias = Sequence[float] | np.ndarray


class Series(NamedTuple):
    """A line, or a cloud of points."""

    name: str  # those of one name have one colour, and are shown or hidden together
    x: Numbers
    y: Numbers
    kind: str = "line"  # or "steps", "points", or "labels": points with the name beside them
    low: Numbers = ()  # ends of an interval around each y
    high: Numbers = ()
    notes: Sequence[str] = ()  # on each point, where it is pointed at


class Plot(NamedTuple):
    """Series over a common axis."""

    title: str
    x_label: str
    y_label: str
    series: Sequence[Series]
    level: float | None = None  # of a dotted line across
    ticks: Sequence[int] = ()  # of a logarithmic x axis


class Bars(NamedTuple):
    """Horizontal bars, a group for each name."""

    title: str
    x_label: str
    names: Sequence[str]
    values: Mapping[str, Numbers]  # by what distinguishes the bars of a group
    errors: Mapping[str, Numbers]  # their half width; none where the key is missing


class Heat(NamedTuple):
    """A matrix as colours."""

    title: str
    x_labels: Sequence[str]
    y_labels: Sequence[str]
    values: np.ndarray  # [R, C]; NaN: nothing is drawn; a row of these alone is a headline
    limits: tuple[float, float] = (0.0, 1.0)
    numbers: bool = False  # whether values are written too
    y_ticks: Sequence[str] = ()  # shorter labels to show


class Parallel(NamedTuple):
    """Parallel coordinates: a line through all axes for each row, coloured by the last axis."""

    title: str
    axes: Sequence[tuple[str, Sequence[str]]]  # name, and labels of 0, 1, ...; none: numbers
    values: np.ndarray  # [N, number of axes]


Panel: TypeAlias = Plot | Bars | Heat | Parallel


class Chart(NamedTuple):
    """One or more panels of one kind that belong together."""

    name: str  # of its files
    title: str
    note: str  # how to read it
    panels: Sequence[Panel]


def reach(panel: Plot) -> float:
    """Returns how far a map of labelled points goes from 0, with room for the labels."""
    places = [abs(value) for series in panel.series for value in (*series.x, *series.y)]
    return 1.8 * max(places, default=0.0) or 1.0


def heights(panel: Plot) -> tuple[float, float]:
    """Returns the ends of an axis that holds all lines; wide bands would flatten them."""
    y = np.concatenate([np.asarray(series.y, float) for series in panel.series])
    low, high = np.nanmin(y), np.nanmax(y)
    room = 0.08 * (high - low) or 0.05
    return float(low - room), float(high + room)


def colour_of(chart: Chart, name: str) -> str:
    """Returns a series' colour, the same in all panels."""
    names: dict[str, None] = {}
    for panel in chart.panels:
        if isinstance(panel, Plot):
            names |= dict.fromkeys(series.name for series in panel.series)
        elif isinstance(panel, Bars):
            names |= dict.fromkeys(panel.values)
    return COLOURS[list(names).index(name) % len(COLOURS)]


def write_csv_of(path: pathlib.Path, chart: Chart) -> None:
    """Writes all numbers of a chart, a row each."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(_header(chart.panels[0]))
        writer.writerows(row for panel in chart.panels for row in _rows(panel))


def require_matplotlib() -> Any:
    """Returns matplotlib, drawing into files alone.

    Raises:
      UserError: it isn't installed.
    """
    try:
        return importlib.import_module("matplotlib")
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'mnms_jax[report]'") from None


def draw_png(path: pathlib.Path, chart: Chart) -> None:
    """Draws a chart into a file."""
    require_matplotlib()
    columns = min(len(chart.panels), 1 if isinstance(chart.panels[0], Parallel) else _COLUMNS)
    rows = math.ceil(len(chart.panels) / columns)
    width, height = np.max([_inches(panel) for panel in chart.panels], axis=0)
    # Not pyplot: it keeps its figures, and chooses a backend.
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(width * columns, height * rows), layout="constrained"
    )
    grid = figure.subplots(rows, columns, squeeze=False)
    for axis in grid.flat[len(chart.panels) :]:
        axis.remove()
    draw: dict[type, Callable[[Any, Any, Chart], None]]
    draw = {Plot: _draw_plot, Bars: _draw_bars, Heat: _draw_heat, Parallel: _draw_parallel}
    for axis, panel in zip(grid.flat, chart.panels, strict=False):
        draw[type(panel)](axis, panel, chart)
        axis.set_title(plain(panel.title))
    figure.savefig(path, format="png", dpi=110)


def plain(text: str) -> str:
    """Returns text that matplotlib takes for neither a formula nor a hidden label."""
    return text.replace("$", r"\$").lstrip("_") or text


def _header(panel: Panel) -> tuple[str, ...]:
    if isinstance(panel, Plot):
        return ("panel", "series", "kind", "x", "y", "low", "high")
    if isinstance(panel, Bars):
        return ("panel", "series", "name", "value", "half_width")
    if isinstance(panel, Heat):
        return ("panel", "row", "column", "value")
    return tuple(name for name, _ in panel.axes)


def _rows(panel: Panel) -> Iterator[tuple]:
    if isinstance(panel, Plot):
        for series in panel.series:
            numbers = (series.x, series.y, series.low, series.high)
            yield from _columns((panel.title, series.name, series.kind), *numbers)
    elif isinstance(panel, Bars):
        for key, values in panel.values.items():
            yield from _columns((panel.title, key), panel.names, values, panel.errors.get(key, ()))
    elif isinstance(panel, Heat):
        for label, values in zip(panel.y_labels, panel.values, strict=True):
            known = np.isfinite(values)
            cells = zip(itertools.compress(panel.x_labels, known), values[known], strict=True)
            yield from ((panel.title, label, *cell) for cell in cells)
    else:
        for values in panel.values:
            pairs = zip(panel.axes, values, strict=True)
            yield tuple(labels[int(v)] if labels else v for (_, labels), v in pairs)


def _columns(first: tuple[str, ...], *columns: Sequence | np.ndarray) -> Iterator[tuple]:
    return ((*first, *row) for row in itertools.zip_longest(*columns))


def _inches(panel: Panel) -> tuple[float, float]:
    if isinstance(panel, Bars):
        return 6, 1.5 + 0.18 * len(panel.names) * max(len(panel.values), 1)
    if isinstance(panel, Heat):
        longest = max(map(len, panel.y_ticks or panel.y_labels), default=0)
        return 2.5 + 0.08 * longest + 0.2 * len(panel.x_labels), 1.5 + 0.17 * len(panel.y_labels)
    return (max(7, 0.9 * len(panel.axes)), 5) if isinstance(panel, Parallel) else (5, 4)


def _draw_plot(axis: Any, panel: Plot, chart: Chart) -> None:
    labelled = any(series.kind == "labels" for series in panel.series)
    for series in panel.series:
        style = {"color": colour_of(chart, series.name), "label": plain(series.name)}
        if series.kind in ("points", "labels"):
            axis.plot(series.x, series.y, "o", markersize=4, **style)
            for x, y in zip(series.x, series.y, strict=True) if series.kind == "labels" else ():
                axis.annotate(
                    plain(series.name), (x, y), (4, 4), textcoords="offset points", fontsize=8
                )
        else:
            axis.plot(
                series.x,
                series.y,
                drawstyle="steps-post" if series.kind == "steps" else "default",
                **style,
            )
    for series in panel.series:
        if len(series.low):
            colour = colour_of(chart, series.name)
            axis.fill_between(series.x, series.low, series.high, alpha=0.15, color=colour)
            axis.set_ylim(heights(panel))
    if panel.level is not None:
        axis.axhline(panel.level, color="gray", linestyle=":", linewidth=1)
    axis.set(xlabel=panel.x_label, ylabel=panel.y_label)
    if labelled:
        axis.set(xlim=(-reach(panel), reach(panel)), ylim=(-reach(panel), reach(panel)))
    if panel.ticks:
        axis.set_xscale("log")
        axis.set_xticks(panel.ticks, [str(tick) for tick in panel.ticks])
        axis.set_xticks([], minor=True)
    handles, names = axis.get_legend_handles_labels()
    named = dict(zip(names[::-1], handles[::-1], strict=True))  # the first one of each name
    if len(named) > 1 and not labelled:
        axis.legend(list(named.values())[::-1], list(named)[::-1], fontsize="small")


def _draw_bars(axis: Any, panel: Bars, chart: Chart) -> None:
    places = np.arange(len(panel.names))[::-1]
    height = 0.8 / max(len(panel.values), 1)
    for i, (key, values) in enumerate(panel.values.items()):
        style = {"color": colour_of(chart, key), "label": plain(key)}
        axis.barh(places - i * height, values, height, xerr=panel.errors.get(key), **style)
    axis.set_yticks(places, [plain(name) for name in panel.names], fontsize=8)
    axis.set(xlabel=panel.x_label)
    if len(panel.values) > 1:
        axis.legend(fontsize="small")


def _draw_heat(axis: Any, panel: Heat, chart: Chart) -> None:
    del chart
    low, high = panel.limits
    axis.imshow(panel.values, "viridis", aspect="auto", vmin=low, vmax=high)
    axis.set_xticks(range(len(panel.x_labels)), [plain(x) for x in panel.x_labels], rotation=90)
    ticks = [plain(label) for label in panel.y_ticks or panel.y_labels]
    for label, row in zip(
        axis.set_yticks(range(len(ticks)), ticks, fontsize=8), panel.values, strict=True
    ):
        label.label1.set_fontweight("bold" if np.isnan(row).all() else "normal")
    for (row, column), value in np.ndenumerate(panel.values) if panel.numbers else ():
        bright = value > (low + high) / 2
        colour = "black" if bright else "white"
        axis.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour)


def _draw_parallel(axis: Any, panel: Parallel, chart: Chart) -> None:
    del chart
    low, high = panel.values.min(axis=0), panel.values.max(axis=0)
    for place, (_, labels) in enumerate(panel.axes):
        if labels:
            low[place], high[place] = 0, max(len(labels) - 1, 1)
    scaled = (panel.values - low) / np.where(high > low, high - low, 1)
    blend = importlib.import_module("matplotlib.colors").LinearSegmentedColormap.from_list
    colours = blend("last", SCALE)(scaled[:, -1])
    for row, colour in zip(scaled, colours, strict=True):
        axis.plot(row, color=colour, alpha=0.7)
    for place, (_, labels) in enumerate(panel.axes):
        axis.axvline(place, color="lightgray", linewidth=0.8, zorder=0)
        ends = [f"{low[place]:.3g}", f"{high[place]:.3g}"] if not labels else labels
        at = np.linspace(0, 1, len(ends)) if len(ends) > 1 else [0.0]
        for y, label in zip(at, ends, strict=True):
            axis.text(place, y, plain(label), fontsize=7, ha="center", va="bottom")
    names = [plain(name) for name, _ in panel.axes]
    axis.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axis.set_yticks([])
