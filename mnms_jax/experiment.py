"""A whole experiment: from a configuration to the best children."""

import contextlib
import dataclasses
import functools
import json
import pathlib
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax
import jax
import rich.console
from absl import logging

import mnms_jax
from mnms_jax.advantage import ADVANTAGES
from mnms_jax.bench import Bench, make_bench, with_absolute_paths
from mnms_jax.conclusion import conclude
from mnms_jax.config import DESCRIPTIVE, LOCAL, RESUMABLE, Config, TransferConfig
from mnms_jax.controller import make_policy, make_random_policy
from mnms_jax.devices import exchange, from_first
from mnms_jax.executor import Executor, connect_executor, open_executor
from mnms_jax.learner import make_learner, make_null_learner
from mnms_jax.optuna_bridge import PREFIX, load_studies
from mnms_jax.ranker import make_ranker
from mnms_jax.run import Budget, RoundSetup, run_rounds
from mnms_jax.saved_controller import SavedController
from mnms_jax.search import Search, SearchState, make_search
from mnms_jax.sinks import require_sinks
from mnms_jax.sources import digest, find_controller, load_sources, similarities
from mnms_jax.store import Workdir, open_workdir, writable
from mnms_jax.tasks.registry import check_tasks
from mnms_jax.tasks.sentences import ENCODERS, check_encoder
from mnms_jax.tasks.traits import task_traits
from mnms_jax.tracking import Tracker
from mnms_jax.transfer import make_transfer_search, task_similarity
from mnms_jax.types import Policy, UserError

# How unlike a task may be to what the controller saw of it: some rows may have been added.
_SAME_DATA = 0.01


def _load_sources(config: Config, bench: Bench) -> SavedController | None:
    if not isinstance(config, TransferConfig):
        return None
    path, space, renamed = config.from_, bench.family.space, config.new_names
    if path.startswith(PREFIX):
        sources = load_studies(path.removeprefix(PREFIX), space, renamed, config.reward)
    else:
        sources = load_sources(pathlib.Path(path).expanduser(), space, renamed)
    if sources.reward != config.reward:
        raise UserError(
            f"--reward={config.reward}: what {path} learned was rewarded with {sources.reward!r}, "
            "which can't be compared; take that, or start from another controller"
        )
    if sources.skip_connection not in (None, config.skip_connection):
        own = "with" if sources.skip_connection else "without"
        raise UserError(
            f"--skip_connection={config.skip_connection}: the policy in {path} was trained {own} "
            "one; take the same, or the same --preset"
        )
    known = dict(zip(sources.task_names, sources.traits, strict=True))
    for task in bench.tasks:
        if task.name not in known:
            continue
        if task_similarity(task_traits(task), known[task.name]) < -_SAME_DATA:
            raise UserError(
                f"{path} was trained on another task called {task.name!r}: the data differ; "
                "call yours otherwise"
            )
        logging.info("%s goes on: the controller was trained on it", task.name)
    return sources


def make_search_from(
    config: Config, bench: Bench, sources: SavedController | None = None
) -> tuple[Policy, Search]:
    """Returns the policy and the search that a configuration names.

    Args:
      config: the configuration.
      bench: tasks and space.
      sources: what a search by a TransferConfig starts from.
    """
    learns = functools.partial(
        make_learner,
        config.learner,
        advantage=ADVANTAGES[config.advantage],
        imitate_best=config.imitate_best,
    )
    decides = functools.partial(make_policy, skip_connection=config.skip_connection)
    if sources is not None and isinstance(config, TransferConfig):
        known = sources.task_names
        return make_transfer_search(
            jax.random.key(config.seed),
            bench.family.space,
            sources.trials,
            params=sources.params,
            targets=[known.index(t.name) if t.name in known else None for t in bench.tasks],
            trials_per_task=config.trials_per_task,
            similarity=similarities([task_traits(task) for task in bench.tasks], sources.traits),
            start=config.warm_start,
            make_policy=decides,
            make_learner=functools.partial(learns, warm=True),
        )
    space, num_tasks = bench.family.space, len(bench.tasks)
    if config.learner == "random":
        policy, learner = make_random_policy(space), make_null_learner()
    else:
        policy = decides(space, num_tasks)
        learner = learns(policy)
    ranked = config.reward_model and config.learner != "random"
    search = make_search(
        space,
        policy,
        learner,
        num_tasks=num_tasks,
        trials_per_task=config.trials_per_task,
        ranker=make_ranker(space) if ranked else None,
    )
    return policy, search


def run_experiment(config: Config) -> dict:
    """Searches, tests the best children once, and writes all that was found into the workdir.

    In a run of several processes all call this with the same configuration, and the first one
    alone writes, tests and prints.

    Returns:
      The final table as plain JSON data, as summary.json in the workdir has it.

    Raises:
      UserError: a mistake in the configuration, missing data, or a workdir of another search.
    """
    path = pathlib.Path(config.workdir).expanduser()
    _check(config, path)
    if config.trials_per_task >= config.num_trials > 1 and config.learner != "random":
        logging.warning(
            "all trials are one round, of which the controller learns too late: --round_size=%d",
            config.round_size,
        )
    with contextlib.ExitStack() as stack:
        begin_report = stack.enter_context(_live_report(config, path))
        stack.enter_context(connect_executor(config))
        # With Ray, this process only trains the best children again, one at a time as workers do.
        alone = dataclasses.replace(config, num_workers=1) if config.executor == "ray" else config
        bench = make_bench(alone)
        sources = _load_sources(config, bench)
        workdir = stack.enter_context(_open(path, config, bench, sources))
        compare = config.compare_random and config.learner != "random"
        limit = (config.time_limit or float("inf")) / (2 if compare else 1)
        executor = stack.enter_context(open_executor(config, bench))
        refresh = begin_report()
        policy, state = _search(config, bench, executor, workdir, limit, sources, refresh=refresh)
        records, random_records = workdir.log.records, None
        if compare:
            fewest = min(sum(r.task == task.name for r in records) for task in bench.tasks)
            rival = dataclasses.replace(config, learner="random", num_trials=max(fewest, 1))
            random_workdir = stack.enter_context(_open(path / "random", rival, bench))
            _search(rival, bench, executor, random_workdir, limit, refresh=refresh)
            random_records = random_workdir.log.records
        end = functools.partial(
            conclude, config, bench, path, policy, state, records, random_records, sources
        )
        return json.loads(from_first(lambda: json.dumps(end()).encode()))


def _check(config: Config, path: pathlib.Path) -> None:
    """Refuses what can be seen to be wrong before data are loaded, which may take long.

    Raises:
      UserError: see `run_experiment`.
    """
    check_tasks(config.tasks)
    if isinstance(config, TransferConfig):
        if not config.from_:
            raise UserError("--from: name the folder of a search or controller to start from")
        if config.learner == "random":
            raise UserError("--learner=random: random search has nothing to transfer")
        if not config.from_.startswith(PREFIX):
            find_controller(pathlib.Path(config.from_).expanduser())
    for name, file in config.embedding_files.items():
        if not pathlib.Path(file).expanduser().exists():
            raise UserError(f"--embeddings={name}={file}: there is no such file")
    require_sinks(config.track)
    if jax.process_index() == 0:  # which alone writes
        with writable("--workdir", path):
            there = next(p for p in (path, *path.absolute().parents) if p.exists())
            tempfile.TemporaryFile(dir=there).close()
    for name in {*config.embeddings} & {*ENCODERS}:  # last, as it takes the longest
        check_encoder(name)


@contextlib.contextmanager
def _live_report(
    config: Config, path: pathlib.Path
) -> Iterator[Callable[[], Callable[[], None] | None]]:
    """Gives `LiveReport.begin`, or what returns None but in the first process when asked to."""
    if not config.live_report or jax.process_index() > 0:
        yield lambda: None
        return
    from mnms_jax.live_report import LiveReport  # late, as few need it

    with LiveReport(path) as report:
        yield report.begin


@contextlib.contextmanager
def _open(
    path: pathlib.Path, config: Config, bench: Bench, sources: SavedController | None = None
) -> Iterator[Workdir]:
    """Opens a search's folder; processes but the first get a passing one, with the same log.

    Raises:
      UserError: see `open_workdir`, or the processes were started with different flags.
    """
    fields = dataclasses.asdict(with_absolute_paths(config))
    del fields["workdir"]  # a folder may be moved
    identity = {
        **fields,
        "tasks": [task.name for task in bench.tasks],  # files may be moved too
        "entries": fields["tasks"],
        "search_space": bench.family.space.fingerprint,
        "decisions": bench.family.space.to_json(),
        "data": bench.inputs.digests,
        **({} if sources is None else {"sources": [*sources.task_names, digest(sources)]}),
        "versions": {module.__name__: module.__version__ for module in (mnms_jax, jax, flax)},
    }
    _check_equal(identity)
    with contextlib.ExitStack() as stack:

        def open_folder(path: pathlib.Path) -> Workdir:
            return stack.enter_context(open_workdir(path, identity, (*RESUMABLE, *DESCRIPTIVE)))

        opened = []

        def open_first() -> bytes:
            opened.append(open_folder(path))
            return opened[0].log.content

        content = from_first(open_first)
        if not opened:
            copy = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mnms-")))
            (copy / "trials.jsonl").write_bytes(content)
            opened.append(open_folder(copy))
        yield opened[0]


def _check_equal(identity: Mapping[str, Any]) -> None:
    """Checks that all processes make the same search; cores and files may be elsewhere."""
    own = {key: value for key, value in identity.items() if key not in (*LOCAL, "entries")}
    first, *others = exchange(json.dumps(own).encode())
    for number, other in enumerate(others, 1):
        if other != first:
            ours, theirs = json.loads(first), json.loads(other)
            keys = ", ".join(key for key in ours if ours[key] != theirs.get(key))
            raise UserError(
                f"process {number} makes another search than process 0 (they differ in: {keys}); "
                "start all with the same flags, data and versions"
            )


def _search(
    config: Config,
    bench: Bench,
    executor: Executor,
    workdir: Workdir,
    limit: float,
    sources: SavedController | None = None,
    refresh: Callable[[], None] | None = None,
) -> tuple[Policy, SearchState]:
    policy, search = make_search_from(config, bench, sources)
    setup = RoundSetup(
        bench.family.space,
        tuple(task.name for task in bench.tasks),
        search,
        executor,
        Budget(config.num_trials, time.monotonic() + limit),
        config.early_stopping,
        config.rounds_in_flight,
        config.tell == "ordered",
    )
    state = search.init(jax.random.key(config.seed))
    console = rich.console.Console(stderr=True, quiet=jax.process_index() > 0)
    sinks = config.track if jax.process_index() == 0 else ()
    about = dataclasses.asdict(config)
    with Tracker(workdir.path, console, sinks=sinks, about=about, refresh=refresh) as tracker:
        return policy, run_rounds(setup, state, workdir, tracker, config.learner)
