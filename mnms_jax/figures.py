"""What a comparison shows: a table on the console, curves as PNG, and a page with all of it."""

import base64
import html
import importlib
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from mnms_jax.comparison import (
    ALL_TASKS,
    TRIAL_COUNTS,
    Comparison,
    Difference,
    Mean,
    TimeToThreshold,
    mean_interval,
    trial_counts,
)
from mnms_jax.types import UserError

CURVES, DIFFERENCES = "best_so_far.png", "differences.png"
_COLUMNS = 3  # panels side by side

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Leave one task out</title><style>
body {{ font-family: sans-serif; max-width: 75em; margin: 2em auto; padding: 0 1em; }}
img {{ max-width: 100%; }} table {{ border-collapse: collapse; margin: 1em 0; }}
th, td {{ border-bottom: 1px solid #ccc; padding: .25em .7em; text-align: left; }}
</style></head><body><h1>Leave one task out</h1>
{sections}
</body></html>
"""


def require_matplotlib() -> Any:
    """Returns matplotlib, drawing into files alone.

    Raises:
      UserError: it isn't installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError:
        raise UserError("figures need matplotlib: pip install 'mnms_jax[report]'") from None
    return matplotlib


def print_comparison(comparison: Comparison, console: rich.console.Console) -> None:
    """Prints regrets and trials to the threshold over all tasks, and the paired differences."""
    for title, header, rows in (_overview(comparison), _paired(comparison)):
        if rows:
            table = rich.table.Table(title=title)
            for column in header:
                table.add_column(column)
            for row in rows:
                table.add_row(*map(rich.markup.escape, row))
            console.print(table)


def write_page(folder: pathlib.Path, comparison: Comparison) -> None:
    """Writes both figures, and leave_one_out.html, which holds them and all tables."""
    draw_curves(folder / CURVES, comparison)
    figures = [(CURVES, "Best so far; bands are 95 % intervals over seeds")]
    if comparison.differences:
        draw_differences(folder / DIFFERENCES, comparison)
        figures.append((DIFFERENCES, "Regret saved, paired by seed; above 0 the method is better"))
    parts = [f"<p>{html.escape(_describe(comparison))}</p>"]
    for name, title in figures:
        data = base64.b64encode((folder / name).read_bytes()).decode()
        parts.append(f'<h2>{title}</h2><img alt="{title}" src="data:image/png;base64,{data}">')
    for title, header, rows in (_overview(comparison), _paired(comparison)):
        parts.append(f"<h2>{title}</h2>{_html_table(header, rows)}")
    for title, kind, flat in (
        ("Means", Mean, comparison.means),
        ("Differences", Difference, comparison.differences),
        ("Trials to the threshold", TimeToThreshold, comparison.times),
    ):
        cells = [[_format(value) for value in row] for row in flat]
        table = _html_table(kind._fields, cells)
        parts.append(f"<details><summary>{title}, task by task</summary>{table}</details>")
    page = _PAGE.format(sections="\n".join(parts))
    (folder / "leave_one_out.html").write_text(page, encoding="utf-8")


def draw_curves(path: pathlib.Path, comparison: Comparison) -> None:
    """Draws a panel of regret over all tasks and one of the best reward for each task."""
    trials = comparison.trials
    panels = [(ALL_TASKS, "regret", comparison.regret.mean(axis=0))]  # [M, S, N]
    panels += [
        (task, "best reward", comparison.best[t]) for t, task in enumerate(trials.task_names)
    ]
    figure, axes = _panels(len(panels))
    steps = np.arange(1, trials.rewards.shape[-1] + 1)
    for axis, (title, label, curves) in zip(axes, panels, strict=True):
        intervals = [mean_interval(curve) for curve in curves]
        for (mean, _, _), name in zip(intervals, trials.method_names, strict=True):
            axis.plot(steps, mean, label=_plain(name))
        limits = axis.get_ylim()  # the first trials' wide bands would flatten all the rest
        for _, low, high in intervals:
            axis.fill_between(steps, low, high, alpha=0.15)
        threshold = dict(zip(trials.task_names, comparison.thresholds, strict=True)).get(title)
        if threshold is not None:
            axis.axhline(threshold, color="gray", linestyle=":", linewidth=1)
        axis.set(title=_plain(title), xlabel="trials", ylabel=label, xscale="log", ylim=limits)
        ticks = [step for step in (1, 2, 5, *TRIAL_COUNTS) if step <= len(steps)]
        axis.set_xticks(ticks, ticks)
        axis.set_xticks([], minor=True)
    axes[0].legend(fontsize="small")
    _save(figure, path)


def draw_differences(path: pathlib.Path, comparison: Comparison) -> None:
    """Draws how much regret the contenders save over all tasks, against each rival."""
    rows = [
        r for r in comparison.differences if r.task == ALL_TASKS and r.measure == "regret saved"
    ]
    methods = list(dict.fromkeys(row.method for row in rows))
    figure, axes = _panels(len(methods))
    for axis, method in zip(axes, methods, strict=True):
        own = [row for row in rows if row.method == method]
        rivals = list(dict.fromkeys(row.rival for row in own))
        for i, rival in enumerate(rivals):
            points = [row for row in own if row.rival == rival]
            mean = np.array([row.mean for row in points])
            half = np.nan_to_num(np.array([row.high for row in points]) - mean)  # NaN: one seed
            places = np.arange(len(points)) + 0.6 * (i / len(rivals) - 0.5)
            axis.errorbar(places, mean, half, fmt="o", capsize=3, label=_plain(rival))
        counts = [str(row.trials) for row in own if row.rival == rivals[0]]
        axis.set_xticks(range(len(counts)), counts)
        axis.axhline(0, color="gray", linewidth=1)
        axis.set(title=f"{_plain(method)} against", xlabel="trials", ylabel="regret saved")
        axis.legend(fontsize="small")
    _save(figure, path)


def _panels(number: int) -> tuple[Any, Sequence[Any]]:
    require_matplotlib()
    # Not pyplot: it keeps its figures, and chooses a backend.
    figure = importlib.import_module("matplotlib.figure").Figure(
        figsize=(5 * min(number, _COLUMNS), 4 * math.ceil(number / _COLUMNS)), layout="constrained"
    )
    grid = figure.subplots(math.ceil(number / _COLUMNS), min(number, _COLUMNS), squeeze=False)
    for axis in grid.flat[number:]:
        axis.remove()
    return figure, grid.flat[:number]


def _save(figure: Any, path: pathlib.Path) -> None:
    figure.savefig(path, format="png", dpi=110)


def _plain(text: str) -> str:
    """Returns text that matplotlib takes for neither a formula nor a hidden label."""
    return text.replace("$", r"\$").lstrip("_") or text


def _describe(comparison: Comparison) -> str:
    trials = comparison.trials
    return (
        f"{len(trials.task_names)} tasks, each held out in turn; {len(trials.seeds)} seeds; "
        f"{trials.rewards.shape[-1]} trials a search. Regret is (top - best so far) / (top - "
        "median of random trials), where top is the best reward that anybody saw on the task. "
        "Intervals are 95 % Student intervals over seeds; those over all tasks are of the mean "
        "over tasks. A search that did not reach the threshold within its trials is censored; "
        "the median number of trials is infinite when more than half are."
    )


def _overview(comparison: Comparison) -> tuple[str, Sequence[str], list[list[str]]]:
    """Returns title, columns and rows: a row a method, over all tasks."""
    counts = trial_counts(comparison.trials.rewards.shape[-1])
    header = ["method", *(f"regret at {n}" for n in counts), "trials to threshold", "censored"]
    rows = []
    for time in comparison.times:
        if time.task == ALL_TASKS:
            cells = [
                f"{row.mean:.3f}" + _known(f" ± {row.high - row.mean:.3f}")
                for row in comparison.means
                if (row.task, row.method, row.measure) == (ALL_TASKS, time.method, "regret")
            ]
            late = f"{time.censored} of {time.searches}"
            rows.append([time.method, *cells, _format(time.median_trials), late])
    return "mean over tasks", header, rows


def _paired(comparison: Comparison) -> tuple[str, Sequence[str], list[list[str]]]:
    """Returns title, columns and rows: a row a method and rival, over all tasks."""
    counts = trial_counts(comparison.trials.rewards.shape[-1])
    title = "regret saved, mean over tasks and 95 % interval, paired by seed"
    rows = []
    for method, rival in dict.fromkeys((r.method, r.rival) for r in comparison.differences):
        cells = [
            f"{r.mean:+.3f}" + _known(f" [{r.low:+.3f}, {r.high:+.3f}]")
            for r in comparison.differences
            if (r.task, r.method, r.rival, r.measure) == (ALL_TASKS, method, rival, "regret saved")
        ]
        rows.append([method, rival, *cells])
    return title, ["method", "against", *(f"at {n}" for n in counts)], rows


def _known(interval: str) -> str:
    return "" if "nan" in interval else interval  # there is none of one seed


def _html_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def lines() -> Iterator[str]:
        yield "<table><tr>" + "".join(f"<th>{html.escape(c)}</th>" for c in header) + "</tr>"
        for row in rows:
            yield "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
        yield "</table>"

    return "\n".join(lines())


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else str(value)
    return "" if value is None else str(value)
