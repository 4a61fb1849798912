import itertools
import json
import math
import shutil

import jax
import pytest
from searching import (
    NAMES,
    TASKS,
    DiedError,
    DyingTrainer,
    Recorder,
    assert_equal,
    dying_family,
    lines,
    setup_of,
)
from toy import make_trainer

from mnms_jax.run import Budget, make_requests, run_rounds
from mnms_jax.store import open_workdir


@pytest.fixture(scope="module")
def family():
    return dying_family()


@pytest.fixture(scope="module")
def trainer(family):
    return make_trainer(TASKS, family)


class EagerTrainer(DyingTrainer):
    """Trains at once what it is given; notes which trials."""

    def __init__(self, trainer):
        super().__init__(trainer, 99)
        self.given = []

    def train(self, requests, arrived=None):
        self.given.append([(r.task_name, r.trial) for r in requests])
        results = list(super().train(requests))
        return (result for result in reversed(results))


class TwoInFlight:
    """A search with two rounds in flight, compiled once."""

    def __init__(self, family, trainer):
        self.setup, self.start = setup_of(family, trainer, rounds_in_flight=2)

    def run(self, path, tracker=None, **changes):
        """Returns the last state and the records."""
        setup = self.setup._replace(**changes)
        with open_workdir(path, {}) as workdir:
            state = run_rounds(setup, self.start, workdir, tracker or Recorder(), "ppo")
            return state, workdir.log.records


@pytest.fixture(scope="module")
def in_flight(tmp_path_factory, family, trainer):
    search, path = TwoInFlight(family, trainer), tmp_path_factory.mktemp("in_flight")
    return search, path, *search.run(path)


def test_rounds_in_flight_are_given_out_before_the_one_before_is_told(
    tmp_path, family, trainer, in_flight
):
    search, path, _, records = in_flight
    assert [(r.task, r.trial) for r in records] == [(n, t) for t in range(8) for n in NAMES]
    # The first two rounds are the first policy's, whatever the first one's rewards.
    for i, start in ((0, 0), (1, 6)):
        proposal = search.setup.search.ask(search.start._replace(step=search.start.step + i))
        designs = [dict(r.design) for r in make_requests(family.space, NAMES, proposal, i)]
        assert designs == [r.decisions for r in records[start : start + 6]]

    class Noting(Recorder):
        def show(self, progress):
            given.append(len(eager.given))

    given, eager = [], EagerTrainer(trainer)
    search.run(tmp_path, Noting(), trainer=eager)
    assert given == [2, 3, 3]
    trained = [trial for call in eager.given for trial in call]
    assert sorted(trained) == sorted((r.task, r.trial) for r in records if r.bucket != "log")
    assert lines(tmp_path) == lines(path)


@pytest.mark.parametrize("lifetime", [2, 8])
def test_a_search_with_rounds_in_flight_dies_and_ends_with_the_same_trials(
    tmp_path, trainer, in_flight, lifetime
):
    search, path, last, _ = in_flight
    with pytest.raises(DiedError):
        search.run(tmp_path, trainer=DyingTrainer(trainer, lifetime))
    search.run(tmp_path, budget=Budget(6))
    search.run(tmp_path)
    assert lines(tmp_path) == lines(path)
    shutil.rmtree(tmp_path / "checkpoints")
    state, _ = search.run(tmp_path, trainer=DyingTrainer(trainer, 0))  # from the log alone
    assert_equal(state.params, last.params)


class NewestFirst(DyingTrainer):
    """Trains at once what it is given; of each two rounds, the second one's children come first."""

    def __init__(self, trainer, lifetime=99):
        super().__init__(trainer, lifetime)
        self._held = []

    def train(self, requests, arrived):
        results = list(self._trainer.train(requests))
        self._held.append([arrived] * len(results))
        if len(self._held) == 2:
            for tell in itertools.chain(*reversed(self._held)):
                tell()
            self._held.clear()
        return self._give(results)

    def _give(self, results):
        for result in results:
            if self._left == 0:
                raise DiedError
            self._left -= 1
            self.trained += 1
            yield result


class Prompt(NewestFirst):
    """Trains at once what it is given, and its children are there in this order."""

    def train(self, requests, arrived):
        results = list(self._trainer.train(requests))
        for _ in results:
            arrived()
        return self._give(results)


FIRST_DONE = {"in_order": False, "budget": Budget(11)}  # four rounds, of which the last is cut


def told_rounds(records):
    """Returns the rounds in the order in which the log has their last trials."""
    return list(dict.fromkeys(record.round for record in reversed(records)))[::-1]


@pytest.fixture(scope="module")
def newest_first(tmp_path_factory, trainer, in_flight):
    path = tmp_path_factory.mktemp("newest_first")
    return path, *in_flight[0].run(path, trainer=NewestFirst(trainer), **FIRST_DONE)


def test_the_learner_is_told_of_the_round_that_is_done_first(family, in_flight, newest_first):
    search, (_, state, records) = in_flight[0].setup.search, newest_first
    assert told_rounds(records) == [1, 0, 3, 2] and int(state.step) == 3
    assert len(records) == len({(r.task, r.trial) for r in records}) == 22
    # The third round is proposed by a learner that has been told of the second one alone.
    start = in_flight[0].start
    second = search.ask(start._replace(step=start.step + 1))
    rewards = {(r.task, r.trial): r.reward for r in records}
    made = make_requests(family.space, NAMES, second, 1)
    told = [rewards[request.task_name, request.trial] for request in made]
    told = jax.numpy.array([math.nan if reward is None else reward for reward in told])
    learned, _ = search.tell(start, second, told)
    third = search.ask(learned._replace(step=start.step + 2))
    designs = {(r.task, r.trial): r.decisions for r in records}
    for request in make_requests(family.space, NAMES, third, 2):
        assert designs[request.task_name, request.trial] == dict(request.design)


def test_a_repeat_stands_behind_the_trial_whose_design_it_has(newest_first):
    known = {}
    for record in newest_first[2]:
        first = known.setdefault((record.task, json.dumps(record.decisions)), record)
        assert (record.bucket == "log") == (record is not first)
        assert record.reward == first.reward
    assert len(known) < 22


@pytest.mark.parametrize("lifetime", [1, 5, 9])
def test_a_search_told_of_what_is_done_first_dies_and_goes_on(
    tmp_path, trainer, in_flight, newest_first, lifetime
):
    search, path = in_flight[0], tmp_path / "w"
    with pytest.raises(DiedError):
        search.run(path, trainer=NewestFirst(trainer, lifetime), **FIRST_DONE)
    before = lines(path)
    # All that came is kept, of whichever round.
    assert sum(row["bucket"] != "log" for row in before) == lifetime
    survivor = Prompt(trainer)
    _, records = search.run(path, trainer=survivor, **FIRST_DONE)
    assert lines(path)[: len(before)] == before
    assert len(records) == len({(r.task, r.trial) for r in records}) == 22
    assert lifetime + survivor.trained == sum(r.bucket != "log" for r in records)
    # A larger budget; and the log alone gives the same state.
    last, records = search.run(path, trainer=Prompt(trainer), in_order=False, budget=Budget(12))
    assert len(records) == 24 and int(last.step) == 4
    shutil.rmtree(path / "checkpoints")
    dead = Prompt(trainer, 0)
    again, _ = search.run(path, trainer=dead, in_order=False, budget=Budget(12))
    assert dead.trained == 0
    assert_equal(again.params, last.params)
