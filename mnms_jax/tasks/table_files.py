"""The user's own tables of rewards, from files."""

import math
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import logging

from mnms_jax.space import Decision, SearchSpace, nearest
from mnms_jax.tabular import RewardTable, TableBenchmark, grid_strides
from mnms_jax.tasks.columns import Columns, read_columns, unusable
from mnms_jax.types import Choice

_MAX_CELLS = 1 << 24  # combinations of choices: 64 MiB of row numbers
_MAX_REWARDS = 1 << 27  # tasks times designs times most repeats: 512 MiB
# What begins with needless zeros, as 007, is a text.
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[+-]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?")


def read_table(
    path: str | pathlib.Path,
    decisions: Sequence[str] | None = None,
    *,
    task: str = "task",
    reward: str = "reward",
    test: str | None = None,
) -> TableBenchmark:
    """Reads a table of rewards, one trial a row, as a search space and tasks.

    A decision's choices are the different values in its column: numbers in ascending order, texts
    as they first appear. Rows of one task and design are repeats (seeds), of which a trial draws
    one. What the file lacks of all combinations of choices is a failed trial; how many are is
    logged.

    Args:
      path: a file as `read_columns` takes it. In CSV and TSV, columns of integers, of numbers, and
        of true and false are recognised.
      decisions: columns that are decisions, in the order in which they are made; by default all
        but the others named here, in the file's order.
      task: the column with the task's name.
      reward: the column with the reward, which is maximised; empty or NaN where the trial failed.
      test: the column with a test metric, of which a design's repeats are averaged; empty or NaN
        where there is none.

    Raises:
      UserError: the file is missing or malformed, or its choices combine to over 16,777,216
        designs; the message tells the row and the column. Rows of a CSV file are its lines,
        counted from 1.
    """
    path = pathlib.Path(path)
    file = read_columns(path)
    for name in file.names:
        if file.names.count(name) > 1 or not name:
            raise unusable(path, f"each column needs a name of its own, not {name!r}")
    others = [task, reward] if test is None else [task, reward, test]
    names = [n for n in file.values if n not in others] if decisions is None else [*decisions]
    for name in [*others, *names]:
        if name not in file.values:
            raise unusable(path, f"it has no column {name!r}{nearest(name, file.values)}")
    if not names or len({*others, *names}) < len(others) + len(names):
        raise unusable(path, "decisions, task, reward and test must be different columns")
    space, actions = _read_space(file, names)
    logging.info("%s: its decisions are %s", path, ", ".join(space.names))
    task_names, task_ids = _number([str(value) for value in _filled(file, task)])
    rewards = _read_metric(file, reward)
    table, rows = _tabulate(path, space, task_ids, actions, rewards)
    shape = (len(task_names), table.rewards.shape[1])
    tests = None if test is None else _average(shape, task_ids, rows, _read_metric(file, test))
    return TableBenchmark(path.stem, space, tuple(task_names), reward, table, tests)


def _filled(file: Columns, name: str) -> list[Any]:
    """Returns a column's values.

    Raises:
      UserError: a row has none.
    """
    values = file.values[name]
    for row, value in zip(file.rows, values, strict=True):
        if value is None or value == "":
            raise unusable(file.path, f"row {row} has no {name!r}")
    return values


def _number(values: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
    """Returns the different values as they first appear, and the index of each, int32 [N]."""
    index = {value: number for number, value in enumerate(dict.fromkeys(values))}
    return list(index), np.array([index[value] for value in values], np.int32)


def _read_space(file: Columns, names: Sequence[str]) -> tuple[SearchSpace, np.ndarray]:
    """Returns the space of the decisions named, and the actions of each row, int32 [N, D]."""
    decisions, actions = [], []
    for name in names:
        choices, numbers = _number(_read_choices(file, name))
        if not isinstance(choices[0], str):
            order = sorted(range(len(choices)), key=choices.__getitem__)
            choices, numbers = [choices[c] for c in order], np.argsort(order)[numbers]
        decisions.append(Decision(name, tuple(choices)))
        actions.append(numbers)
    space = SearchSpace(decisions)
    cells = math.prod(len(decision.choices) for decision in decisions)
    if cells > _MAX_CELLS:
        sizes = ", ".join(f"{d.name} {len(d.choices)}" for d in decisions)
        fault = f"its choices combine to {cells} designs, more than {_MAX_CELLS} ({sizes})"
        raise unusable(file.path, f"{fault}; name fewer columns as decisions")
    return space, np.stack(actions, axis=-1).astype(np.int32)


def _read_choices(file: Columns, name: str) -> list[Choice]:
    """Returns a decision's values, all of one type."""
    values = _filled(file, name)
    if not file.typed:
        return _typed(values)
    kinds = {type(value) for value in values}
    if kinds == {int, float}:
        kinds, values = {float}, [float(str(value)) for value in values]  # inf if it is too large
    if len(kinds) > 1 or not kinds <= {bool, int, float, str}:
        found = ", ".join(sorted(kind.__name__ for kind in kinds))
        fault = f"texts, or numbers, or true and false are needed in {name!r}, not {found}"
        raise unusable(file.path, fault)
    for row, value in zip(file.rows, values, strict=True):
        if isinstance(value, float) and not math.isfinite(value):
            raise unusable(file.path, f"row {row} has {value} in {name!r}; it must be finite")
    return values


def _typed(texts: list[str]) -> list[Choice]:
    """Returns integers, floats or truth values if all texts are such, else the texts."""
    if all(_INTEGER.fullmatch(text) for text in texts):
        return [int(text) for text in texts]
    if all(_FLOAT.fullmatch(text) and math.isfinite(float(text)) for text in texts):
        return [float(text) for text in texts]
    if all(text.lower() in ("true", "false") for text in texts):
        return [text.lower() == "true" for text in texts]
    return list(texts)


def _read_metric(file: Columns, name: str) -> np.ndarray:
    """Returns a column of numbers, float32 [N]; NaN where there is none."""
    numbers = np.full(len(file.rows), np.nan, np.float32)
    for n, (row, value) in enumerate(zip(file.rows, file.values[name], strict=True)):
        if value is None or value == "":
            continue
        fault = f"row {row} has {value!r} in {name!r}; a number of 32 bits, or nothing, is needed"
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError) as error:
            raise unusable(file.path, fault) from error
        with np.errstate(over="ignore"):
            numbers[n] = number
        if np.isinf(numbers[n]):
            raise unusable(file.path, fault)
    return numbers


def _tabulate(
    path: pathlib.Path,
    space: SearchSpace,
    task_ids: np.ndarray,
    actions: np.ndarray,
    rewards: np.ndarray,
) -> tuple[RewardTable, np.ndarray]:
    """Returns the table of N trials, and the row of each trial, int64 [N]."""
    strides = grid_strides(space)
    num_tasks = int(task_ids.max()) + 1
    num_cells = math.prod(len(decision.choices) for decision in space.decisions)
    found, trial_rows = np.unique(actions @ strides, return_inverse=True)
    num_rows = len(found) + (len(found) < num_cells)  # the last is of those that are missing
    rows = np.full(num_cells, num_rows - 1, np.int32)
    rows[found] = np.arange(len(found))
    groups = task_ids.astype(np.int64) * num_rows + trial_rows
    most = int(np.unique(groups, return_counts=True)[1].max())
    if num_tasks * num_rows * most > _MAX_REWARDS:
        fault = f"{num_tasks} tasks, {num_rows} designs and up to {most} repeats of one"
        raise unusable(path, f"{fault} make more than {_MAX_REWARDS} rewards")
    num_seeds = np.bincount(groups, minlength=num_tasks * num_rows)
    order = np.argsort(groups, kind="stable")
    ends = np.cumsum(num_seeds)
    seeds = np.arange(len(groups)) - (ends - num_seeds)[groups[order]]
    values = np.full((num_seeds.size, most), np.nan, np.float32)
    values[groups[order], seeds] = rewards[order]
    missing = num_tasks * num_cells - np.count_nonzero(num_seeds)
    logging.info(
        "%s: %d of %d combinations of task and design are missing and count as failed trials",
        path,
        missing,
        num_tasks * num_cells,
    )
    shape = (num_tasks, num_rows)
    return (
        RewardTable(
            values.reshape(*shape, most), num_seeds.reshape(shape).astype(np.int32), rows, strides
        ),
        trial_rows,
    )


def _average(
    shape: tuple[int, int], task_ids: np.ndarray, rows: np.ndarray, values: np.ndarray
) -> np.ndarray:
    """Returns the mean of each task's and row's values that are not NaN, float32 [T, R]."""
    known = np.isfinite(values)
    sums, counts = np.zeros(shape), np.zeros(shape)
    np.add.at(sums, (task_ids[known], rows[known]), values[known])
    np.add.at(counts, (task_ids[known], rows[known]), 1)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)
