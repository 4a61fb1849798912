"""A saved controller as the start of a search on other tasks."""

import pathlib
import zlib
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnms_jax.controller import make_policy
from mnms_jax.migrate import match_spaces, migrate_params, migrate_trials
from mnms_jax.replay import ReplayBank
from mnms_jax.reward import ACCURACY
from mnms_jax.saved_controller import SavedController, load_controller
from mnms_jax.space import SearchSpace
from mnms_jax.store import TrialRecord
from mnms_jax.tasks.traits import task_traits
from mnms_jax.transfer import make_bank, task_similarity
from mnms_jax.types import Array, Params, Task, TaskTraits, UserError


def load_sources(
    path: pathlib.Path, space: SearchSpace, renamed: Mapping[str, str]
) -> SavedController:
    """Loads a controller, and carries it over to a search space that has changed since.

    What differs between the spaces is logged.

    Args:
      path: its folder, or the folder of the search that saved it.
      space: the search space as it is now.
      renamed: see `match_spaces`.

    Raises:
      UserError: there is no controller, no decision of its space is left, or see `match_spaces`.
    """
    saved = load_controller(find_controller(path))
    match = match_spaces(saved.space, space, renamed)
    if saved.space.fingerprint == space.fingerprint:
        return saved
    if np.all(match.choices < 0):
        raise UserError(
            f"{path} has a controller for another search space: they have no decision in common "
            f"(it has {', '.join(saved.space.names)}); choose the --space that it was trained in"
        )
    logging.warning("the search space has changed since %s was saved:", path)
    for line in saved.space.diff(space):
        logging.warning("  %s", line)
    trials = migrate_trials(match, saved.space, space, saved.trials)
    num_lost = int(jnp.sum(saved.trials.size) - jnp.sum(trials.size))
    if num_lost and num_lost == int(jnp.sum(saved.trials.size)):
        raise UserError(
            f"{path} has a controller for another search space: none of its {num_lost} trials has "
            "a design of this one; choose tasks of the same kind, and the --space that it was "
            "trained in"
        )
    logging.warning(
        "%d of %d choices are known, %d of %d trials have designs that are gone",
        np.sum(match.choices >= 0),
        np.sum(space.action_mask),
        num_lost,
        jnp.sum(saved.trials.size),
    )
    fresh = make_policy(space, len(saved.task_names)).init(jax.random.key(0))
    params = migrate_params(match, saved.params, fresh)
    return saved._replace(space=space, params=params, trials=trials)


def find_controller(path: pathlib.Path) -> pathlib.Path:
    """Returns the folder of a controller, given that or the folder of the search that saved it.

    Raises:
      UserError: there is none.
    """
    inside = path / "controller"
    if inside.is_dir() or (path / "controller.json").exists():
        return inside if inside.is_dir() else path
    if (path / "trials.jsonl").exists():
        raise UserError(
            f"{path} holds no controller: its search hasn't ended, or had --nosave_controller"
        )
    found = sorted(str(folder.parent) for folder in path.glob("*/controller"))
    hint = f"; there are some in {', '.join(found)}" if found else ""
    raise UserError(f"{path} holds no controller{hint}")


def similarities(tasks: Sequence[TaskTraits], sources: Sequence[TaskTraits]) -> np.ndarray:
    """Returns how alike G tasks are to T sources, [G, T]."""
    return np.array([[task_similarity(own, other) for other in sources] for own in tasks])


def to_save(
    space: SearchSpace,
    tasks: Sequence[Task],
    params: Params,
    records: Sequence[TrialRecord],
    sources: SavedController | None = None,
    reward: str = ACCURACY,
    skip_connection: bool = True,
) -> SavedController:
    """Returns the controller of a search, with its sources' tasks and trials before its own.

    Args:
      space: the search space.
      tasks: of the search. One that is a source too went on: its trials are added to those before.
      params: of the policy for the sources and the new tasks.
      records: the search's log. Repeats and trials that were stopped early aren't kept.
      sources: what the search started from.
      reward: formula of the rewards, the sources' too.
      skip_connection: of the policy.
    """
    finished = [r for r in records if r.is_whole]
    own = bank_of_records(space, [task.name for task in tasks], finished)
    known = {} if sources is None else dict(zip(sources.task_names, sources.traits, strict=True))
    traits = {**known, **{task.name: task_traits(task) for task in tasks}}
    names = tuple(traits)
    if sources is not None:
        own = _join(sources.trials, own, [names.index(task.name) for task in tasks])
    learned = (own, tuple(traits.values()), reward, skip_connection)
    return SavedController(names, space, params, *learned)


def bank_of_records(
    space: SearchSpace, task_names: Sequence[str], records: Sequence[TrialRecord]
) -> ReplayBank:
    """Returns logged trials as a replay bank: a row for each task, in the order of the records."""
    own = [[record for record in records if record.task == name] for name in task_names]
    return make_bank(space, [[(r.decisions, r.reward) for r in rows] for rows in own])


def digest(sources: SavedController) -> str:
    """Returns 8 hexadecimal digits that change with what a search takes from a controller."""
    content = b"".join(np.asarray(x).tobytes() for x in jax.tree.leaves(sources[2:4]))
    content += repr(sources.traits).encode()
    return f"{zlib.crc32(content):08x}"


def _join(first: ReplayBank, second: ReplayBank, rows: Sequence[int]) -> ReplayBank:
    """Returns a bank of both: the second's task i has its trials at the end of row `rows[i]`."""
    sizes = np.zeros(max(len(first.size), max(rows) + 1), np.int32)
    sizes[: len(first.size)] = first.size
    starts = sizes[list(rows)]
    sizes[list(rows)] += np.asarray(second.size)
    capacity = max(first.rewards.shape[1], sizes.max())

    def join(a: Array, b: Array) -> Array:
        joined = np.zeros((len(sizes), capacity, *a.shape[2:]), a.dtype)
        joined[: a.shape[0], : a.shape[1]] = a
        for row, start, added, size in zip(rows, starts, b, second.size.tolist(), strict=True):
            joined[row, start : start + size] = added[:size]
        return jnp.asarray(joined)

    actions, log_probs, rewards = map(join, first[:3], second[:3])
    return ReplayBank(actions, log_probs, rewards, jnp.asarray(sizes))
