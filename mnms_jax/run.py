"""The straight line of a run: rounds of ask, train and tell, with everything kept on disk."""

import contextlib
import json
import time
from collections.abc import Generator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnms_jax.devices import exchange, from_first
from mnms_jax.learner import Metrics
from mnms_jax.search import Proposal, Search, SearchState
from mnms_jax.space import SearchSpace
from mnms_jax.store import TrialLog, TrialRecord, Workdir
from mnms_jax.tracking import Progress, Tracker
from mnms_jax.training.fit import Request, Trainer
from mnms_jax.training.judge import TrialResult
from mnms_jax.types import Choice, UserError

_LEAST_AT_RUNG = 8  # children that came to a rung before it stops any

_Known: TypeAlias = dict[str, tuple[int, TrialResult]]  # by design, the trial that first had it


class Budget(NamedTuple):
    """When a search ends."""

    num_trials: int  # on each task
    deadline: float = float("inf")  # time.monotonic() after which no round is begun


class RoundSetup(NamedTuple):
    """What stays the same over the rounds of a search."""

    space: SearchSpace
    task_names: tuple[str, ...]
    search: Search
    trainer: Trainer
    budget: Budget
    early_stopping: float = 0.0  # share of a task's children that each rung stops


def make_requests(
    space: SearchSpace, task_names: Sequence[str], proposal: Proposal, round_index: int
) -> list[Request]:
    """Returns a round's proposal as children to train, in the proposal's order.

    Args:
      space: decodes the actions.
      task_names: by task id.
      proposal: of a search whose rounds all have as many trials on each task.
      round_index: from 0; gives the trials their numbers.
    """
    actions = np.asarray(proposal.actions)
    next_trial = [round_index * (len(actions) // len(task_names))] * len(task_names)
    requests = []
    for task_id, row in zip(np.asarray(proposal.task_ids).tolist(), actions, strict=True):
        requests.append(
            Request(task_id, task_names[task_id], next_trial[task_id], space.decode(row))
        )
        next_trial[task_id] += 1
    return requests


def run_rounds(
    setup: RoundSetup, state: SearchState, workdir: Workdir, tracker: Tracker, label: str
) -> SearchState:
    """Searches until the budget is spent; goes on from what the workdir holds.

    The log is the truth: trials that it holds are not trained again, and states are checkpoints of
    what follows from them. A search that was killed at any moment therefore ends with the trials of
    one that was not; children that were still being trained are trained again, with equal results.

    In a run of several processes all call this, with logs that hold the same trials. Each trains
    its share of a round's children and is told the others' results, so that states and logs stay
    equal everywhere.

    Args:
      setup: the search, its tasks and its budget.
      state: the state at the start, used when the workdir holds none.
      workdir: where trials and states are kept.
      tracker: shows the progress.
      label: what the progress calls this search.

    Returns:
      The state after the last whole round.
    """
    trials_per_round = setup.search.ask(state).task_ids.size
    restored = workdir.checkpoints.restore(state)
    if restored is not None and len(workdir.log.records) >= restored.step * trials_per_round:
        state = restored
    elif restored is not None:
        logging.warning("the log has fewer trials than the checkpoint: starting from the log alone")
    start, num_before = time.monotonic(), len(workdir.log.records)
    num_rounds = -(-setup.budget.num_trials * len(setup.task_names) // trials_per_round)
    known = _known_results(workdir.log)
    for round_index in range(int(state.step), num_rounds):
        if _is_over(setup, workdir.log, (round_index + 1) * trials_per_round):
            break
        proposal = setup.search.ask(state)
        if round_index + 1 < num_rounds:
            _prefetch(setup, state, round_index + 1, known)
        records = _train_round(setup, proposal, round_index, workdir.log, known)
        metrics: Metrics = {}
        if len(records) == len(proposal.task_ids):  # else the budget cuts this round short
            rewards = [np.nan if r.reward is None else r.reward for r in records]
            state, metrics = setup.search.tell(state, proposal, jnp.asarray(rewards, jnp.float32))
            workdir.checkpoints.save(round_index + 1, state)
        rounds = (round_index + 1, num_rounds)
        num_new = len(workdir.log.records) - num_before
        seconds = time.monotonic() - start
        tracker.show(
            _progress(setup, workdir.log.records, rounds, label, seconds, num_new, metrics)
        )
    return state


def rung_accuracies(
    records: Sequence[TrialRecord],
    task_name: str,
    round_index: int,
    share: float,
) -> list[float]:
    """Returns what a task's children of a round must reach at each rung to go on.

    At a rung, the share of a task's children that were the worst there is stopped. Only rounds
    before count, so that it doesn't matter in which order a round's children are trained.

    Args:
      records: the log.
      task_name: the task.
      round_index: the round.
      share: of the children to stop, in [0, 1); 0 stops none.
    """
    if not share:
        return []
    trained = [r for r in records if r.task == task_name and r.round < round_index and r.samples]
    num_rungs = max((len(r.rungs) for r in trained), default=0)
    accuracies = [[r.rungs[k] for r in trained if len(r.rungs) > k] for k in range(num_rungs)]
    return [
        float(np.quantile(a, share)) if len(a) >= _LEAST_AT_RUNG else -np.inf for a in accuracies
    ]


def _is_over(setup: RoundSetup, log: TrialLog, num_trials: int) -> bool:
    """Returns whether the time is up before a round, at whose end so many trials are done.

    A round that the log holds takes no time. All processes go by the first one's clock.
    """
    most = min(num_trials, setup.budget.num_trials * len(setup.task_names))
    if len(log.records) >= most:
        return False
    return from_first(lambda: b"over" * (time.monotonic() > setup.budget.deadline)) != b""


def _prefetch(setup: RoundSetup, state: SearchState, round_index: int, known: _Known) -> None:
    """Has the programs that the next round probably needs compiled while this one's train.

    They are those of the children that the round would have if the controller learned nothing from
    this one: its random numbers are the next round's own.
    """
    proposal = setup.search.ask(state._replace(step=state.step + 1))
    requests = make_requests(setup.space, setup.task_names, proposal, round_index)
    setup.trainer.prefetch(
        [
            request
            for request in requests[jax.process_index() :: jax.process_count()]
            if request.trial < setup.budget.num_trials
            and identity(request.task_name, request.design) not in known
        ]
    )


def _train_round(
    setup: RoundSetup, proposal: Proposal, round_index: int, log: TrialLog, known: _Known
) -> list[TrialRecord]:
    """Returns the round's trials in order, from the log where it holds them, else trained.

    What is trained is added to the log and to the known results.
    """
    requests = [
        request
        for request in make_requests(setup.space, setup.task_names, proposal, round_index)
        if request.trial < setup.budget.num_trials
    ]
    needed = {
        name: rung_accuracies(log.records, name, round_index, setup.early_stopping)
        for name in setup.task_names
    }
    requests = [request._replace(rung_accuracies=needed[request.task_name]) for request in requests]
    logged = {(record.task, record.trial): record for record in log.records}
    records: list[TrialRecord | None] = []
    for request in requests:
        record = logged.get((request.task_name, request.trial))
        if record is not None:
            check_logged(record, request)
        records.append(record)
    num_logged = sum(record is not None for record in records)
    if None in records[:num_logged]:
        raise UserError("the log lacks a trial before others of its round; it was edited")
    new = _train_new(setup.trainer, requests[num_logged:], known, round_index)
    with contextlib.closing(new):  # so that an error here ends the training too
        for record in new:
            log.append(record)
            records[num_logged] = record
            num_logged += 1
    return [record for record in records if record is not None]


def _train_new(
    trainer: Trainer,
    requests: Sequence[Request],
    known: _Known,
    round_index: int,
) -> Generator[TrialRecord]:
    """Yields trials in the order of the requests, each as soon as all before it are there.

    Args:
      trainer: trains the designs that are new.
      requests: what to train.
      known: this round's are added.
      round_index: of this round.
    """
    fresh: dict[str, Request] = {}
    for request in requests:
        if identity(request.task_name, request.design) not in known:
            fresh.setdefault(identity(request.task_name, request.design), request)
    identities = list(fresh)
    with contextlib.closing(_train_shared(trainer, list(fresh.values()))) as outcomes:
        for request in requests:
            own = identity(request.task_name, request.design)
            while own not in known:
                index, result = next(outcomes)
                known[identities[index]] = (fresh[identities[index]].trial, result)
            trial, result = known[own]
            if trial != request.trial:  # a repeat costs nothing
                result = result._replace(seconds=0.0, samples=0, bucket="log")
            design = dict(request.design)
            yield TrialRecord(
                request.task_name, request.trial, design, **result._asdict(), round=round_index
            )


def _train_shared(
    trainer: Trainer, requests: Sequence[Request]
) -> Generator[tuple[int, TrialResult]]:
    """Yields what `Trainer.train` does, in every process; each has trained its share."""
    first, step = jax.process_index(), jax.process_count()
    if step == 1:
        yield from trainer.train(requests)
        return
    own = [(first + step * i, result) for i, result in trainer.train(requests[first::step])]
    for message in exchange(json.dumps(own).encode()):
        for index, result in json.loads(message):
            yield index, TrialResult(*result)


def _known_results(log: TrialLog) -> _Known:
    known: _Known = {}
    for record in log.records:
        result = TrialResult(*(getattr(record, name) for name in TrialResult._fields))
        known.setdefault(identity(record.task, record.decisions), (record.trial, result))
    return known


def identity(task_name: str, design: Mapping[str, Choice]) -> str:
    """Returns what is the same for two trials of the same design on the same task."""
    return json.dumps([task_name, dict(design)])


def check_logged(record: TrialRecord, request: Request) -> None:
    """Checks that a trial in the log is the one that the search makes again.

    Raises:
      UserError: it has another design.
    """
    if record.decisions != dict(request.design):
        raise UserError(
            f"trial {record.trial} of {record.task} in the log has another design than this "
            "search gives it; the log was edited, or written by another version"
        )


def _progress(
    setup: RoundSetup,
    records: Sequence[TrialRecord],
    rounds: tuple[int, int],
    label: str,
    seconds: float,
    num_new: int,
    metrics: Metrics,
) -> Progress:
    stats = setup.trainer.stats
    speed = num_new / max(seconds, 1e-9)
    total = setup.budget.num_trials * len(setup.task_names)
    rewards = {
        name: [r.reward for r in records if r.task == name and r.reward is not None]
        for name in setup.task_names
    }
    last = [r for r in records if r.round == rounds[0] - 1 and r.reward is not None]
    return Progress(
        label=label,
        round=rounds[0],
        num_rounds=rounds[1],
        trials=len(records),
        trials_per_second=speed,
        idle_share=stats.idle_share,
        num_programs=stats.programs,
        mean_reward={
            name: float(np.mean([r.reward for r in last if r.task == name]))
            for name in {r.task for r in last}
        },
        best_reward={name: max(values) for name, values in rewards.items() if values},
        scalars={name: float(value) for name, value in metrics.items()},
        seconds_left=(total - len(records)) / speed if speed else float("nan"),
    )
