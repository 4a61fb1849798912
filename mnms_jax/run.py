"""The straight line of a run: rounds of ask, train and tell, with everything kept on disk."""

import collections
import contextlib
import json
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnms_jax.devices import exchange, from_first
from mnms_jax.executor import Executor
from mnms_jax.learner import Metrics
from mnms_jax.search import Proposal, Search, SearchState
from mnms_jax.space import SearchSpace
from mnms_jax.store import TrialLog, TrialRecord, Workdir
from mnms_jax.tracking import Progress, Tracker
from mnms_jax.training.fit import Request
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
    trainer: Executor
    budget: Budget
    early_stopping: float = 0.0  # share of a task's children that each rung stops
    rounds_in_flight: int = 1  # being trained at once


class _Round(NamedTuple):
    """A round whose training has begun."""

    number: int
    proposal: Proposal
    requests: Sequence[Request]
    logged: Sequence[TrialRecord]  # of the first requests
    fresh: Mapping[str, Request]  # what is trained, by design: new, and in no round before
    outcomes: Generator[tuple[int, TrialResult]]  # of these


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

    With A rounds in flight, a round is asked for as soon as the one A before it has been told, and
    the learner is always A - 1 rounds behind, which off-policy learning allows: workers needn't
    wait for a round's last child, nor for the learner. The learner of Wong & Gesmundo (2017) takes
    whatever comes first from its actors. Here rounds are told whole and in order, since only so the
    trials are the same in every run, whoever trained them at whatever speed, and a log can be gone
    on from.

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
    ahead = setup.rounds_in_flight - 1
    asked = [_ask(setup, state, offset) for offset in range(ahead)]
    restored = workdir.checkpoints.restore(_kept(state, asked))
    if restored is not None:
        kept, kept_asked = restored if ahead else (restored, [])
        if len(workdir.log.records) >= kept.step * trials_per_round:
            state, asked = kept, list(kept_asked)
        else:
            logging.warning("the checkpoint is ahead of the log: starting from the log alone")
    start, num_before = time.monotonic(), len(workdir.log.records)
    num_rounds = -(-setup.budget.num_trials * len(setup.task_names) // trials_per_round)
    known = _known_results(workdir.log)
    begun: collections.deque[_Round] = collections.deque()
    try:
        for round_index in range(int(state.step), num_rounds):
            asked.append(_ask(setup, state, ahead))
            for index in range(round_index + len(begun), min(round_index + ahead + 1, num_rounds)):
                if _is_over(setup, workdir.log, (index + 1) * trials_per_round):
                    break
                proposal = asked[index - round_index]
                begun.append(_begin_round(setup, proposal, index, workdir.log, known, begun))
            if not begun:
                break
            if round_index + ahead + 1 < num_rounds:
                upcoming = _ask(setup, state, ahead + 1)
                _prefetch(setup, upcoming, round_index + ahead + 1, known, begun)
            records = _finish_round(begun[0], workdir.log, known)
            begun.popleft()
            proposal, *asked = asked
            metrics: Metrics = {}
            if len(records) == len(proposal.task_ids):  # else the budget cuts this round short
                rewards = [np.nan if r.reward is None else r.reward for r in records]
                told = jnp.asarray(rewards, jnp.float32)
                state, metrics = setup.search.tell(state, proposal, told)
                workdir.checkpoints.save(round_index + 1, _kept(state, asked))
            rounds = (round_index + 1, num_rounds)
            num_new = len(workdir.log.records) - num_before
            seconds = time.monotonic() - start
            tracker.show(
                _progress(setup, workdir.log.records, rounds, label, seconds, num_new, metrics)
            )
    finally:  # so that an error here ends the training too
        for unfinished in begun:
            unfinished.outcomes.close()
    return state


def _ask(setup: RoundSetup, state: SearchState, offset: int) -> Proposal:
    """Returns the proposal of the round so many after the state's own, with that round's key."""
    return setup.search.ask(state._replace(step=state.step + offset))


def _kept(state: SearchState, asked: Sequence[Proposal]) -> Any:
    """Returns what a checkpoint holds: the state, and the rounds asked for from earlier ones."""
    return (state, list(asked)) if asked else state


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


def _prefetch(
    setup: RoundSetup,
    proposal: Proposal,
    round_index: int,
    known: _Known,
    begun: Iterable[_Round],
) -> None:
    """Has the programs compiled that the round after those in flight probably needs.

    They are those of the children that it would have if the controller learned nothing until then:
    its random numbers are its own.
    """
    fresh = _fresh(_requests(setup, proposal, round_index), known, begun)
    setup.trainer.prefetch(_own_share(list(fresh.values())))


def _requests(setup: RoundSetup, proposal: Proposal, round_index: int) -> list[Request]:
    """Returns a round's children, as far as the budget goes."""
    requests = make_requests(setup.space, setup.task_names, proposal, round_index)
    return [request for request in requests if request.trial < setup.budget.num_trials]


def _fresh(
    requests: Sequence[Request], known: _Known, begun: Iterable[_Round]
) -> dict[str, Request]:
    """Returns by design what is to be trained: no result is known, and no round has it trained."""
    fresh: dict[str, Request] = {}
    for request in requests:
        own = identity(request.task_name, request.design)
        if own not in known and not any(own in other.fresh for other in begun):
            fresh.setdefault(own, request)
    return fresh


def _begin_round(
    setup: RoundSetup,
    proposal: Proposal,
    round_index: int,
    log: TrialLog,
    known: _Known,
    begun: Iterable[_Round],
) -> _Round:
    """Has a round's children trained, but those that the log holds and those of known designs.

    Args:
      setup: the search.
      proposal: of the round.
      round_index: of the round.
      log: holds the trials of all rounds but those in flight, and when resumed maybe more.
      known: results of earlier trials.
      begun: the rounds in flight, whose designs will be known.
    """
    requests = _requests(setup, proposal, round_index)
    told = round_index - setup.rounds_in_flight + 1  # rounds whose trials may count
    needed = {
        name: rung_accuracies(log.records, name, told, setup.early_stopping)
        for name in setup.task_names
    }
    requests = [request._replace(rung_accuracies=needed[request.task_name]) for request in requests]
    logged = _logged(log, requests)
    fresh = _fresh(requests[len(logged) :], known, begun)
    outcomes = _train_shared(setup.trainer, list(fresh.values()))
    return _Round(round_index, proposal, requests, logged, fresh, outcomes)


def _logged(log: TrialLog, requests: Sequence[Request]) -> list[TrialRecord]:
    """Returns what the log holds of a round: its first trials.

    Raises:
      UserError: the log lacks one before them, or has another design.
    """
    logged = {(record.task, record.trial): record for record in log.records}
    found = [logged.get((request.task_name, request.trial)) for request in requests]
    records = [record for record in found if record is not None]
    for record, request in zip(found, requests, strict=True):
        if record is not None:
            check_logged(record, request)
    if None in found[: len(records)]:
        raise UserError("the log lacks a trial before others of its round; it was edited")
    return records


def _finish_round(begun: _Round, log: TrialLog, known: _Known) -> list[TrialRecord]:
    """Returns a round's trials in order; what is new is added to the log and the known results."""
    records = list(begun.logged)
    with contextlib.closing(begun.outcomes):
        for record in _new_records(begun, known):
            log.append(record)
            records.append(record)
    return records


def _new_records(begun: _Round, known: _Known) -> Generator[TrialRecord]:
    """Yields the trials that weren't logged, each as soon as all before it are there."""
    identities = list(begun.fresh)
    for request in begun.requests[len(begun.logged) :]:
        own = identity(request.task_name, request.design)
        while own not in known:
            index, result = next(begun.outcomes)
            known[identities[index]] = (begun.fresh[identities[index]].trial, result)
        trial, result = known[own]
        if trial != request.trial:  # a repeat costs nothing
            result = result._replace(seconds=0.0, samples=0, bucket="log")
        design = dict(request.design)
        yield TrialRecord(
            request.task_name, request.trial, design, **result._asdict(), round=begun.number
        )


def _train_shared(
    trainer: Executor, requests: Sequence[Request]
) -> Generator[tuple[int, TrialResult]]:
    """Returns what `Executor.train` does, in every process; each has trained its share."""
    if jax.process_count() == 1:
        return trainer.train(requests)
    return _train_share(trainer, requests)


def _own_share(children: Sequence[Any]) -> Sequence[Any]:
    """Returns what of a round's children this process trains."""
    return children[jax.process_index() :: jax.process_count()]


def _train_share(
    trainer: Executor, requests: Sequence[Request]
) -> Generator[tuple[int, TrialResult]]:
    numbers = _own_share(range(len(requests)))
    own = [(numbers[i], result) for i, result in trainer.train(_own_share(requests))]
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
