"""What a comparison shows: a table on the console, curves as PNG, and a page with all of it."""

import base64
import html
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import rich.console
import rich.markup
import rich.table

from mnms_jax.charts import Bars, Chart, Plot, Series, draw_png
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
from mnms_jax.page import render_note, render_page, render_table


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
    sections: dict[str, str] = {}
    for chart in comparison_charts(comparison):
        path = folder / f"{chart.name}.png"
        draw_png(path, chart)
        data = base64.b64encode(path.read_bytes()).decode()
        image = f'<img alt="{html.escape(chart.title)}" src="data:image/png;base64,{data}">'
        sections[chart.title] = f'{render_note(chart.note)}<div class="wide">{image}</div>'
    page = render_page("Leave one task out", sections | comparison_sections(comparison))
    (folder / "leave_one_out.html").write_text(page, encoding="utf-8")


def comparison_charts(comparison: Comparison) -> list[Chart]:
    """Returns the best so far, and what the contenders save where there are any."""
    charts = [_curves(comparison)]
    return [*charts, _saved(comparison)] if comparison.differences else charts


def comparison_sections(comparison: Comparison) -> dict[str, str]:
    """Returns all tables as HTML by title."""
    sections: dict[str, str] = {}
    for title, header, rows in (_overview(comparison), _paired(comparison)):
        note = "" if sections else render_note(_describe(comparison))
        if rows:
            sections[title.capitalize()] = note + render_table(header, rows)
    details = []
    for title, kind, flat in (
        ("Means", Mean, comparison.means),
        ("Differences", Difference, comparison.differences),
        ("Trials to the threshold", TimeToThreshold, comparison.times),
    ):
        table = render_table(kind._fields, [[_format(value) for value in row] for row in flat])
        details.append(f"<details><summary>{title}</summary>{table}</details>")
    return {**sections, "Task by task": "".join(details)}


def _curves(comparison: Comparison) -> Chart:
    """Returns a panel of regret over all tasks and one of the best reward for each task."""
    trials = comparison.trials
    steps = np.arange(1, trials.rewards.shape[-1] + 1)
    levels: list[float | None] = [None, *comparison.thresholds["random"].tolist()]
    curves = [comparison.regret.mean(axis=0), *comparison.best]  # each [M, S, N]
    panels = []
    for title, level, curve in zip((ALL_TASKS, *trials.task_names), levels, curves, strict=True):
        series = []
        for name, own in zip(trials.method_names, curve, strict=True):
            mean, low, high = mean_interval(own)
            band = (low, high) if len(own) > 1 else ((), ())
            series.append(Series(name, steps, mean, "line", *band))
        label = "regret" if level is None else f"best {trials.reward}"
        ticks = [step for step in (1, 2, 5, *TRIAL_COUNTS) if step <= len(steps)]
        panels.append(Plot(title, "trials", label, series, level, ticks))
    note = "Bands are 95 % intervals over seeds; the dotted line is random search's threshold."
    return Chart("best_so_far", "Best so far", note, panels)


def _saved(comparison: Comparison) -> Chart:
    """Returns how much regret the contenders save over all tasks, against each rival."""
    own = [r for r in comparison.differences if r.task == ALL_TASKS and r.measure == "regret saved"]
    counts = sorted({row.trials for row in own})
    panels = []
    for method in dict.fromkeys(row.method for row in own):
        values: dict[str, list[float]] = {}
        errors: dict[str, list[float]] = {}
        for row in own:
            if row.method == method:
                values.setdefault(row.rival, []).append(row.mean)
                half = row.high - row.mean
                errors.setdefault(row.rival, []).append(0.0 if math.isnan(half) else half)
        names = [f"{count} trials" for count in counts]
        panels.append(Bars(f"{method} against", "regret saved", names, values, errors))
    note = "Over all tasks, paired by seed, with 95 % intervals; above 0 the method is better."
    return Chart("differences", "Regret saved", note, panels)


def _describe(comparison: Comparison) -> str:
    trials = comparison.trials
    what = "" if trials.reward == "reward" else f" Rewards are {trials.reward}, on validation."
    return (
        f"{len(trials.task_names)} tasks, each held out in turn; {len(trials.seeds)} seeds; "
        f"{trials.rewards.shape[-1]} trials a search.{what} Regret is (top - best so far) / (top - "
        "median of random trials), where top is the best reward that anybody saw on the task. "
        "Intervals are 95 % Student intervals over seeds; those over all tasks are of the mean "
        "over tasks. Trials are counted to two thresholds: the expected best of so many random "
        "trials, and the mean best of the cold searches at their end. A search that did not "
        "reach one within its trials is censored; the median number of trials is infinite when "
        "more than half are."
    )


def _overview(comparison: Comparison) -> tuple[str, Sequence[str], list[list[str]]]:
    """Returns title, columns and rows: a row a method, over all tasks."""
    counts = trial_counts(comparison.trials.rewards.shape[-1])
    times = [time for time in comparison.times if time.task == ALL_TASKS]
    goals = dict.fromkeys(f"to {t.reference}'s best of {t.reference_trials}" for t in times)
    rows = []
    for method in comparison.trials.method_names:
        regrets = [
            f"{row.mean:.3f}" + _known(f" ± {row.high - row.mean:.3f}")
            for row in comparison.means
            if (row.task, row.method, row.measure) == (ALL_TASKS, method, "regret")
        ]
        trials = [
            f"{_format(time.median_trials)} ({time.censored} of {time.searches} censored)"
            for time in times
            if time.method == method
        ]
        rows.append([method, *regrets, *trials])
    header = ["method", *(f"regret at {n}" for n in counts), *goals]
    return "mean over tasks, median trials", header, rows


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


def _format(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4f}".rstrip("0").rstrip(".") if math.isfinite(value) else str(value)
    return "" if value is None else str(value)
