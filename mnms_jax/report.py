"""What a finished search has to say: its best children per task, against references."""

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import rich.console
import rich.markup
import rich.table

from mnms_jax.reward import ACCURACY, SIZES, parse_reward
from mnms_jax.space import SearchSpace
from mnms_jax.store import TrialRecord
from mnms_jax.tasks.reference import Reference
from mnms_jax.types import Choice

NUM_FINALISTS = 10


class Finalists(NamedTuple):
    """The best children of one search on one task, highest reward first."""

    label: str  # of the search, e.g. "ppo"
    num_trials: int  # that they were chosen from
    records: tuple[TrialRecord, ...]
    test_rewards: tuple[float | None, ...]  # the same formula on test; None: not defined there
    test_metrics: tuple[Mapping[str, float], ...] = ()


class TaskSummary(NamedTuple):
    """A task's part of the final table."""

    task: str
    finalists: Finalists
    random: Finalists | None  # of random search, run for comparison
    reference: Reference


class Specialization(NamedTuple):
    """How far the controller's distribution over one decision differs between two tasks."""

    decision: str
    distance: float  # total variation in [0, 1]
    preferences: Mapping[str, str]  # likeliest choice and its share, by task


def top_records(
    records: Sequence[TrialRecord], task: str, number: int = NUM_FINALISTS
) -> tuple[TrialRecord, ...]:
    """Returns a task's best designs, each once, the earlier first where rewards are equal.

    Children that were stopped early aren't finished, and can't be among them.
    """
    own = [r for r in records if r.task == task and r.reward is not None and r.is_whole]
    return tuple(sorted(own, key=lambda r: (-(r.reward or 0.0), r.trial))[:number])


def describe(design: Mapping[str, Choice]) -> str:
    """Returns a design in words, e.g. "embedding glove50, no lowercase, hidden_layers 2"."""
    words = [
        f"{'' if value else 'no '}{name}" if isinstance(value, bool) else f"{name} {value}"
        for name, value in design.items()
    ]
    return ", ".join(words)


def find_specialization(
    space: SearchSpace, frequencies: Mapping[str, np.ndarray], number: int = 3
) -> list[Specialization]:
    """Returns the decisions that the controller takes most differently on different tasks.

    Args:
      space: the search space.
      frequencies: of each choice, [D, C], by task.
      number: of decisions to return.
    """
    found = []
    for d, decision in enumerate(space.decisions):
        # An inactive decision is a choice of its own: "not in use".
        rows = {
            task: np.append(table[d], max(0.0, 1 - table[d].sum()))
            for task, table in frequencies.items()
        }
        distances = [
            0.5 * float(np.abs(a - b).sum()) for a, b in itertools.combinations(rows.values(), 2)
        ]
        labels = [*map(str, decision.choices)]
        labels += [""] * (space.max_choices - len(labels)) + ["not in use"]
        preferences = {
            task: f"{labels[row.argmax()]} ({row.max():.0%})" for task, row in rows.items()
        }
        found.append(Specialization(decision.name, max(distances, default=0.0), preferences))
    return sorted(found, key=lambda item: -item.distance)[:number]


def print_summary(
    summaries: Sequence[TaskSummary],
    specialization: Sequence[Specialization],
    console: rich.console.Console,
    reward: str = ACCURACY,
) -> None:
    """Prints the final table and what the controller came to prefer."""
    is_share = reward == ACCURACY
    show = _percent if is_share else show_number
    title = f"{reward}{' in %' if is_share else ''}, validation / test"
    table = rich.table.Table(title=rich.markup.escape(title))
    for column in ("task", "searched by", "best by validation", f"mean of the top {NUM_FINALISTS}"):
        table.add_column(column, justify="left" if column[0] in "ts" else "right")
    for summary in summaries:
        table.add_row(summary.task, *_cells(summary.finalists, show))
        if summary.random:
            table.add_row("", *_cells(summary.random, show))
        reference = f"{show(summary.reference.validation)} / {show(summary.reference.test)}"
        table.add_row("", summary.reference.name, reference, "", end_section=True)
    console.print(table)
    for summary in summaries:
        if summary.finalists.records:
            best = summary.finalists.records[0]
            words = describe(best.decisions)
            numbers = "" if is_share else _numbers(summary.finalists, reward)
            console.print(
                f"best child on {summary.task} (trial {best.trial}{numbers}): {words}",
                soft_wrap=True,
            )
        else:
            console.print(f"no child on {summary.task} trained without failing", soft_wrap=True)
    if len(summaries) > 1:
        _print_specialization(specialization, console)


def summary_json(
    summaries: Sequence[TaskSummary],
    specialization: Sequence[Specialization],
    reward: str = ACCURACY,
) -> dict:
    """Returns the final table as plain JSON data."""

    def finalists(rows: Finalists | None) -> list[dict] | None:
        if rows is None:
            return None
        return [
            {
                "trial": r.trial,
                "validation": r.reward,
                "test": test,
                "metrics": dict(r.metrics),
                "test_metrics": dict(metrics),
                "decisions": r.decisions,
            }
            for r, test, metrics in zip(
                rows.records, rows.test_rewards, rows.test_metrics, strict=True
            )
        ]

    tasks = {
        summary.task: {
            "finalists": finalists(summary.finalists),
            "random": finalists(summary.random),
            "reference": summary.reference._asdict(),
        }
        for summary in summaries
    }
    differences = [row._asdict() for row in specialization]
    return {"reward": reward, "tasks": tasks, "specialization": differences}


def _cells(finalists: Finalists, show: Callable[[float], str]) -> tuple[str, str, str]:
    name = f"{finalists.label} search, {finalists.num_trials} trials"
    if not finalists.records:
        return name, "-", "-"
    validation = np.array([record.reward for record in finalists.records], float)
    test = np.array(finalists.test_rewards, float)  # NaN for None
    fewer = f" of {len(validation)}" if len(validation) < NUM_FINALISTS else ""
    return (
        name,
        f"{show(validation[0])} / {show(test[0])}",
        f"{show(validation.mean())} ± {show(validation.std())} / "
        f"{show(test.mean())} ± {show(test.std())}{fewer}",
    )


def _numbers(finalists: Finalists, reward: str) -> str:
    """Returns the numbers in the best child's reward, e.g. "; accuracy 0.812 / 0.803"."""
    known, tested = finalists.records[0].metrics, finalists.test_metrics[0]
    return "".join(
        f"; {name} {known[name]:,}"
        if name in SIZES
        else f"; {name} {show_number(known[name])} / {show_number(tested.get(name))}"
        for name in parse_reward(reward).names
    )


def _percent(share: float | None) -> str:
    return "-" if share is None or np.isnan(share) else f"{100 * share:.1f}"


def show_number(number: float | None) -> str:
    """Returns a reward with four digits, "-" for None or NaN."""
    if number is None or np.isnan(number):
        return "-"
    return f"{number:.4f}" if abs(number) < 1000 else f"{number:.4g}"


def _print_specialization(rows: Sequence[Specialization], console: rich.console.Console) -> None:
    # Two samples of 1,024 designs from one distribution differ by about 0.02 to 0.05.
    different = [row for row in rows if row.distance >= 0.1]
    if not different:
        console.print("the controller takes every decision alike on all tasks")
    for row in different:
        choices = "; ".join(f"{task}: {choice}" for task, choice in row.preferences.items())
        console.print(
            f"differs by task: {row.decision} (distance {row.distance:.2f}): {choices}",
            soft_wrap=True,
        )
