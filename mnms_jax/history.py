"""What searches have left in their folders, read back."""

import graphlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from mnms_jax.controller import choice_frequencies, make_policy
from mnms_jax.reward import ACCURACY
from mnms_jax.saved_controller import SavedController, load_controller
from mnms_jax.store import TrialLog, TrialRecord, read_json
from mnms_jax.types import Choice, UserError

# By task, how often (decision, choice) is taken.
Frequencies: TypeAlias = Mapping[str, Mapping[tuple[str, str], float]]


class History(NamedTuple):
    """A search, finished or not."""

    name: str
    path: pathlib.Path
    config: Mapping[str, Any]
    tasks: tuple[str, ...]
    records: Sequence[TrialRecord]
    random_records: Sequence[TrialRecord]  # of random search; none where it wasn't run
    summary: Mapping[str, Any]  # by task, see `report.summary_json`; empty before the end
    rounds: Sequence[Mapping[str, float]]  # scalars of each round, see `Tracker`
    controller: SavedController | None

    @property
    def label(self) -> str:
        """How the search was made, e.g. "ppo"."""
        return str(self.config.get("learner", "search"))

    @property
    def reward(self) -> str:
        """What children were rewarded with, see `parse_reward`."""
        return str(self.config.get("reward", ACCURACY))


def read_history(path: pathlib.Path) -> History:
    """Reads the folder of a search, which may still be going on.

    Raises:
      UserError: it isn't one, or a file of it is damaged.
    """
    log = path / "trials.jsonl"
    if not log.exists():
        if (path / "config.json").exists():
            raise UserError(f"--workdir {path}: no trial of its search has ended yet")
        inside = sorted(str(p.parent) for p in path.glob("*/trials.jsonl"))
        hint = f"; there are searches in {', '.join(inside)}" if inside else ""
        raise UserError(f"--workdir {path} holds no trials.jsonl{hint}")
    records = TrialLog(log).records
    config = read_json(path / "config.json")
    controller = path / "controller"
    return History(
        path.resolve().name,
        path,
        config,
        tuple(config.get("tasks", ())) or tuple(dict.fromkeys(r.task for r in records)),
        records,
        TrialLog(path / "random" / "trials.jsonl").records,
        read_json(path / "summary.json").get("tasks", {}),
        _read_rounds(path / "rounds.jsonl"),
        load_controller(controller) if controller.is_dir() else None,
    )


def tried_choices(records: Iterable[TrialRecord]) -> dict[str, tuple[Choice, ...]]:
    """Returns the choices that trials took, by decision, in an order that all trials agree with."""
    before: dict[str, dict[str, None]] = {}
    found: dict[str, set[tuple[str, Choice]]] = {}
    for record in records:
        names = list(record.decisions)
        for i, (name, value) in enumerate(record.decisions.items()):
            before.setdefault(name, {}).update(dict.fromkeys(names[max(i - 1, 0) : i]))
            # With its type, as True == 1.
            found.setdefault(name, set()).add((type(value).__name__, value))
    order = graphlib.TopologicalSorter(before).static_order()
    return {
        name: tuple(value for _, value in sorted(found[name], key=lambda pair: _rank(pair[1])))
        for name in order
    }


def known_choices(history: History) -> dict[str, tuple[Choice, ...]]:
    """Returns all choices by decision, as far as the folder tells."""
    if history.controller:
        return {d.name: d.choices for d in history.controller.space.decisions}
    return tried_choices([*history.records, *history.random_records])


def controller_frequencies(history: History) -> Frequencies:
    """Returns how often the saved controller takes a choice, by task and (decision, choice)."""
    saved = history.controller
    if saved is None:
        return {}
    skip = bool(history.config.get("skip_connection", True))
    policy = make_policy(saved.space, len(saved.task_names), skip_connection=skip)
    found = {}
    for task_id, task in enumerate(saved.task_names):
        if task in history.tasks:
            shares = choice_frequencies(
                policy, saved.space, saved.params, jax.random.key(0), task_id
            )
            found[task] = {
                (decision.name, str(choice)): float(shares[d, c])
                for d, decision in enumerate(saved.space.decisions)
                for c, choice in enumerate(decision.choices)
            }
    return found


def best_so_far(records: Sequence[TrialRecord]) -> np.ndarray:
    """Returns the best reward after each trial, NaN before one has succeeded."""
    rewards = [np.nan if record.reward is None else record.reward for record in records]
    return np.fmax.accumulate(np.array(rewards, np.float64))


def of_task(records: Sequence[TrialRecord], task: str) -> list[TrialRecord]:
    """Returns a task's trials in order."""
    return sorted((r for r in records if r.task == task), key=lambda record: record.trial)


def _rank(value: Choice) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


def _read_rounds(path: pathlib.Path) -> list[Mapping[str, float]]:
    """Returns each round's last line; one that a crash has torn isn't read."""
    rounds = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            row = json.loads(line)
            rounds[row["round"]] = row
        except (ValueError, TypeError, KeyError):
            continue
    return [rounds[number] for number in sorted(rounds)]
