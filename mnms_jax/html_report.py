"""The report of finished or running searches: one page to look at, and every chart as files."""

import collections
import html
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from mnms_jax.analysis import decision_importance
from mnms_jax.card import usage_code
from mnms_jax.charts import Chart, draw_png, require_matplotlib, write_csv_of
from mnms_jax.drawing import draw, outline
from mnms_jax.figures import comparison_charts, comparison_sections
from mnms_jax.history import (
    History,
    controller_frequencies,
    known_choices,
    of_task,
    read_history,
)
from mnms_jax.leave_one_out import read_comparison
from mnms_jax.page import render_chart, render_note, render_page, render_table, require_plotly
from mnms_jax.report import show_number, top_records
from mnms_jax.search_charts import (
    choices_chart,
    comparison_chart,
    embedding_charts,
    importance_chart,
    parallel_chart,
    reward_chart,
    rounds_chart,
    seconds_chart,
)
from mnms_jax.store import TrialRecord, read_json, writable, write_whole
from mnms_jax.types import UserError

Sections = Mapping[str, str | Chart]  # HTML or a chart, by title


def write_report(
    workdirs: Sequence[pathlib.Path], output: pathlib.Path | None = None
) -> pathlib.Path:
    """Writes report.html, and a PNG and a CSV of each chart beside it.

    Args:
      workdirs: of one search or leave-one-out comparison, or of several searches to compare.
      output: the folder; by default `report` in the workdir, or `comparison` in the first of
        several.

    Returns:
      The path of report.html.

    Raises:
      UserError: no workdir or one that holds no search, damaged files, or a missing library.
    """
    if not workdirs or len(set(workdirs)) < len(workdirs):
        raise UserError("--workdir: name at least one folder, each once")
    plotly = require_plotly()
    require_matplotlib()
    title, note, sections = _sections(workdirs)
    folder = output or workdirs[0] / ("comparison" if len(workdirs) > 1 else "report")
    with writable("--output", folder):
        folder.mkdir(parents=True, exist_ok=True)
        contents = {
            name: _write_chart(folder, content) if isinstance(content, Chart) else content
            for name, content in sections.items()
        }
        page = folder / "report.html"
        write_whole(page, render_page(title, contents, [plotly], note=note))
    return page


def write_live_page(workdir: pathlib.Path, note: str, reload_seconds: float) -> pathlib.Path:
    """Writes the report.html of a search that is going on, and no other files.

    It lacks the decisions' importance, which takes longer than all else.

    Args:
      workdir: of the search.
      note: plain text under the title.
      reload_seconds: after which the page reloads itself; 0: never.

    Raises:
      UserError: plotly isn't installed, or see `read_history`.
      OSError: it can't be written.
    """
    plotly, history = require_plotly(), read_history(workdir)
    contents = {
        name: render_chart(content) if isinstance(content, Chart) else content
        for name, content in _search(history, ranks_decisions=False).items()
    }
    page = workdir / "report" / "report.html"
    page.parent.mkdir(exist_ok=True)
    title = _title(history)
    write_whole(
        page, render_page(title, contents, [plotly], note=note, reload_seconds=reload_seconds)
    )
    return page


def _sections(workdirs: Sequence[pathlib.Path]) -> tuple[str, str, Sections]:
    """Returns the title of the page, a note under it, and what stands on it."""
    first = workdirs[0]
    if len(workdirs) > 1:
        histories = _named_apart([read_history(path) for path in workdirs])
        return "Comparison of searches", "", _compared(histories)
    if {"methods", "seeds"} <= read_json(first / "config.json").keys():
        comparison, note = read_comparison(first)
        charts = {chart.title: chart for chart in comparison_charts(comparison)}
        title = f"Leave one task out: {first.resolve().name}"
        return title, note, {**charts, **comparison_sections(comparison)}
    history = read_history(first)
    return _title(history), "", _search(history)


def _title(history: History) -> str:
    return f"Search: {history.name}"


def _write_chart(folder: pathlib.Path, chart: Chart) -> str:
    """Writes a chart's files, and returns it as HTML."""
    draw_png(folder / f"{chart.name}.png", chart)
    write_csv_of(folder / f"{chart.name}.csv", chart)
    return render_chart(chart)


def _search(history: History, *, ranks_decisions: bool = True) -> Sections:
    choices = known_choices(history)
    records = [*history.records, *history.random_records]
    ranked = history.tasks if ranks_decisions else ()
    found = {task: decision_importance(of_task(records, task), choices) for task in ranked}
    importance = {task: row for task, row in found.items() if row is not None}
    frequencies = controller_frequencies(history)
    rewards = reward_chart(history)
    charts = [
        choices_chart(history, choices, frequencies),
        importance_chart(importance, choices),
        parallel_chart(history, choices),
        *embedding_charts(history),
        rounds_chart(history),
        seconds_chart(history),
    ]
    sections: dict[str, str | Chart] = {"Results": _results([history])}
    sections[rewards.title] = rewards
    sections["Best child of each task"] = _children(history)
    sections |= {chart.title: chart for chart in charts if chart is not None}
    sections["Trials"] = _trials(history)
    return sections


def _compared(histories: Sequence[History]) -> Sections:
    chart = comparison_chart(histories)
    searches = [[history.name, history.reward, str(history.path)] for history in histories]
    return {
        "Results": _results(histories),
        chart.title: chart,
        "Searches": render_table(["search", "reward", "folder"], searches),
    }


def _named_apart(histories: Sequence[History]) -> list[History]:
    """Returns searches whose names differ: folders of one name are called by their paths."""
    names = collections.Counter(history.name for history in histories)
    return [
        history if names[history.name] == 1 else history._replace(name=str(history.path))
        for history in histories
    ]


def _results(histories: Sequence[History]) -> str:
    """Returns the best child of each task and search, against random search and reference."""
    several = len(histories) > 1
    rewards = list(dict.fromkeys(history.reward for history in histories))
    mixed = len(rewards) > 1
    header = [*["search"] * several, *["reward"] * mixed, "task", "searched by", "trials"]
    header += ["best, validation", "its test", "top 10, validation", "top 10, test"]
    rows = []
    for history in histories:
        own = [*[history.name] * several, *[history.reward] * mixed]
        for task in history.tasks:
            summary = history.summary.get(task, {})
            ways = [(history.label, history.records, summary.get("finalists"))]
            if history.random_records:
                ways.append(("random", history.random_records, summary.get("random")))
            for label, records, finalists in ways:
                figures = _figures(of_task(records, task), task, finalists)
                rows.append([*own, task, f"{label} search", *figures])
            if reference := summary.get("reference"):
                values = [
                    show_number(reference["validation"]),
                    show_number(reference["test"]),
                    "",
                    "",
                ]
                rows.append([*own, task, reference["name"], "", *values])
    note = (
        f"{', '.join(rewards)}. The best child is chosen by validation, and so its reward there is "
        "optimistic; those on test are known once a search has ended. Click a column to sort."
    )
    return render_note(note) + render_table(header, rows)


def _figures(
    records: Sequence[TrialRecord], task: str, finalists: Sequence[Mapping] | None
) -> list[str]:
    """Returns the cells of a search's row: trials, and rewards of the best and the top ten."""
    top = top_records(records, task)
    if not top:
        return [str(len(records)), "", "", "", ""]
    tests = {row["trial"]: row["test"] for row in finalists or ()}
    known = [tests.get(record.trial) for record in top]
    # A search that went on since its last end has children that weren't tested yet.
    tested = [value for value in known if value is not None]
    mean = show_number(float(np.mean(tested))) if len(tested) == len(top) else ""
    return [
        str(len(records)),
        show_number(top[0].reward),
        "" if known[0] is None else show_number(known[0]),
        show_number(float(np.mean([record.reward for record in top]))),
        mean,
    ]


def _children(history: History) -> str:
    """Returns each task's best child: its decisions, its architecture and how to load it."""
    parts = []
    for task in history.tasks:
        top = top_records(history.records, task, 1)
        parts.append(f"<h3>{html.escape(task)}</h3>")
        if not top:
            parts.append(render_note("No child has been trained without failing."))
            continue
        folder = history.path / "best" / task
        child = read_json(folder / "child.json")
        decisions = [[name, str(value)] for name, value in top[0].decisions.items()]
        table = render_table(["decision", "choice"], decisions)
        note = f"trial {top[0].trial}, {history.reward} {show_number(top[0].reward)} on validation"
        # The folder is written at the end of a search, and may be of an earlier end.
        if child.get("decisions") == top[0].decisions:
            side = draw(outline(child))
            usage = usage_code(str(folder.resolve()), child.get("kind", "text"))
            code = f"<pre><code>{html.escape(usage)}</code></pre>"
        else:
            side = render_note("It can be loaded, and is drawn, once the search has ended.")
            code = ""
        parts.append(
            f'{render_note(note)}<div class="children">{side}<div>{table}</div></div>{code}'
        )
    return "".join(parts)


def _trials(history: History) -> str:
    """Returns what became of the trials, and why some failed."""
    header = ["task", "search", "trials", "trained", "repeats", "stopped early", "failed"]
    header += ["seconds of training", "examples seen", "programs"]
    rows, failures = [], []
    for label, records in ((history.label, history.records), ("random", history.random_records)):
        for task in history.tasks if records else ():
            own = of_task(records, task)
            trained = [record for record in own if record.bucket != "log"]
            numbers = [
                len(own),
                len(trained),
                len(own) - len(trained),
                sum(record.stopped for record in own),
                sum(record.failed is not None for record in own),
                round(sum(record.seconds for record in own), 1),
                sum(record.samples for record in own),
                len({record.bucket for record in trained}),
            ]
            rows.append([task, label, *map(str, numbers)])
            reasons = collections.Counter(record.failed for record in own if record.failed)
            failures += [[task, label, str(n), why] for why, n in reasons.most_common()]
    note = (
        "A repeat is a design that was already tried on its task: it is answered from the log, "
        "and costs nothing. Seconds are those of the threads, added up, without compilation."
    )
    table = render_note(note) + render_table(header, rows)
    if not failures:
        return table + render_note("No trial failed.")
    return f"{table}<h3>Failed trials</h3>" + render_table(
        ["task", "search", "trials", "reason"], failures
    )
