"""Leave one task out: how fast a new task is searched, given trials of all the others.

Every method searches every task, and is given the logged trials of random and cold search on all
tasks but that one. All searches of a seed go on in lockstep, so that their children are trained
together.
"""

import dataclasses
import itertools
import pathlib
import sys
from collections.abc import Generator, Mapping, Sequence
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import rich.console

import mnms_jax
from mnms_jax.bench import make_bench, make_trainer
from mnms_jax.charts import require_matplotlib
from mnms_jax.comparison import (
    Comparison,
    Difference,
    Mean,
    Result,
    TimeToThreshold,
    Trials,
    check_each_once,
    compare,
    write_csv,
)
from mnms_jax.config import Config
from mnms_jax.figures import print_comparison, write_page
from mnms_jax.lockstep import (
    SOURCE_METHODS,
    Evaluate,
    LeaveOneOutSetup,
    Objective,
    search_seed,
    task_key,
)
from mnms_jax.methods import Method
from mnms_jax.sources import similarities
from mnms_jax.space import nearest
from mnms_jax.store import TrialLog, claim_folder, read_config
from mnms_jax.tabular import TableBenchmark, draw_reward
from mnms_jax.tasks.traits import task_traits
from mnms_jax.training.fit import Request
from mnms_jax.training.judge import TrialResult
from mnms_jax.types import UserError

_TABLES = {
    "leave_one_out.csv": Result,
    "means.csv": Mean,
    "differences.csv": Difference,
    "trials_to_threshold.csv": TimeToThreshold,
}


# Another run in the same folder may have other values of these.
_RESUMABLE = ("methods", "seeds", "versions", "contenders", "threshold_trials")


def run_leave_one_out(
    setup: LeaveOneOutSetup,
    workdir: pathlib.Path,
    *,
    contenders: Sequence[str],
    threshold_trials: int = 200,
    identity: Mapping[str, Any] | None = None,
) -> Comparison:
    """Runs all searches and writes what they say into the workdir.

    WORKDIR/seed_SEED/METHOD/trials.jsonl has every trial as soon as it is done. A comparison that
    was killed at any moment goes on from there, and ends with the trials of one that was not.
    Seeds and methods may be added later.

    Args:
      setup: what is compared.
      workdir: where results are kept.
      contenders: the methods to set against every other one.
      threshold_trials: the threshold is what this number of random trials is worth.
      identity: plain JSON data that says what is searched, beyond the setup: another comparison's
        folder is refused.

    Raises:
      UserError: a mistake in the setup, a workdir of another comparison, or no matplotlib.
    """
    _check(setup, contenders)
    require_matplotlib()
    config = _config(setup, identity or {}) | {
        "contenders": contenders,
        "threshold_trials": threshold_trials,
    }
    with claim_folder(workdir, config, _RESUMABLE):
        logs = [search_seed(setup, seed, workdir / f"seed_{seed}") for seed in setup.seeds]
        comparison = _compare(config, logs)
        write_comparison(workdir, comparison)
    console = rich.console.Console(width=None if sys.stdout.isatty() else 120)
    print_comparison(comparison, console)
    console.print(
        f"written to {workdir.resolve()}: {', '.join(_TABLES)}, leave_one_out.html", soft_wrap=True
    )
    return comparison


def run_text_leave_one_out(
    config: Config,
    methods: Sequence[Method],
    *,
    seeds: Sequence[int],
    contenders: Sequence[str],
    trials_per_round: int = 2,
    threshold_trials: int = 200,
) -> Comparison:
    """Runs a leave-one-out comparison on the tasks and the search space of a configuration.

    How its controller learns, its size of a round and its seed don't matter here.

    Raises:
      UserError: several processes, or see `make_bench` and `run_leave_one_out`.
    """
    if jax.process_count() > 1:
        raise UserError("a comparison runs in one process; leave --distributed out")
    if config.executor != "local" or config.rounds_in_flight > 1 or config.early_stopping:
        raise UserError(
            "a comparison has no --executor, no --rounds_in_flight and no --early_stopping; leave "
            "them out"
        )
    bench = make_bench(config)

    def objective(seed: int) -> Evaluate:
        return make_trainer(
            dataclasses.replace(config, seed=seed), bench.family, bench.inputs
        ).train

    traits = [task_traits(task) for task in bench.tasks]
    setup = LeaveOneOutSetup(
        bench.family.space,
        tuple(task.name for task in bench.tasks),
        tuple(methods),
        objective,
        tuple(seeds),
        config.num_trials,
        trials_per_round,
        similarities(traits, traits),
    )
    return run_leave_one_out(
        setup,
        pathlib.Path(config.workdir).expanduser(),
        contenders=contenders,
        threshold_trials=threshold_trials,
        identity={
            "data": bench.inputs.digests,
            "early_stopping": config.early_stopping,
            "reward": config.reward,
        },
    )


def table_objective(benchmark: TableBenchmark) -> Objective:
    """Returns an objective that looks rewards up, one of a design's repeats a trial.

    Which one depends on the seed, the task's name and the trial's number, as with children.
    """
    draw = jax.jit(draw_reward)

    def objective(seed: int) -> Evaluate:
        def evaluate(requests: Sequence[Request]) -> Generator[tuple[int, TrialResult]]:
            for index, request in enumerate(requests):
                key = jax.random.fold_in(task_key(seed, request.task_name), request.trial)
                chance = jax.random.uniform(key)
                task_id = benchmark.task_names.index(request.task_name)
                actions = jnp.asarray(benchmark.space.encode(request.design))
                reward = float(draw(benchmark.table, chance, jnp.int32(task_id), actions))
                failed = None if np.isfinite(reward) else "failed"
                result = TrialResult(None if failed else reward, failed, 0.0, 0, "table")
                yield index, result

        return evaluate

    return objective


def read_comparison(workdir: pathlib.Path) -> tuple[Comparison, str]:
    """Returns what the logs of a comparison say as far as it has come, and how far that is.

    Of a comparison that is still going on, the seeds that are done are compared; before the first
    one is, the trials that all searches have which have begun.

    Returns:
      The comparison; and what there is of it, nothing where it is over.

    Raises:
      UserError: a log is damaged, all trials of a task failed, or are still to come.
    """
    config = read_config(workdir)
    logs = [
        {m: TrialLog(workdir / f"seed_{seed}" / m / "trials.jsonl") for m in config["methods"]}
        for seed in config["seeds"]
    ]
    done = np.array([[_trials_done(log, config) for log in seed.values()] for seed in logs])
    whole = done.min(axis=1) == config["num_trials"]
    seeds = whole if whole.any() else done.max(axis=1) > 0
    methods = done[seeds].min(axis=0, initial=config["num_trials"]) > 0
    if not (seeds.any() and methods[config["methods"].index("random")]):
        raise UserError(
            f"--workdir {workdir}: this comparison has just begun; there is something to show once "
            "each task has a trial"
        )
    num_trials = int(done[seeds][:, methods].min())
    names = [*itertools.compress(config["methods"], methods)]
    shown = {
        **config,
        "seeds": [*itertools.compress(config["seeds"], seeds)],
        "methods": names,
        "num_trials": num_trials,
        "contenders": [name for name in config.get("contenders", ()) if name in names],
    }
    note = (
        f"This comparison isn't over. What is shown: {seeds.sum()} of {len(seeds)} seeds, "
        f"{len(names)} of {len(methods)} methods ({', '.join(names)}), {num_trials} of "
        f"{config['num_trials']} trials."
    )
    comparison = _compare(shown, [*itertools.compress(logs, seeds)])
    return comparison, "" if whole.all() else note


def _trials_done(log: TrialLog, config: Mapping[str, Any]) -> int:
    """Returns of how many trials, the first ones, a log has the results on all tasks."""
    done = {(record.task, record.trial) for record in log.records}
    for trial in range(config["num_trials"]):
        if any((task, trial) not in done for task in config["tasks"]):
            return trial
    return config["num_trials"]


def _compare(config: Mapping[str, Any], logs: Sequence[Mapping[str, TrialLog]]) -> Comparison:
    """Compares by what config.json says, from each seed's logs by method."""
    tasks, methods = tuple(config["tasks"]), tuple(config["methods"])
    rewards = np.full((len(tasks), len(methods), len(logs), config["num_trials"]), np.nan)
    for s, by_method in enumerate(logs):
        for m, method in enumerate(methods):
            for record in by_method[method].records:
                if record.reward is not None and record.trial < config["num_trials"]:
                    rewards[tasks.index(record.task), m, s, record.trial] = record.reward
    reward = config.get("reward", "reward")  # which tables and older ones don't say
    trials = Trials(tasks, methods, tuple(config["seeds"]), rewards, reward)
    threshold_trials = config.get("threshold_trials", 200)
    return compare(trials, config.get("contenders", ()), threshold_trials=threshold_trials)


def write_comparison(workdir: pathlib.Path, comparison: Comparison) -> None:
    """Writes all figures as CSV, the curves as PNG, and both as a page."""
    rows = (comparison.results, comparison.means, comparison.differences, comparison.times)
    for (name, kind), own in zip(_TABLES.items(), rows, strict=True):
        write_csv(workdir / name, kind, own)
    write_page(workdir, comparison)


def _config(setup: LeaveOneOutSetup, identity: Mapping[str, Any]) -> dict[str, Any]:
    return {
        **identity,
        "tasks": setup.task_names,
        "methods": [method.name for method in setup.methods],
        "seeds": setup.seeds,
        "num_trials": setup.num_trials,
        "trials_per_round": setup.trials_per_round,
        "search_space": setup.space.fingerprint,
        "versions": {module.__name__: module.__version__ for module in (mnms_jax, jax, flax)},
    }


def _check(setup: LeaveOneOutSetup, contenders: Sequence[str]) -> None:
    """Checks what would otherwise fail late.

    Raises:
      UserError: what is wrong.
    """
    names = [method.name for method in setup.methods]
    for what, values in (("methods", names), ("tasks", setup.task_names), ("seeds", setup.seeds)):
        check_each_once(what, values)
    for what, value in (("trials", setup.num_trials), ("trials a round", setup.trials_per_round)):
        if value < 1:
            raise UserError(f"{value} {what}: must be at least 1")
    for name in contenders:
        if name not in names:
            raise UserError(f"method {name!r} isn't among those to run{nearest(name, names)}")
    _check_sources(setup, names)


def _check_sources(setup: LeaveOneOutSetup, names: Sequence[str]) -> None:
    transfers = any(method.uses_sources for method in setup.methods)
    if transfers and len(setup.task_names) < 2:
        raise UserError("leaving one task out takes at least two tasks")
    for name in SOURCE_METHODS if transfers else ("random",):
        if name not in names:
            raise UserError(f"add the method {name}: its trials are needed by the others")
    for method in setup.methods:
        if method.uses_similarity and setup.similarity is None:
            raise UserError(f"method {method.name!r} needs to know how alike the tasks are")
