"""The controller against the best tuners, on tables of known rewards, each task left out in turn.

Claim: on FCNet and NAS-Bench-201 it isn't worse from scratch than Optuna's TPE at 100 and 200
trials; with the trials of the other tasks it is ahead of every tuner here at 25 and 50. `random`
and `cold` search all tasks, and their trials are the sources of all methods that use any.

Command, after `pip install ".[report,optuna]"`: python -m benchmarks.peers --json=peers.json
Variants: --tables=fcnet --methods=random,cold,tpe,transfer --seeds=3
Cost: SMAC takes 0.13 s a trial on a CPU core, Syne Tune's quantiles ten seconds a search, all
others some ten milliseconds a trial. An interrupted run resumes.

FILE has mean normalised regrets with 95 % intervals over the seeds, by benchmark, task, method and
number of trials. The benchmark "untuned" is the mean over all tasks that no default of the library
was chosen on: neither those of HPOBench-MLP nor six of NAS-Bench-Graph.

SMAC, PyGlove and Syne Tune answer from virtual environments of their own, which are built at first
in the folder `peers` of the cache. They are told which decisions are numbers that ascend.
"""

import contextlib
import json
import pathlib
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from absl import flags, logging

import mnms_jax as mnms
from benchmarks.peer_methods import PEERS, Worker, find_versions, make_peer
from benchmarks.peer_results import summarise
from mnms_jax.store import TrialLog

_TABLES = flags.DEFINE_list(
    "tables",
    ["hpobench_mlp", "fcnet", "nasbench201", "nasbench_graph"],
    "Tables, see mnms_jax.load_table.",
)
_METHODS = flags.DEFINE_list(
    "methods",
    [
        *("random", "cold", "evolution", "portfolio", "tpe", "tpe_enqueued", "transfer"),
        *("smac", "pyglove", "bounding_box", "quantile"),
    ],
    "Methods to compare: peers, and those of mnms_jax.make_methods.",
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=1)
_NUM_TRIALS = flags.DEFINE_integer("num_trials", 200, "Trials of a search.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/peers", "Folder of the results.")
_JSON = flags.DEFINE_string("json", "", "File for the regrets.")


def play(table: str, methods: Sequence[mnms.Method], workdir: pathlib.Path) -> np.ndarray:
    """Runs or resumes all searches on a table; returns their regrets, [M, S, T, N]."""
    benchmark = mnms.load_table(table)
    setup = mnms.LeaveOneOutSetup(
        benchmark.space,
        benchmark.task_names,
        tuple(methods),
        mnms.table_objective(benchmark),
        tuple(range(_SEEDS.value)),
        _NUM_TRIALS.value,
    )
    mnms.run_leave_one_out(
        setup,
        workdir,
        contenders=[name for name in ("cold", "transfer") if name in _METHODS.value],
        threshold_trials=500,
        identity={"table": table, "space": benchmark.space.fingerprint},
    )
    return np.stack(
        [
            np.concatenate(
                [
                    read_regrets(benchmark, workdir / f"seed_{seed}" / method.name)
                    for seed in setup.seeds
                ]
            )
            for method in methods
        ]
    )


def read_regrets(benchmark: mnms.TableBenchmark, folder: pathlib.Path) -> np.ndarray:
    """Returns the regrets of a method's searches of one seed by their log, [1, T, N]."""
    shape = (1, len(benchmark.task_names), _NUM_TRIALS.value)
    actions = np.zeros((*shape, benchmark.space.num_decisions), np.int32)
    rewards = np.full(shape, np.nan)
    for record in TrialLog(folder / "trials.jsonl").records:
        where = 0, benchmark.task_names.index(record.task), record.trial
        actions[where] = benchmark.space.encode(record.decisions)
        rewards[where] = np.nan if record.reward is None else record.reward
    tasks = range(len(benchmark.task_names))
    return mnms.regret(benchmark, tasks, mnms.Played(jnp.asarray(actions), jnp.asarray(rewards)))


def main() -> None:
    """Compares on each table, then writes all regrets."""
    workdir = pathlib.Path(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:

        def make(name: str) -> mnms.Method:
            if name not in PEERS:
                return mnms.make_methods([name])[0]
            worker = stack.enter_context(contextlib.closing(Worker(name, workdir / f"{name}.log")))
            return make_peer(name, worker, _NUM_TRIALS.value)

        methods = [make(name) for name in _METHODS.value]
        versions = find_versions(_METHODS.value)
        logging.info("versions: %s", versions)
        regrets = {table: play(table, methods, workdir / table) for table in _TABLES.value}
    if _JSON.value:
        rows = summarise(_METHODS.value, regrets)
        path = pathlib.Path(_JSON.value)
        path.write_text(json.dumps({"versions": versions, "regrets": rows}, indent=2) + "\n")


if __name__ == "__main__":
    mnms.run_main(main)
