"""The best design of a search, trained anew on all examples that don't test it."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from mnms_jax.bench import make_bench
from mnms_jax.card import write_card
from mnms_jax.config import Config
from mnms_jax.export import save_child
from mnms_jax.predictions import find_child
from mnms_jax.report import show_number
from mnms_jax.store import read_config, read_json
from mnms_jax.training.fit import Request
from mnms_jax.types import Split, Task, UserError


def retrain_best(
    path: pathlib.Path, task: str = "", *, num_seeds: int = 5, entries: Sequence[str] = ()
) -> list[float]:
    """Trains the best design of a search on a task with training and validation examples together.

    The first seed's child, or the first that didn't fail, is saved in WORKDIR/retrained/TASK:
    test examples choose nothing.

    Args:
      path: folder of the search.
      task: its name; empty: the only one.
      num_seeds: children to train.
      entries: the search's tasks, as they are named now; empty: as they were.

    Returns:
      The children's rewards on test; NaN where one failed.

    Raises:
      UserError: there is no such search, the data isn't what was searched on, or all failed.
    """
    if num_seeds < 1:
        raise UserError(f"--retrain_seeds={num_seeds}: must be at least 1")
    best = find_child(path, task)
    design = read_json(best / "child.json")["decisions"]
    config, digests = _read_config(path, entries)
    found = make_bench(config)
    if found.inputs.digests != digests:
        names = ", ".join(k for k, v in found.inputs.digests.items() if digests.get(k) != v)
        raise UserError(f"--workdir {path}: its search was on other data (now other: {names})")
    tasks = found.tasks
    number = [own.name for own in tasks].index(best.name)
    bench = make_bench(config, [_join(own) for own in tasks])
    requests = [Request(number, best.name, seed, design) for seed in range(num_seeds)]
    rewards = [np.nan] * num_seeds
    for i, result in bench.trainer.train(requests):
        rewards[i] = np.nan if result.reward is None else result.reward
    kept = next((seed for seed in range(num_seeds) if np.isfinite(rewards[seed])), None)
    if kept is None:
        raise UserError(f"all {num_seeds} children of {best.name} failed; nothing is kept")
    child = bench.make_child(number, design, bench.trainer.fit(requests[kept])[1])
    folder = path / "retrained" / best.name
    save_child(folder, child)
    lines = [
        f"{config.reward} {describe_rewards(rewards)}.",
        f"This child is that of seed {kept}, with {show_number(rewards[kept])}: test chose none.",
    ]
    origin = (
        f"The design is the best of a search with seed {config.seed}; the child was trained anew, "
        "on training and validation examples together."
    )
    write_card(folder, tasks[number], config.tasks[number], design, lines, origin)
    return rewards


def describe_rewards(rewards: Sequence[float]) -> str:
    """Returns mean and deviation of several children's rewards on test in words."""
    known = [x for x in rewards if np.isfinite(x)]
    if not known:
        return f"all {len(rewards)} children failed"
    spread = f" ± {show_number(float(np.std(known, ddof=1)))}" if len(known) > 1 else ""
    failed = len(rewards) - len(known)
    rest = f"; {failed} more failed" if failed else ""
    mean = show_number(float(np.mean(known)))
    return f"on test {mean}{spread} (mean, deviation) of {len(known)} seeds{rest}"


def _read_config(path: pathlib.Path, entries: Sequence[str]) -> tuple[Config, dict[str, str]]:
    """Returns the configuration of a search, and the digests of its data."""
    stored = read_config(path)
    fields = {f.name: stored[f.name] for f in dataclasses.fields(Config) if f.name in stored}
    fields = {name: tuple(x) if isinstance(x, list) else x for name, x in fields.items()}
    if len(entries) not in (0, len(stored["tasks"])):
        raise UserError(
            f"--tasks={','.join(entries)}: name all tasks of the search, in their order: "
            f"{','.join(stored['tasks'])}"
        )
    tasks = tuple(entries or stored.get("entries", stored["tasks"]))
    return Config(**{**fields, "tasks": tasks}), stored["data"]


def _join(task: Task) -> Task:
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
