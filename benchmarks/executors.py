"""What does it cost to train children by Ray's workers, and what do rounds in flight give back?

Claim: told in order, the trials are the same by whichever executor; and with two rounds in flight
workers wait less, for the last child of a round and for the learner.

The same searches by each way in turn, one seed after another, on two packaged tasks with short
children and the controller alone, without a model of rewards. All ways use two workers of one
thread. Processes are warm: the first seed compiles, and doesn't count. A worker is idle while it
neither trains nor compiles.

Command: python -m benchmarks.executors --seeds=5 --json=executors.json
Cost: five minutes on two CPU cores. Needs Ray: pip install "mnms_jax[ray]".
"""

import contextlib
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import rich.console
import rich.table
from absl import flags

import mnms_jax as mnms
from benchmarks.children import small_family
from mnms_jax.executor import Executor
from mnms_jax.run import Budget, RoundSetup, run_rounds
from mnms_jax.store import TrialRecord, open_workdir
from mnms_jax.tracking import Tracker
from mnms_jax.training.ray_trainer import RayTrainer, connect_ray

_SEEDS = flags.DEFINE_integer("seeds", 5, "Searches that count, of each way.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 8, "Rounds of eight children in a search.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

_TASKS = ("vader_amazon", "vader_tweets")
_TRIALS_PER_TASK = 4
_WORKERS = 2


class Way(NamedTuple):
    """How children are trained."""

    executor: str
    rounds_in_flight: int
    in_order: bool = True


_WAYS = (Way("local", 1), Way("ray", 1), Way("local", 2), Way("ray", 2), Way("ray", 2, False))


class Turn(NamedTuple):
    """One search."""

    seconds: float
    idle_share: float  # of the workers' time
    trials: list[TrialRecord]  # without their seconds


def make_trainer(num_workers: int = 1) -> mnms.Trainer:
    """Returns a trainer with so many threads."""
    inputs = mnms.TextInputs(mnms.load_tasks(_TASKS), mnms.PRESETS["cpu"], {})
    return mnms.Trainer(
        small_family(), inputs.child_data, num_classes=inputs.num_classes, num_workers=num_workers
    )


def make_search() -> mnms.Search:
    """Returns the search that all ways make."""
    space = small_family().space
    policy = mnms.make_policy(space, len(_TASKS))
    return mnms.make_search(
        space,
        policy,
        mnms.make_ppo_learner(policy),
        num_tasks=len(_TASKS),
        trials_per_task=_TRIALS_PER_TASK,
    )


def run_search(
    search: mnms.Search, executor: Executor, way: Way, seed: int, path: pathlib.Path
) -> Turn:
    """Searches in a new folder."""
    budget = Budget(_TRIALS_PER_TASK * _ROUNDS.value)
    setup = RoundSetup(small_family().space, _TASKS, search, executor, budget)
    setup = setup._replace(rounds_in_flight=way.rounds_in_flight, in_order=way.in_order)
    state = search.init(jax.random.key(seed))
    quiet = rich.console.Console(quiet=True)
    with open_workdir(path, {}) as workdir, Tracker(path, quiet) as tracker:
        before, start = _busy(executor), time.perf_counter()
        run_rounds(setup, state, workdir, tracker, "ppo")
        seconds = time.perf_counter() - start
        busy = _busy(executor) - before
        trials = [record._replace(seconds=0.0) for record in workdir.log.records]
    return Turn(seconds, 1 - busy / (_WORKERS * seconds), trials)


def _busy(executor: Executor) -> float:
    stats = executor.stats
    return stats.run_seconds + stats.compile_seconds


def summarize(way: Way, turns: Sequence[Turn], local: Sequence[Turn]) -> dict[str, Any]:
    """Returns a way's figures, without its first turn's, beside those of threads in order."""
    return {
        **way._asdict(),
        "seconds": [turn.seconds for turn in turns[1:]],
        "idle_shares": [turn.idle_share for turn in turns[1:]],
        "against_local": [a.seconds / b.seconds for a, b in zip(turns[1:], local[1:], strict=True)],
        "equal_to_local": [turn.trials for turn in turns] == [turn.trials for turn in local],
    }


def show(figures: Sequence[dict[str, Any]], console: rich.console.Console) -> None:
    """Prints the figures, medians over seeds."""
    table = rich.table.Table(
        *("executor", "rounds in flight", "told", "seconds", "over local's", "idle", "same trials")
    )
    for row in figures:
        medians = (
            statistics.median(row[key]) for key in ("seconds", "against_local", "idle_shares")
        )
        told = "in order" if row["in_order"] else "first done"
        same = str(row["equal_to_local"])
        table.add_row(
            row["executor"],
            str(row["rounds_in_flight"]),
            told,
            *map("{:.2f}".format, medians),
            same,
        )
    console.print(table)


def main() -> None:
    """Searches by all ways in turn, and tells how long they took."""
    turns: dict[Way, list[Turn]] = {way: [] for way in _WAYS}
    search = make_search()
    with contextlib.ExitStack() as stack:
        stack.enter_context(connect_ray(num_workers=_WORKERS))
        workers = RayTrainer(make_trainer, small_family().make_spec, num_workers=_WORKERS)
        stack.enter_context(contextlib.closing(workers))
        executors: dict[str, Executor] = {"local": make_trainer(_WORKERS), "ray": workers}
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for seed in range(_SEEDS.value + 1):
            for number, way in enumerate(_WAYS):
                path = folder / f"{seed}-{number}"
                turns[way].append(run_search(search, executors[way.executor], way, seed, path))
    figures = [
        summarize(way, own, turns[Way("local", way.rounds_in_flight)]) for way, own in turns.items()
    ]
    show(figures, rich.console.Console())
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    mnms.run_main(main)
