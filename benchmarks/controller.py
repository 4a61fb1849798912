"""What does the controller cost? Ask and tell, against Optuna's TPE, in the same run.

Claim: without a model of rewards at most 2 ms a trial on two CPU cores, the same after 100 trials
as after 10,000; with it less than Optuna. All decide in the default text space for eight tasks, in
rounds of 64 trials: all are asked for, then all are told. A trial's reward is a fixed function of
its decisions, which is not timed. Optuna has a study a task, in memory or in an SQLite file. They
take turns, a round each, so that they share whatever else the machine does; one that has used up
its seconds stays out from then on.

A figure after N trials (of all tasks together) is the median of the first five rounds that begin
with at least N trials told. The first calls of the controller's functions, which compile them, are
reported apart, without the cache of compiled programs.

Command: python -m benchmarks.controller --json=controller.json
Cost: about eleven minutes on two CPU cores, nearly all Optuna's; --optuna_seconds shortens it.
Optuna is left out where it isn't installed: pip install .[benchmarks].
"""

import importlib
import json
import math
import os
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import rich.console
import rich.table
from absl import flags

import mnms_jax as mnms
from mnms_jax.ranker import Ranker

_TRIALS = flags.DEFINE_list("trials", ["100", "1000", "10000"], "Numbers of trials to measure at.")
_SECONDS = flags.DEFINE_float("optuna_seconds", 300.0, "Most seconds for each storage of Optuna.")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

_TASKS, _ROUND, _WINDOW = 8, 64, 5
_TITLES = {
    "ms_per_trial": "controller with a model of rewards, the default",
    "policy_ms_per_trial": "controller without one",
    "optuna_tpe_ms_per_trial": "Optuna TPE, in memory",
    "optuna_sqlite_ms_per_trial": "Optuna TPE, SQLite",
}

Round = Callable[[], float]  # Runs one round of trials and returns the seconds it took.


class Rewards:
    """A fixed reward for every design on every task: the mean of a random worth of each action."""

    def __init__(self, space: mnms.SearchSpace):
        shape = (_TASKS, space.num_decisions, space.max_choices)
        self._worth = np.random.default_rng(0).random(shape, np.float32)
        self._decisions = np.arange(space.num_decisions)

    def __call__(self, task_ids: np.ndarray, actions: np.ndarray) -> np.ndarray:
        """Returns the rewards, float32 [B], for task_ids [B] and actions [B, D]."""
        return self._worth[task_ids[:, None], self._decisions, actions].mean(1)


def make_controller(
    space: mnms.SearchSpace, rewards: Rewards, ranker: Ranker | None
) -> tuple[Round, dict[str, float]]:
    """Returns the controller's round, and the seconds of the first call of each function."""
    policy = mnms.make_policy(space, num_tasks=_TASKS)
    learner = mnms.make_ppo_learner(policy)
    search = mnms.make_search(
        space,
        policy,
        learner,
        num_tasks=_TASKS,
        trials_per_task=_ROUND // _TASKS,
        ranker=ranker,
    )
    first: dict[str, float] = {}

    def call(name: str, *args: Any) -> tuple[Any, float]:
        start = time.perf_counter()
        result = jax.block_until_ready(getattr(search, name)(*args))
        seconds = time.perf_counter() - start
        first.setdefault(name, seconds)
        return result, seconds

    def step(state: mnms.SearchState) -> tuple[mnms.SearchState, float]:
        proposal, asked = call("ask", state)
        told = rewards(np.asarray(proposal.task_ids), np.asarray(proposal.actions))
        (state, _), seconds = call("tell", state, proposal, told)
        return state, asked + seconds

    state, _ = call("init", jax.random.key(0))
    step(step(state)[0])  # compiles; the search itself begins anew

    def run() -> float:
        nonlocal state
        state, seconds = step(state)
        return seconds

    return run, first


def make_optuna(optuna: Any, space: mnms.SearchSpace, rewards: Rewards, storage: Any) -> Round:
    """Returns the round of Optuna's TPE with its defaults: a study a task, in one storage."""
    studies = [
        optuna.create_study(
            storage=storage,
            study_name=f"task{t}",
            sampler=optuna.samplers.TPESampler(seed=t),
            direction="maximize",
        )
        for t in range(_TASKS)
    ]

    def suggest(trial: Any) -> dict[str, Any]:
        design: dict[str, Any] = {}
        for decision in space.decisions:
            conditions = (decision.active_if or {}).items()
            if all(name in design and design[name] in values for name, values in conditions):
                design[decision.name] = trial.suggest_categorical(decision.name, decision.choices)
        return design

    def run() -> float:
        start = time.perf_counter()
        trials = [study.ask() for _ in range(_ROUND // _TASKS) for study in studies]
        designs = [suggest(trial) for trial in trials]
        asked = time.perf_counter()
        actions = np.stack([space.encode(design) for design in designs])
        told = rewards(np.arange(_ROUND) % _TASKS, actions).tolist()
        start += time.perf_counter() - asked
        for i, (trial, reward) in enumerate(zip(trials, told, strict=True)):
            studies[i % _TASKS].tell(trial, reward)
        return time.perf_counter() - start

    return run


def measure(
    rounds: Mapping[str, Round], num_rounds: int, limits: Mapping[str, float]
) -> dict[str, list[float]]:
    """Runs all in turn, a round each; returns the ms a trial of every round that was run."""
    figures: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(num_rounds):
        for name, run in rounds.items():
            if sum(figures[name]) * _ROUND / 1e3 < limits.get(name, math.inf):
                figures[name].append(run() * 1e3 / _ROUND)
    return figures


def after(milliseconds: list[float], trials: int) -> float | None:
    """Returns the median of the rounds after so many trials; None where they weren't all run."""
    begin = -(-trials // _ROUND)
    window = milliseconds[begin : begin + _WINDOW]
    return statistics.median(window) if len(window) == _WINDOW else None


def show(figures: Mapping[str, Any]) -> None:
    """Prints the figures as a table."""
    table = rich.table.Table(title="ask + tell, ms a trial, after so many trials")
    table.add_column("")
    for trials in figures["ms_per_trial"]:
        table.add_column(f"{int(trials):,}", justify="right")
    for key, title in _TITLES.items():
        if figures[key] is not None:
            cells = ("out of time" if v is None else f"{v:.2f}" for v in figures[key].values())
            table.add_row(title, *cells)
    console = rich.console.Console(width=100)
    console.print(table)
    compiling = (f"{name} {s:.1f} s" for name, s in figures["compile_seconds"].items())
    console.print(f"First calls, mostly compilation: {', '.join(compiling)}.")
    if figures["optuna_tpe_ms_per_trial"] is None:
        console.print(
            "Optuna is not installed and was left out; to compare: pip install .[benchmarks]"
        )


def main() -> None:
    """Measures, shows and writes the figures."""
    jax.config.update("jax_enable_compilation_cache", False)
    counts = [int(trials) for trials in _TRIALS.value]
    num_rounds = -(-max(counts) // _ROUND) + _WINDOW
    space = mnms.make_text_family("cpu").space
    rewards = Rewards(space)
    controller, compile_seconds = make_controller(space, rewards, mnms.make_ranker(space))
    policy, _ = make_controller(space, rewards, None)
    rounds = {"ms_per_trial": controller, "policy_ms_per_trial": policy}
    with tempfile.TemporaryDirectory() as folder:
        try:
            optuna = importlib.import_module("optuna")
        except ImportError:
            pass
        else:
            optuna.logging.set_verbosity(optuna.logging.WARNING)
            database = optuna.storages.RDBStorage(f"sqlite:///{folder}/optuna.db")
            memory = optuna.storages.InMemoryStorage()
            rounds["optuna_tpe_ms_per_trial"] = make_optuna(optuna, space, rewards, memory)
            rounds["optuna_sqlite_ms_per_trial"] = make_optuna(optuna, space, rewards, database)
        limits = dict.fromkeys([name for name in rounds if "optuna" in name], _SECONDS.value)
        measured = measure(rounds, num_rounds, limits)
    figures: dict[str, Any] = {
        key: {str(n): after(measured[key], n) for n in counts} if key in measured else None
        for key in _TITLES
    }
    figures |= {"compile_seconds": compile_seconds, "num_cpus": os.cpu_count()}
    show(figures)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    mnms.run_main(main)
