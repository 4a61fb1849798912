"""The straight line of a run: rounds of ask, train and tell, with everything kept on disk."""

import functools
import queue
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnms_jax.devices import from_first
from mnms_jax.executor import Executor, own_share, train_shared
from mnms_jax.journal import Journal, identity, rung_accuracies
from mnms_jax.learner import Metrics
from mnms_jax.search import Proposal, Search, SearchState, pending_trials
from mnms_jax.space import SearchSpace
from mnms_jax.store import TrialRecord, Workdir
from mnms_jax.tracking import Progress, Tracker
from mnms_jax.training.fit import Request
from mnms_jax.training.judge import TrialResult
from mnms_jax.types import UserError


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
    in_order: bool = True  # rounds are told by their numbers; else whichever is whole first

    @property
    def num_trials(self) -> int:
        """Trials on all tasks."""
        return self.budget.num_trials * len(self.task_names)


class _Round(NamedTuple):
    """A round whose training has begun."""

    number: int
    requests: Sequence[Request]  # fewer than proposed where the budget cuts the round short
    waiting: list[tuple[str, Request]]  # those not logged yet, by identity of the design
    fresh: Mapping[str, Request]  # those trained, by identity: new, and in no round before
    outcomes: Generator[tuple[int, TrialResult]]  # of these

    def records(self, journal: Journal) -> list[TrialRecord]:
        """Returns the trials that are logged, in order."""
        return [record for record in map(journal.find, self.requests) if record is not None]


class _Watch(NamedTuple):
    """Knows what a search waits for, and shows its progress."""

    setup: RoundSetup
    journal: Journal
    tracker: Tracker
    label: str
    arrivals: queue.SimpleQueue[int]  # a round's number for each child that is there to be taken
    num_before: int  # trials that were there at the start
    start: float  # time.monotonic()

    @property
    def num_rounds(self) -> int:
        return -(-self.setup.num_trials // self.journal.trials_per_round)

    def show_trained(self, round_index: int, done: int, total: int) -> None:
        """Shows how many of the children that a round trains are done."""
        where = f"{self.label} round {round_index + 1}/{self.num_rounds}"
        self.tracker.note(f"{where}: {done} of {total} children trained")

    def show(self, num_rounds: int, last: _Round, metrics: Metrics) -> None:
        """Shows where the search stands after so many rounds, with the learner's metrics."""
        records, names = self.journal.log.records, self.setup.task_names
        stats = self.setup.trainer.stats
        seconds = max(time.monotonic() - self.start, 1e-9)
        speed = (len(records) - self.num_before) / seconds
        total = self.setup.num_trials
        means, bests = (
            {
                name: [r.reward for r in rows if r.task == name and r.reward is not None]
                for name in names
            }
            for rows in (last.records(self.journal), records)
        )
        self.tracker.show(
            Progress(
                label=self.label,
                round=num_rounds,
                num_rounds=self.num_rounds,
                trials=len(records),
                trials_per_second=speed,
                idle_share=stats.idle_share,
                num_programs=stats.programs,
                mean_reward={name: float(np.mean(found)) for name, found in means.items() if found},
                best_reward={name: max(found) for name, found in bests.items() if found},
                scalars={name: float(value) for name, value in metrics.items()},
                seconds_left=(total - len(records)) / speed if speed else float("nan"),
            )
        )


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

    With A rounds in flight, as many are asked for and not told at any time: one more for each that
    is told. So the learner is A - 1 rounds behind, which off-policy learning allows, and workers
    wait neither for a round's last child nor for the learner. Which design a trial has depends on
    nothing but the order in which rounds are told:

    - In order of their numbers, the trials are the same in every run, whoever trained them at
      whatever speed.
    - Else the learner takes the round that is whole first, as that of Wong & Gesmundo (2017) takes
      whatever comes first from its actors. Trials are logged as they finish, and so the log has the
      order too: a search that goes on tells rounds as they became whole there.

    In a run of several processes all call this, with logs that hold the same trials, and tell
    rounds in order. Each trains its share of a round's children and is told the others' results, so
    that states and logs stay equal everywhere.

    Args:
      setup: the search, its tasks and its budget.
      state: the state at the start, used when the workdir holds none.
      workdir: where trials and states are kept.
      tracker: shows the progress.
      label: what the progress calls this search.

    Returns:
      The state after the last whole round.
    """
    ahead = setup.rounds_in_flight - 1
    trials_per_round = jax.eval_shape(setup.search.ask, state).task_ids.size
    room = ahead * trials_per_round // len(setup.task_names)
    asked: dict[int, Proposal] = {}  # rounds that aren't told yet, by ascending numbers
    for number in range(ahead):
        asked[number] = _ask(setup, state, number, asked, room)
    journal = Journal(workdir.log, trials_per_round, in_order=setup.in_order)
    state, asked = _restore(setup, workdir, journal, state, asked)
    num_before, arrivals = len(journal.log.records), queue.SimpleQueue[int]()
    watch = _Watch(setup, journal, tracker, label, arrivals, num_before, time.monotonic())
    in_flight: list[_Round] = []
    try:
        while True:
            step = int(state.step)
            asked[step + ahead] = _ask(setup, state, step + ahead, asked, room)
            _begin_rounds(setup, asked, journal, in_flight, watch)
            if not in_flight:
                break
            if not ahead and (step + 1) * trials_per_round < setup.num_trials:
                _prefetch(
                    setup, _ask(setup, state, step + 1, {}, room), step + 1, journal, in_flight
                )
            told = _next_told(in_flight, journal, watch, step)
            if told is None:  # the budget has cut the last round short
                watch.show(step + 1, in_flight[0], {})
                break
            in_flight.remove(told)
            told.outcomes.close()
            rewards = [np.nan if r.reward is None else r.reward for r in told.records(journal)]
            state, metrics = setup.search.tell(
                state, asked.pop(told.number), jnp.asarray(rewards, jnp.float32)
            )
            workdir.checkpoints.save(step + 1, _kept(state, asked))
            watch.show(step + 1, told, metrics)
    finally:  # so that an error here ends the training too
        for unfinished in in_flight:
            unfinished.outcomes.close()
    return state


def _ask(
    setup: RoundSetup, state: SearchState, number: int, asked: Mapping[int, Proposal], room: int
) -> Proposal:
    """Returns a round's proposal, with that round's key, beside those that aren't told yet.

    Of these there are at most so many trials of a task as there is room for.
    """
    state = state._replace(step=jnp.int32(number))
    return setup.search.ask(state, pending_trials(state, asked.values(), room))


def _kept(state: SearchState, asked: Mapping[int, Proposal]) -> Any:
    """Returns what a checkpoint holds: the state, and the rounds asked for from earlier ones."""
    return (state, list(asked.values())) if asked else state


def _restore(
    setup: RoundSetup,
    workdir: Workdir,
    journal: Journal,
    state: SearchState,
    asked: dict[int, Proposal],
) -> tuple[SearchState, dict[int, Proposal]]:
    """Returns the newest checkpoint's state and the rounds asked for by then; else the given."""
    ahead = setup.rounds_in_flight - 1
    restored = workdir.checkpoints.restore(_kept(state, asked))
    if restored is None:
        return state, asked
    kept, proposals = restored if ahead else (restored, [])
    step = int(kept.step)
    if len(journal.told) < step:
        logging.warning("the checkpoint is ahead of the log: starting from the log alone")
        workdir.checkpoints.clear()  # or they would come back when the log is as long again
        return state, asked
    numbers = sorted({*range(step + ahead)} - {*journal.told[:step]})
    return kept, dict(zip(numbers, proposals, strict=True))


def _is_over(setup: RoundSetup, journal: Journal, round_index: int) -> bool:
    """Returns whether the time is up before a round.

    A round that the log holds takes no time. All processes go by the first one's clock.
    """
    left = setup.num_trials - round_index * journal.trials_per_round
    if journal.size(round_index) >= min(left, journal.trials_per_round):
        return False
    return from_first(lambda: b"over" * (time.monotonic() > setup.budget.deadline)) != b""


def _prefetch(
    setup: RoundSetup,
    proposal: Proposal,
    round_index: int,
    journal: Journal,
    in_flight: Iterable[_Round],
) -> None:
    """Has the programs that the next round probably needs compiled while this one's train.

    They are those of the children that the round would have if the controller learned nothing from
    this one: its random numbers are its own. Of several rounds in flight the next has begun.
    """
    fresh = _fresh(_requests(setup, proposal, round_index), journal, in_flight)
    setup.trainer.prefetch(own_share(list(fresh.values())))


def _requests(setup: RoundSetup, proposal: Proposal, round_index: int) -> list[Request]:
    """Returns a round's children, as far as the budget goes."""
    requests = make_requests(setup.space, setup.task_names, proposal, round_index)
    return [request for request in requests if request.trial < setup.budget.num_trials]


def _fresh(
    requests: Iterable[Request], journal: Journal, in_flight: Iterable[_Round]
) -> dict[str, Request]:
    """Returns by design what is to be trained: no result is known, and no round has it trained."""
    fresh: dict[str, Request] = {}
    for request in requests:
        own = identity(request.task_name, request.design)
        if own not in journal.known and not any(own in other.fresh for other in in_flight):
            fresh.setdefault(own, request)
    return fresh


def _begin_rounds(
    setup: RoundSetup,
    asked: Mapping[int, Proposal],
    journal: Journal,
    in_flight: list[_Round],
    watch: _Watch,
) -> None:
    """Has the rounds trained that were asked for, as far as the budget goes."""
    begun = {other.number for other in in_flight}
    for number, proposal in asked.items():
        is_past = number * journal.trials_per_round >= setup.num_trials
        if number not in begun and not is_past and not _is_over(setup, journal, number):
            in_flight.append(_begin_round(setup, proposal, number, journal, in_flight, watch))


def _begin_round(
    setup: RoundSetup,
    proposal: Proposal,
    round_index: int,
    journal: Journal,
    in_flight: Iterable[_Round],
    watch: _Watch,
) -> _Round:
    """Has a round's children trained, but those that the log holds and those of known designs.

    Args:
      setup: the search.
      proposal: of the round.
      round_index: of the round.
      journal: holds all trials so far, and when resumed maybe some of the round.
      in_flight: the rounds before it that aren't told, whose designs will be known.
      watch: is told of what arrives.

    Raises:
      UserError: the log lacks a trial before others of the round, or has another design.
    """
    requests = _requests(setup, proposal, round_index)
    earlier = {*journal.told[: max(round_index - setup.rounds_in_flight + 1, 0)]}
    records = [record for record in journal.log.records if record.round in earlier]
    needed = {
        name: rung_accuracies(records, name, round_index, setup.early_stopping)
        for name in setup.task_names
    }
    requests = [request._replace(rung_accuracies=needed[request.task_name]) for request in requests]
    is_logged = [journal.find(request) is not None for request in requests]
    if setup.in_order and is_logged != sorted(is_logged, reverse=True):
        raise UserError("the log lacks a trial before others of its round; it was edited")
    waiting = [
        (identity(request.task_name, request.design), request)
        for request, logged in zip(requests, is_logged, strict=True)
        if not logged
    ]
    fresh = _fresh((request for _, request in waiting), journal, in_flight)
    arrived = functools.partial(watch.arrivals.put, round_index)
    count = functools.partial(watch.show_trained, round_index)
    outcomes = train_shared(setup.trainer, list(fresh.values()), arrived, count)
    return _Round(round_index, requests, waiting, fresh, outcomes)


def _next_told(
    in_flight: Sequence[_Round], journal: Journal, watch: _Watch, step: int
) -> _Round | None:
    """Waits until the next round can be told, and returns it; None if no other ever can."""
    while True:
        _log_known(in_flight, journal)
        for begun in in_flight:
            is_whole = len(begun.requests) == journal.trials_per_round
            if is_whole and journal.told[step : step + 1] == [begun.number]:
                return begun
        if not any(begun.waiting for begun in in_flight):
            return None
        number = in_flight[0].number if journal.in_order else watch.arrivals.get()
        source = next(begun for begun in in_flight if begun.number == number)
        watch.show_trained(
            number, sum(own in journal.known for own in source.fresh), len(source.fresh)
        )
        index, result = next(source.outcomes)
        own = list(source.fresh)[index]
        journal.known[own] = (source.fresh[own].trial, result)


def _log_known(in_flight: Sequence[_Round], journal: Journal) -> None:
    """Logs what is known of rounds in flight; in order, the first one's up to what isn't known.

    So a trial that repeats another one's design always stands behind it.
    """
    for begun in in_flight[:1] if journal.in_order else in_flight:
        left: list[tuple[str, Request]] = []
        for own, request in begun.waiting:
            if own in journal.known and not (journal.in_order and left):
                journal.add(request, begun.number)
            else:
                left.append((own, request))
        begun.waiting[:] = left
