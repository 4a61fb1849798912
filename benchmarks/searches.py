"""How many whole searches a minute: ours, all seeds in one call, against Optuna's TPE one by one.

Goal: on a table of known rewards, multitask searches run at least 50 times as fast as TPE's once
they are compiled, and at least 10 times with compilation. On two CPU cores these are 1.35 and .77
(benchmarks/RESULTS.md); an accelerator wasn't measured. A search is of one task: one of ours on G
tasks counts as G. Both take turns in one process: ours is called, then TPE runs for a while.

Command: python -m benchmarks.searches --json=searches.json
Variants: --method=mnms2017_multitask, --seeds=32
"""

import json
import pathlib
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import rich.console
import rich.table
from absl import flags

import mnms_jax as mnms
from mnms_jax.methods import import_optuna

_TABLE = flags.DEFINE_string("table", "hpobench_mlp", "Table of rewards, see mnms_jax.load_table.")
_METHOD = flags.DEFINE_string("method", "multitask", "Ours, see mnms_jax.make_strategy.")
_NUM_TASKS = flags.DEFINE_integer("num_tasks", 3, "Tasks, the table's last ones.", lower_bound=1)
_SEEDS = flags.DEFINE_integer("seeds", 256, "Searches of ours in a call.", lower_bound=1)
_NUM_TRIALS = flags.DEFINE_integer("num_trials", 200, "Trials of a search.", lower_bound=1)
_ROUND = flags.DEFINE_integer("trials_per_round", 2, "Of ours, on each task.", lower_bound=1)
_CALLS = flags.DEFINE_integer("calls", 3, "Calls of ours that count.", lower_bound=1)
_TPE_SEARCHES = flags.DEFINE_integer("tpe_searches", 5, "Of TPE, after each call.", lower_bound=1)
_JSON = flags.DEFINE_string("json", "", "File for the figures.")


def run_tpe(optuna: Any, benchmark: mnms.TableBenchmark, task_id: int, seed: int) -> float:
    """Returns the seconds that TPE with its defaults takes for one search, look-ups left out."""
    space, table = benchmark.space, benchmark.table
    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
    rng, looking_up = np.random.default_rng(seed), 0.0
    start = time.perf_counter()
    for _ in range(_NUM_TRIALS.value):
        trial = study.ask()
        actions = [
            trial.suggest_categorical(decision.name, range(len(decision.choices)))
            for decision in space.decisions
        ]
        begin = time.perf_counter()
        row = table.rows[int(np.dot(actions, table.strides))]
        reward = table.rewards[task_id, row, rng.integers(max(table.num_seeds[task_id, row], 1))]
        looking_up += time.perf_counter() - begin
        if np.isfinite(reward):
            study.tell(trial, float(reward))
        else:
            study.tell(trial, state=optuna.trial.TrialState.FAIL)
    return time.perf_counter() - start - looking_up


def main() -> None:
    """Measures, shows and writes the figures."""
    jax.config.update("jax_enable_compilation_cache", False)
    mnms.use_cores_as_devices()
    optuna = import_optuna("searches are timed against its own")
    benchmark = mnms.load_table(_TABLE.value)
    targets = tuple(range(len(benchmark.task_names)))[-_NUM_TASKS.value :]
    setup = mnms.TableSetup(
        benchmark.space,
        tuple(range(targets[0])),
        targets,
        _NUM_TRIALS.value,
        trials_per_round=_ROUND.value,
    )
    ours = mnms.play_seeds(mnms.make_strategy(_METHOD.value, setup), jax.local_devices())
    table = jax.tree.map(jnp.asarray, benchmark.table)

    def call(number: int) -> float:
        keys = jax.random.split(jax.random.key(number), _SEEDS.value)
        start = time.perf_counter()
        jax.block_until_ready(ours(table, keys))
        return time.perf_counter() - start

    first, warm, tpe = call(0), [], []
    for number in range(_CALLS.value):
        tpe += [
            run_tpe(optuna, benchmark, targets[i % len(targets)], number * _TPE_SEARCHES.value + i)
            for i in range(_TPE_SEARCHES.value)
        ]
        warm.append(call(number + 1))
    searches = _SEEDS.value * len(targets)
    per_minute = {
        "ours_with_compilation": 60 * searches / first,
        "ours_warm": 60 * searches / statistics.median(warm),
        "optuna_tpe": 60 / statistics.median(tpe),
    }
    figures = {
        "searches_per_minute": per_minute,
        "ratio_with_compilation": per_minute["ours_with_compilation"] / per_minute["optuna_tpe"],
        "ratio_warm": per_minute["ours_warm"] / per_minute["optuna_tpe"],
        "searches_in_a_call": searches,
        "devices": f"{len(jax.local_devices())} x {jax.local_devices()[0].device_kind}",
        "optuna": optuna.__version__,
    }
    shown = rich.table.Table("", "searches a minute", title=f"{_METHOD.value}, {_TABLE.value}")
    for name, value in per_minute.items():
        shown.add_row(name, f"{value:,.0f}")
    rich.console.Console(soft_wrap=True).print(shown)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    mnms.run_main(main)
