"""Methods played on a table of known rewards, and how their regrets compare."""

import pathlib
import time
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.markup
import rich.table
from absl import logging

from mnms_jax.comparison import ALL_TASKS, check_each_once, mean_interval, trial_counts, write_csv
from mnms_jax.simulate import play_seeds, regret
from mnms_jax.space import nearest
from mnms_jax.store import writable
from mnms_jax.strategies import TableSetup, make_strategy
from mnms_jax.tabular import TableBenchmark
from mnms_jax.types import UserError

_NUM_TARGETS = 3  # tasks to search on, where none are named


class Regret(NamedTuple):
    """One search at one number of trials."""

    benchmark: str
    task: str
    method: str
    seed: int
    trials: int
    regret: float  # 0: the best design of the table, 1: its median one


def run_tabular(
    benchmark: TableBenchmark,
    methods: Sequence[str],
    *,
    task_names: Sequence[str] = (),
    source_names: Sequence[str] = (),
    num_seeds: int = 64,
    seed: int = 0,
    num_trials: int = 200,
    num_source_trials: int = 200,
    trials_per_round: int = 2,
    csv: pathlib.Path | None = None,
) -> np.ndarray:
    """Plays all seeds of each method as one compiled function, and prints their regrets.

    Args:
      benchmark: the table.
      methods: M names, see `make_strategy`.
      task_names: the G tasks to search on; by default the table's last three, or all but the first
        of fewer than four.
      source_names: source tasks; by default all that aren't searched on.
      num_seeds: S, searches of each method.
      seed: of all that is random.
      num_trials: N, on each task.
      num_source_trials: on each source, rounded up to a multiple of 8.
      trials_per_round: on a task, between two updates.
      csv: file for all regrets, at the numbers of trials that are printed.

    Returns:
      See `regret`, [M, S, G, N].

    Raises:
      UserError: no method, an unknown method or task, one twice, a task without a reward, or a
        method that lacks sources.
    """
    names = benchmark.task_names
    # One at least is a source, if there are two.
    targets = tuple(task_names) or names[-max(1, min(_NUM_TARGETS, len(names) - 1)) :]
    sources = tuple(source_names) or tuple(name for name in names if name not in targets)
    _check(benchmark, targets, sources, methods)
    if csv is not None:
        with writable("--csv", csv):  # before anything is played
            csv.open("a").close()
    setup = TableSetup(
        benchmark.space,
        tuple(map(names.index, sources)),
        tuple(map(names.index, targets)),
        num_trials,
        num_source_trials,
        trials_per_round,
    )
    strategies = [make_strategy(name, setup) for name in methods]
    table = jax.tree.map(jnp.asarray, benchmark.table)
    keys = jax.random.split(jax.random.key(seed), num_seeds)
    found = []
    for name, strategy in zip(methods, strategies, strict=True):
        start = time.perf_counter()
        played = jax.block_until_ready(play_seeds(strategy, jax.local_devices())(table, keys))
        logging.info("%s: %.1f s, compilation included", name, time.perf_counter() - start)
        found.append(regret(benchmark, setup.targets, played))
    regrets = np.stack(found)
    _print(methods, targets, regrets)
    if csv is not None:
        write_csv(csv, Regret, _rows(benchmark.name, methods, targets, regrets))
    return regrets


def _check(
    benchmark: TableBenchmark,
    targets: Sequence[str],
    sources: Sequence[str],
    methods: Sequence[str],
) -> None:
    names, chosen = benchmark.task_names, (*targets, *sources)
    failed = np.isnan(benchmark.means).all(axis=1)
    for name in chosen:
        if name not in names:
            raise UserError(f"task {name!r} isn't in the table{nearest(name, names)}")
        if failed[names.index(name)]:
            raise UserError(f"task {name!r} has no reward in the table: every trial failed")
    if len(set(chosen)) < len(chosen):
        raise UserError(f"tasks {', '.join(chosen)}: name each once, as a task or as a source")
    check_each_once("methods", methods)


def _rows(
    benchmark: str, methods: Sequence[str], tasks: Sequence[str], regrets: np.ndarray
) -> list[Regret]:
    return [
        Regret(benchmark, task, method, seed, count, float(regrets[m, seed, g, count - 1]))
        for g, task in enumerate(tasks)
        for m, method in enumerate(methods)
        for seed in range(regrets.shape[1])
        for count in trial_counts(regrets.shape[-1])
    ]


def _print(methods: Sequence[str], tasks: Sequence[str], regrets: np.ndarray) -> None:
    counts = trial_counts(regrets.shape[-1])
    console = rich.console.Console(soft_wrap=True)
    groups = [(ALL_TASKS, regrets.mean(axis=2))]
    groups += [(task, regrets[:, :, g]) for g, task in enumerate(tasks)]
    for title, values in groups:
        table = rich.table.Table(
            "method", *map(str, counts), title=rich.markup.escape(f"regret: {title}")
        )
        for method, own in zip(methods, values, strict=True):
            cells = []
            for count in counts:
                mean, _, high = mean_interval(own[:, count - 1])
                cells.append(f"{mean:.3f} ± {high - mean:.3f}")
            table.add_row(method, *cells)
        console.print(table)
