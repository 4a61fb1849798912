"""The best design of a search, trained anew on all examples that don't test it."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mnms_jax.bench import Bench, make_bench
from mnms_jax.card import write_card
from mnms_jax.config import Config
from mnms_jax.export import save_child
from mnms_jax.predictions import find_child
from mnms_jax.report import show_number, top_records
from mnms_jax.store import TrialLog, TrialRecord, read_config
from mnms_jax.training.fit import Request
from mnms_jax.types import Choice, Split, Task, UserError


class Candidate(NamedTuple):
    """A design of a search, and what it earned on validation."""

    trial: int  # of the search
    design: Mapping[str, Choice]
    rewards: tuple[float, ...]  # the search's, then those of other seeds; NaN: failed

    @property
    def mean(self) -> float:
        """The mean of all rewards; NaN if one failed."""
        return float(np.mean(self.rewards))


class Retrained(NamedTuple):
    """What was retrained, and how good it is."""

    candidates: tuple[Candidate, ...]  # the chosen one first
    rewards: tuple[float, ...]  # of its children on test; NaN where one failed


def retrain_best(
    path: pathlib.Path,
    task: str = "",
    *,
    num_seeds: int = 5,
    num_candidates: int = 1,
    entries: Sequence[str] = (),
) -> Retrained:
    """Trains the best design of a search on a task with training and validation examples together.

    With several candidates, which one is the best is confirmed before, see `confirm`. The first
    seed's child, or the first that didn't fail, is saved in WORKDIR/retrained/TASK: test examples
    choose nothing.

    Args:
      path: folder of the search.
      task: its name; empty: the only one.
      num_seeds: children to train, of the chosen design and of each candidate before.
      num_candidates: designs to choose from, the best of the search; 1: its best is taken.
      entries: the search's tasks, as they are named now; empty: as they were.

    Returns:
      `candidates`, each with its trial, design and rewards on validation, the chosen one first; and
      `rewards`, those of its children on test.

    Raises:
      UserError: there is no such search, the data isn't what was searched on, or all failed.
    """
    for flag, number in {"retrain_seeds": num_seeds, "candidates": num_candidates}.items():
        if number < 1:
            raise UserError(f"--{flag}={number}: must be at least 1")
    name = find_child(path, task).name
    config, bench = open_bench(path, entries)
    number = [own.name for own in bench.tasks].index(name)
    records = TrialLog(path / "trials.jsonl").records
    candidates = confirm(bench, number, records, num_candidates, num_seeds)
    chosen = candidates[0]
    joined = make_bench(config, [join(own) for own in bench.tasks])
    requests = [Request(number, name, seed, chosen.design) for seed in range(num_seeds)]
    rewards = _train(joined, requests)
    kept = next((seed for seed in range(num_seeds) if np.isfinite(rewards[seed])), None)
    if kept is None:
        raise UserError(f"all {num_seeds} children of {name} failed; nothing is kept")
    child = joined.make_child(number, chosen.design, joined.trainer.fit(requests[kept])[1])
    folder = path / "retrained" / name
    save_child(folder, child)
    seen = describe_rewards(chosen.rewards, "validation")
    lines = [
        f"{config.reward} {describe_rewards(rewards)}. Trained on training examples alone, the "
        f"design had {seen}.",
        f"This child is that of seed {kept}, with {show_number(rewards[kept])}: test chose none.",
    ]
    among = f"chosen among the {len(candidates)} best " if len(candidates) > 1 else "the best "
    origin = (
        f"The design is that of trial {chosen.trial}, {among}of a search with seed {config.seed}; "
        "the child was trained anew, on training and validation examples together."
    )
    write_card(folder, bench.tasks[number], config.tasks[number], chosen.design, lines, origin)
    return Retrained(tuple(candidates), tuple(rewards))


def confirm(
    bench: Bench, task_id: int, records: Sequence[TrialRecord], num_candidates: int, num_seeds: int
) -> list[Candidate]:
    """Returns the best designs of a search on a task, that with the best mean reward first.

    The best of many trials is in part the luckiest. So each of the best designs is trained with
    more seeds, that no trial had, on the training examples alone, and earns the mean of its rewards
    on validation; that of the search counts as one. A design that fails once is the last.

    Args:
      bench: of the search.
      task_id: the task's index in it.
      records: of the search.
      num_candidates: how many designs there are to choose from; a single one isn't trained.
      num_seeds: children of each.

    Raises:
      UserError: no trial on the task has a reward.
    """
    name = bench.tasks[task_id].name
    top = top_records(records, name, num_candidates)
    if not top:
        raise UserError(f"trials.jsonl has no trial on {name} with a reward: no design to take")
    first = 1 + max(record.trial for record in records if record.task == name)
    seeds = range(first, first + num_seeds) if len(top) > 1 else ()
    requests = [Request(task_id, name, seed, r.decisions) for r in top for seed in seeds]
    more = np.reshape(_train(bench, requests), (len(top), -1))
    found = [
        Candidate(record.trial, record.decisions, (float(record.reward or 0), *map(float, own)))
        for record, own in zip(top, more, strict=True)
    ]
    return sorted(found, key=lambda c: -c.mean if np.isfinite(c.mean) else np.inf)


def describe_rewards(rewards: Sequence[float], split: str = "test") -> str:
    """Returns mean and deviation of several children's rewards in words."""
    known = [x for x in rewards if np.isfinite(x)]
    if not known:
        return f"all {len(rewards)} children failed"
    failed = len(rewards) - len(known)
    rest = f"; {failed} more failed" if failed else ""
    mean = show_number(float(np.mean(known)))
    if len(known) == 1:
        return f"on {split} {mean} with one seed{rest}"
    spread = show_number(float(np.std(known, ddof=1)))
    return f"on {split} {mean} ± {spread} (mean, deviation) of {len(known)} seeds{rest}"


def open_bench(path: pathlib.Path, entries: Sequence[str] = ()) -> tuple[Config, Bench]:
    """Returns the configuration of a search, and its tasks with what trains their children.

    Args:
      path: folder of the search.
      entries: its tasks, as they are named now; empty: as they were.

    Raises:
      UserError: there is no such search, or the data isn't what was searched on.
    """
    stored = read_config(path)
    fields = {f.name: stored[f.name] for f in dataclasses.fields(Config) if f.name in stored}
    fields = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
    if len(entries) not in (0, len(stored["tasks"])):
        raise UserError(
            f"--tasks={','.join(entries)}: name all tasks of the search, in their order: "
            f"{','.join(stored['tasks'])}"
        )
    tasks = tuple(entries or stored.get("entries", stored["tasks"]))
    config = Config(**{**fields, "tasks": tasks})
    bench = make_bench(config)
    if bench.inputs.digests != stored["data"]:
        own, before = bench.inputs.digests, stored["data"]
        names = ", ".join(name for name, digest in own.items() if before.get(name) != digest)
        raise UserError(f"--workdir {path}: its search was on other data (now other: {names})")
    return config, bench


def join(task: Task) -> Task:
    """Returns a task that learns from validation too, and is evaluated on test in its place."""
    train, validation, test = (task.splits[part] for part in ("train", "validation", "test"))
    pair: Any = (train.inputs, validation.inputs)
    if task.kind == "text":
        inputs: Any = (*pair[0], *pair[1])
    elif task.kind == "image":
        inputs = np.concatenate(pair)
    else:
        inputs = {name: np.concatenate([x[name] for x in pair]) for name in pair[0]}
    joined = Split(inputs, np.concatenate([train.labels, validation.labels]))
    return task._replace(splits={"train": joined, "validation": test, "test": test})


def _train(bench: Bench, requests: Sequence[Request]) -> list[float]:
    """Returns the rewards of children; NaN where one failed."""
    rewards = [np.nan] * len(requests)
    for i, result in bench.trainer.train(requests):
        rewards[i] = np.nan if result.reward is None else result.reward
    return rewards
