"""The charts of searches, from what is in their folders."""

import itertools
import textwrap
from collections.abc import Sequence

import numpy as np

from mnms_jax.analysis import (
    Choices,
    Importance,
    choice_shares,
    cosine_similarities,
    place,
    principal_plane,
)
from mnms_jax.charts import Bars, Chart, Heat, Parallel, Plot, Series
from mnms_jax.history import Frequencies, History, best_so_far, of_task
from mnms_jax.report import describe, top_records
from mnms_jax.store import TrialRecord

_LEAST_TOP, _MOST_TOP = 10, 50  # children of a task in the parallel coordinates
_PROGRAMS = 15  # with the most seconds, that are shown


def reward_chart(history: History) -> Chart:
    """Returns each trial's reward and the best so far, a panel a task, with random search."""
    panels = []
    for task in history.tasks:
        series: list[Series] = []
        for label, all_records in (
            (history.label, history.records),
            ("random", history.random_records),
        ):
            records = of_task(all_records, task)
            done = [r for r in records if r.reward is not None]
            if not done:
                continue
            steps = [r.trial + 1 for r in records]
            series.append(Series(label, steps, best_so_far(records), "steps"))
            rewards = [r.reward or 0.0 for r in done]
            notes = [_note(r) for r in done]
            trials = [r.trial + 1 for r in done]
            series.append(Series(label, trials, rewards, "points", notes=notes))
        panels.append(Plot(task, "trials", history.reward, series))
    note = (
        "Lines are the best so far, points single trials: point at one to see its decisions. Click "
        "a name below to hide or show it. Failed trials have no point."
    )
    return Chart("rewards", "Rewards", note, panels)


def comparison_chart(histories: Sequence[History]) -> Chart:
    """Returns the best so far of several searches, a panel a task and kind of reward."""
    tasks = dict.fromkeys(task for history in histories for task in history.tasks)
    rewards = dict.fromkeys(history.reward for history in histories)
    panels = []
    for task, reward in itertools.product(tasks, rewards):
        series = []
        for history in histories:
            records = of_task(history.records, task)
            if history.reward == reward and any(r.reward is not None for r in records):
                steps = [r.trial + 1 for r in records]
                series.append(Series(history.name, steps, best_so_far(records), "steps"))
        title = task if len(rewards) == 1 else f"{task}: {reward}"
        if len(series) == 1:  # of which there is no legend
            title += f" ({series[0].name})"
        label = f"best {reward}" if len(rewards) == 1 else "best reward"
        if series or len(rewards) == 1:
            panels.append(Plot(title, "trials", label, series))
    note = "Best reward on validation so far. One search each: seeds alone make such curves differ."
    if len(rewards) > 1:
        note += " Different rewards can't be compared, and have panels of their own."
    return Chart("runs", "Best so far", note, panels)


def rounds_chart(history: History) -> Chart | None:
    """Returns the policy's entropy, the time lost to compiling and the programs, over rounds."""
    panels = []
    for key, title, label in (
        ("learner/policy_entropy", "policy entropy", "nats, of a whole design"),
        ("time/idle_share", "idle for compiling", "share of the time"),
        ("time/programs", "compiled programs", "number"),
    ):
        rows = [row for row in history.rounds if key in row]
        if rows:
            line = Series(title, [row["round"] for row in rows], [row[key] for row in rows])
            panels.append(Plot(title, "rounds", label, [line]))
    note = (
        "The policy's entropy on the trials that it learned from, a mean over tasks; and, since "
        "the process began, the share of the workers' time spent waiting for the compiler."
    )
    return Chart("rounds", "Rounds", note, panels) if panels else None


def choices_chart(history: History, choices: Choices, frequencies: Frequencies) -> Chart | None:
    """Returns how often each choice was taken over time, a panel a task.

    Args:
      history: the search.
      choices: by decision.
      frequencies: the controller's own, by task and (decision, choice), see
        `controller_frequencies`.
    """
    panels = []
    for task in history.tasks:
        columns, shares = choice_shares(of_task(history.records, task), choices)
        own = frequencies.get(task)
        labels, ticks, rows = [], [], []
        width = len(columns) + 2 * (own is not None)
        for name, values in choices.items():
            if len(values) < 2:
                continue
            labels.append(name)
            ticks.append(name)
            rows.append(np.full(width, np.nan))
            for value, share in zip(values, shares[name], strict=True):
                labels.append(f"{name}: {value}")
                ticks.append(str(value))
                last = [] if own is None else [np.nan, own[name, str(value)]]
                rows.append(np.array([*share, *last]))
        ends = [] if own is None else ["", "controller"]
        if rows and width:
            panels.append(Heat(task, [*columns, *ends], labels, np.array(rows), y_ticks=ticks))
    note = (
        "Share of a round's trials that took each choice (columns are trial numbers). These are "
        "frequencies in the log, not the controller's probabilities: with the reward model on, it "
        "chooses the trials among the controller's samples and others."
    )
    if frequencies:
        note += (
            ' The column "controller" is how often the saved controller takes the choice, '
            "estimated from 1,024 samples."
        )
    return Chart("choices", "Choices over time", note, panels) if panels else None


def embedding_charts(history: History) -> list[Chart]:
    """Returns the tasks' embeddings as a map and their similarities, for two tasks or more."""
    if history.controller is None or len(history.controller.task_names) < 2:
        return []
    names = history.controller.task_names
    vectors = np.asarray(history.controller.params["task_embedding"], np.float64)
    plane, share = principal_plane(vectors)
    points = [Series(name, [x], [y], "labels") for name, (x, y) in zip(names, plane, strict=True)]
    note = (
        f"The {vectors.shape[1]} numbers by which the controller knows each task, on their first "
        f"two principal axes, which hold {share:.0%} of the variance."
    )
    map_ = Plot("", "first axis", "second axis", points)
    cosines = Heat("", names, names, cosine_similarities(vectors), limits=(-1.0, 1.0), numbers=True)
    return [
        Chart("embeddings", "Task embeddings", note, [map_]),
        Chart("similarity", "Similarity of tasks", "Cosines between these numbers.", [cosines]),
    ]


def importance_chart(found: dict[str, Importance], choices: Choices) -> Chart | None:
    """Returns which decisions matter, tasks side by side, the most important one first."""
    if not found:
        return None
    order = np.argsort(-np.max([row.means for row in found.values()], axis=0), kind="stable")
    names = list(choices)
    panel = Bars(
        "",
        "loss of R²",
        [names[d] for d in order],
        {task: row.means[order] for task, row in found.items()},
        {task: row.deviations[order] for task, row in found.items()},
    )
    explained = ", ".join(f"{task} {row.explained:.2f}" for task, row in found.items())
    note = (
        "How much worse a random forest (100 trees) predicts a task's rewards when the choices of "
        f"one decision are shuffled (permutation importance). Its R² on trials that its trees "
        f"haven't seen: {explained}. Near 0 or below, there are too few trials to tell, and the "
        "bars mean nothing. The search chooses its trials, which makes decisions that it settled "
        "early look unimportant."
    )
    return Chart("importance", "Which decisions matter", note, [panel])


def parallel_chart(history: History, choices: Choices) -> Chart | None:
    """Returns the best children's decisions as lines; the first axis is the task."""
    top = [
        (float(number), record)
        for number, task in enumerate(history.tasks)
        for record in top_records(history.records, task, _number_of_best(history, task))
    ]
    if not top:
        return None
    axes: list[tuple[str, Sequence[str]]] = [("task", history.tasks)]
    columns = [[number for number, _ in top]]
    for name, values in choices.items():
        places = [place(record, name, choices) for _, record in top]
        if len(values) > 1:
            # Where a decision isn't active, a place below all choices says so.
            shift = int(min(places) < 0)
            axes.append((name, ["-"] * shift + list(map(str, values))))
            columns.append([float(number + shift) for number in places])
    columns.append([record.reward or 0.0 for _, record in top])
    panel = Parallel("", [*axes, (history.reward, ())], np.array(columns).T)
    note = (
        f"The best quarter of each task's trials, {_LEAST_TOP} to {_MOST_TOP} of them; orange "
        "is best; - where a decision isn't active. Drag along an axis to see only what goes "
        "through there, e.g. one task; double click to undo; drag a name to move its axis."
    )
    return Chart("parallel", "Best children", note, [panel])


def seconds_chart(history: History) -> Chart | None:
    """Returns the seconds of training by program, those with the most."""
    totals: dict[str, dict[str, float]] = {task: {} for task in history.tasks}
    for record in history.records:
        if record.samples and record.task in totals:
            own = totals[record.task]
            own[record.bucket] = own.get(record.bucket, 0.0) + record.seconds
    sums: dict[str, float] = {}
    for own in totals.values():
        for bucket, seconds in own.items():
            sums[bucket] = sums.get(bucket, 0.0) + seconds
    names = sorted(sums, key=lambda bucket: -sums[bucket])[:_PROGRAMS]
    if not names:
        return None
    values = {task: [own.get(name, 0.0) for name in names] for task, own in totals.items()}
    note = (
        "Seconds of training, without compilation, by compiled program (architecture); threads "
        "add up."
    )
    if len(sums) > len(names):
        note += f" The {len(names)} with the most of {len(sums)}."
    panel = Bars("training by program", "seconds", names, values, {})
    return Chart("seconds", "Time", note, [panel])


def _number_of_best(history: History, task: str) -> int:
    return min(max(len(of_task(history.records, task)) // 4, _LEAST_TOP), _MOST_TOP)


def _note(record: TrialRecord) -> str:
    words = textwrap.wrap(describe(record.decisions), 60)
    reward = "failed" if record.reward is None else f"{record.reward:.4f}"
    return "\n".join([f"trial {record.trial}: {reward}", *words])
