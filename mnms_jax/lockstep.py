"""Many searches of one task each that go on in lockstep, so that their children train together."""

import contextlib
import dataclasses
import pathlib
import time
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnms_jax.journal import check_logged, identity
from mnms_jax.methods import Method, Sources
from mnms_jax.replay import ReplayBank
from mnms_jax.run import make_requests
from mnms_jax.search import Proposal, Search, SearchState
from mnms_jax.sources import bank_of_records
from mnms_jax.space import SearchSpace
from mnms_jax.store import TrialLog, TrialRecord
from mnms_jax.training.fit import Request
from mnms_jax.training.judge import TrialResult
from mnms_jax.types import PRNGKey

# Gives children's results as they are done, with the index of each; `Trainer.train` is one.
Evaluate: TypeAlias = Callable[[Sequence[Request]], Generator[tuple[int, TrialResult]]]
Objective: TypeAlias = Callable[[int], Evaluate]  # of a seed

SOURCE_METHODS = ("random", "cold")  # whose trials the others are given


class LeaveOneOutSetup(NamedTuple):
    """A leave-one-out comparison.

    Attributes:
      space: the search space.
      task_names: T names; each task is held out in turn.
      methods: M methods.
      objective: evaluates children of a seed.
      seeds: of the searches and of the children, all results being paired by them.
      num_trials: of every search.
      trials_per_round: of every search, trained between two updates of its controller.
      similarity: [T, T], how alike each task (row) is to the others, see `task_similarity`.
    """

    space: SearchSpace
    task_names: tuple[str, ...]
    methods: tuple[Method, ...]
    objective: Objective
    seeds: tuple[int, ...]
    num_trials: int = 100
    trials_per_round: int = 2
    similarity: np.ndarray | None = None


def search_seed(setup: LeaveOneOutSetup, seed: int, folder: pathlib.Path) -> dict[str, TrialLog]:
    """Runs all searches of a seed: those without sources first, as they are the others' sources."""
    logs = {method.name: _open_log(folder / method.name) for method in setup.methods}
    evaluate = setup.objective(seed)
    for uses_sources in (False, True):
        methods = [method for method in setup.methods if method.uses_sources == uses_sources]
        sources = _source_records(logs) if uses_sources else []
        bank = bank_of_records(setup.space, setup.task_names, sources)
        runs = [
            run
            for method in methods
            for run in _make_runs(setup, seed, method, logs[method.name], bank)
        ]
        names = ", ".join(method.name for method in methods)
        num_rounds = -(-setup.num_trials // setup.trials_per_round) if runs else 0
        for index in range(num_rounds):
            start = time.monotonic()
            if trained := _run_round(setup, runs, evaluate, index):
                form = "seed %d, %s: round %d of %d, %d children in %.1f s"
                seconds = time.monotonic() - start
                logging.info(form, seed, names, index + 1, num_rounds, trained, seconds)
    return logs


def leave_out(bank: ReplayBank, task_id: int) -> ReplayBank:
    """Returns a bank without a task's row; the others keep their order."""
    return jax.tree.map(lambda x: jnp.delete(x, task_id, axis=0), bank)


@dataclasses.dataclass
class _Run:
    """One method's search on one task."""

    task_id: int
    task_name: str
    search: Search
    state: SearchState
    log: TrialLog  # of the method, all tasks
    records: dict[int, TrialRecord]  # of this task, by trial
    first: dict[str, int] = dataclasses.field(default_factory=dict)  # trial that had a design first

    def add(self, trial: int, design: Mapping[str, Any], result: TrialResult, index: int) -> None:
        record = TrialRecord(self.task_name, trial, dict(design), **result._asdict(), round=index)
        self.log.append(record)
        self.records[trial] = record


def _open_log(folder: pathlib.Path) -> TrialLog:
    folder.mkdir(parents=True, exist_ok=True)
    return TrialLog(folder / "trials.jsonl")


def _source_records(logs: Mapping[str, TrialLog]) -> list[TrialRecord]:
    """Returns the sources' trials in an order that does not depend on who was done first."""
    return [
        record
        for name in SOURCE_METHODS
        if name in logs
        for record in sorted(logs[name].records, key=lambda record: record.trial)
    ]


def _make_runs(
    setup: LeaveOneOutSetup, seed: int, method: Method, log: TrialLog, bank: ReplayBank
) -> Iterator[_Run]:
    """Yields a method's searches that are not over yet, one a task, each at its start."""
    for task_id, name in enumerate(setup.task_names):
        own = {record.trial: record for record in log.records if record.task == name}
        if len(own) == setup.num_trials:
            continue
        # Common random numbers: the methods' keys are equal, which makes differences smaller.
        make_key, init_key = jax.random.split(task_key(seed, name))
        similarity = None
        if setup.similarity is not None:
            similarity = jnp.asarray(np.delete(setup.similarity[task_id], task_id))
        sources = Sources(leave_out(bank, task_id), similarity)
        search = method.make(setup.space, sources, setup.trials_per_round, make_key)
        yield _Run(task_id, name, search, search.init(init_key), log, own)


def task_key(seed: int, task_name: str) -> PRNGKey:
    """Returns the key of a task's searches and trials."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(task_name.encode()))


def _run_round(
    setup: LeaveOneOutSetup, runs: Sequence[_Run], evaluate: Evaluate, index: int
) -> int:
    """Asks all searches, trains their new children at once, and tells the searches.

    Returns:
      The number of children trained.
    """
    proposals = [run.search.ask(run.state) for run in runs]
    asked = [
        list(_requests(setup, run, proposal, index))
        for run, proposal in zip(runs, proposals, strict=True)
    ]
    # Methods that propose the same design at the same trial of a task share its child.
    waiting: dict[tuple[str, int], list[tuple[_Run, Request]]] = {}
    repeats = []
    for run, requests in zip(runs, asked, strict=True):
        for request in requests:
            design = identity(request.task_name, request.design)
            if request.trial in run.records:
                check_logged(run.records[request.trial], request)
            elif run.first[design] == request.trial:
                waiting.setdefault((design, request.trial), []).append((run, request))
            else:
                repeats.append((run, request))
    children = list(waiting.values())
    with contextlib.closing(evaluate([group[0][1] for group in children])) as outcomes:
        for number, result in outcomes:
            for run, request in children[number]:
                run.add(request.trial, request.design, result, index)
    for run, request in repeats:  # these cost nothing
        known = run.records[run.first[identity(request.task_name, request.design)]]
        values = [getattr(known, name) for name in TrialResult._fields]
        result = TrialResult(*values)._replace(seconds=0.0, samples=0, bucket="log")
        run.add(request.trial, request.design, result, index)
    for run, proposal, requests in zip(runs, proposals, asked, strict=True):
        if len(requests) == setup.trials_per_round:  # else the budget is spent
            rewards = [run.records[request.trial].reward for request in requests]
            told = jnp.asarray([np.nan if r is None else r for r in rewards], jnp.float32)
            run.state, _ = run.search.tell(run.state, proposal, told)
    return len(children)


def _requests(
    setup: LeaveOneOutSetup, run: _Run, proposal: Proposal, index: int
) -> Iterator[Request]:
    """Yields a search's proposal as children, and notes which trial had a design first."""
    for request in make_requests(setup.space, (run.task_name,), proposal, index):
        if request.trial < setup.num_trials:
            run.first.setdefault(identity(request.task_name, request.design), request.trial)
            yield request._replace(task_id=run.task_id)
