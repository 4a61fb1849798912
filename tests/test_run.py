import functools
import itertools
import json
import math
import shutil
import time

import jax
import pytest
from toy import make_family, make_task, make_trainer

from mnms_jax.controller import make_policy
from mnms_jax.journal import rung_accuracies
from mnms_jax.learner import make_ppo_learner
from mnms_jax.run import Budget, RoundSetup, make_requests, run_rounds
from mnms_jax.search import make_search
from mnms_jax.store import TrialRecord, open_workdir
from mnms_jax.types import UserError

TASKS = (make_task("one", 200, seed=1), make_task("two", 150, seed=2))
NAMES = ("one", "two")


class Recorder:
    """A tracker that keeps what it is shown."""

    def __init__(self):
        self.shown = []

    def show(self, progress):
        self.shown.append(progress)


class DiedError(Exception):
    pass


class DyingTrainer:
    """Trains like another trainer until it has given so many results, then dies."""

    def __init__(self, trainer, lifetime):
        self._trainer, self._left = trainer, lifetime
        self.prefetch = trainer.prefetch
        self.trained = 0

    @property
    def stats(self):
        return self._trainer.stats

    def train(self, requests, arrived=None):
        for result in self._trainer.train(requests):
            if self._left == 0:
                raise DiedError
            self._left -= 1
            self.trained += 1
            yield result


@pytest.fixture(scope="module")
def family():
    return make_family(
        lowercase=(True, False),
        optimizer=("adam", "sgd"),
        deep_learning_rate=(0.01, 1e30),
        samples=(128, 256, 384),
    )


@pytest.fixture(scope="module")
def trainer(family):
    return make_trainer(TASKS, family)


@functools.cache
def ppo_search(space, learning_rate):
    """Returns a search that all tests share, for it is compiled once then."""
    policy = make_policy(space, 2)
    learner = make_ppo_learner(policy, learning_rate=learning_rate)
    return make_search(space, policy, learner, num_tasks=2, trials_per_task=3)


def setup_of(
    family,
    trainer,
    num_trials=8,
    early_stopping=0.0,
    learning_rate=0.02,
    rounds_in_flight=1,
    **budget,
):
    search = ppo_search(family.space, learning_rate)
    budget = Budget(num_trials, **budget)
    setup = RoundSetup(
        family.space, NAMES, search, trainer, budget, early_stopping, rounds_in_flight
    )
    return setup, search.init(jax.random.key(0))


def search_in(path, family, trainer, **kwargs):
    setup, state = setup_of(family, trainer, **kwargs)
    recorder = Recorder()
    with open_workdir(path, {}) as workdir:
        state = run_rounds(setup, state, workdir, recorder, "ppo")
        return state, workdir.log.records, recorder.shown


def lines(path):
    """Returns the log without the seconds, which differ between runs."""
    rows = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def whole(tmp_path_factory, family, trainer):
    path = tmp_path_factory.mktemp("whole")
    return path, *search_in(path, family, trainer)


def test_log_holds_every_trial_once_and_in_order(whole):
    _, state, records, _ = whole
    assert [(r.task, r.trial) for r in records] == [(n, t) for t in range(8) for n in NAMES]
    assert [r.round for r in records] == [t // 3 for t in range(8) for _ in NAMES]
    assert int(state.step) == 2  # the third round is cut short by the budget


def test_repeats_are_answered_from_the_log(whole):
    first = {}
    repeats = 0
    for record in whole[2]:
        key = (record.task, json.dumps(record.decisions))
        if key in first:
            repeats += 1
            assert (record.bucket, record.samples, record.seconds) == ("log", 0, 0.0)
            assert (record.reward, record.failed) == first[key]
        else:
            first[key] = (record.reward, record.failed)
            assert record.bucket != "log" and record.seconds > 0
    assert repeats >= 1


def test_failures_are_logged_with_a_reason_and_the_search_goes_on(whole):
    records = whole[2]
    failed = [r for r in records if r.decisions["deep_learning_rate"] == 1e30]
    assert failed and any(r.reward is not None for r in records)
    assert all((r.reward is None) == (r.failed is not None) for r in records)
    assert any(r.failed and "diverged" in r.failed for r in failed)


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

    class Noting:
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


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a == b).all()


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


def test_progress(whole):
    shown = whole[3]
    assert [p.round for p in shown] == [1, 2, 3]
    assert shown[-1].trials == 16 and shown[-1].num_rounds == 3
    assert shown[-1].seconds_left == 0
    best = max(r.reward for r in whole[2] if r.task == "one" and r.reward is not None)
    assert shown[-1].best_reward["one"] == best
    assert 0 < shown[-1].idle_share < 1
    assert "policy_entropy" in shown[0].scalars


@pytest.mark.parametrize("lifetime", [0, 1, 4, 7])
def test_a_search_that_dies_ends_with_the_same_trials(tmp_path, family, trainer, whole, lifetime):
    dying = DyingTrainer(trainer, lifetime)
    with pytest.raises(DiedError):
        search_in(tmp_path, family, dying)
    survivor = DyingTrainer(trainer, 99)
    search_in(tmp_path, family, survivor)
    assert lines(tmp_path) == lines(whole[0])
    trained = len([r for r in whole[2] if r.bucket != "log"])
    # At most what was done but had to wait for an earlier trial of its round is done again.
    assert trained - lifetime <= survivor.trained <= trained


def test_a_search_without_its_checkpoints_is_rebuilt_from_the_log(tmp_path, family, trainer, whole):
    (tmp_path / "trials.jsonl").write_text((whole[0] / "trials.jsonl").read_text())
    dead = DyingTrainer(trainer, 0)  # nothing may be trained
    state, *_ = search_in(tmp_path, family, dead)
    assert_equal(state.params, whole[1].params)


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_a_log_behind_its_checkpoint_is_made_whole(tmp_path, family, trainer, whole, kept):
    search_in(tmp_path, family, trainer)
    text = (tmp_path / "trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_text("".join(text[:kept]))
    search_in(tmp_path, family, trainer)
    assert lines(tmp_path) == lines(whole[0])


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_newest_checkpoint_changes_nothing(tmp_path, family, trainer, whole):
    search_in(tmp_path, family, trainer, num_trials=6)
    for path in (tmp_path / "checkpoints" / "2").rglob("*"):
        if path.is_file():
            path.write_bytes(b"garbage")
    search_in(tmp_path, family, trainer)
    assert lines(tmp_path) == lines(whole[0])


def test_a_clock_that_jumps_changes_nothing(tmp_path, family, trainer, whole, monkeypatch):
    days = itertools.cycle((0, 400, -400))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 86400 * next(days))
    search_in(tmp_path, family, trainer, num_trials=4, deadline=time.monotonic() + 600)
    search_in(tmp_path, family, trainer)
    assert lines(tmp_path) == lines(whole[0])


def test_a_larger_budget_goes_on_as_if_it_had_been_so_at_once(tmp_path, family, trainer, whole):
    search_in(tmp_path, family, trainer, num_trials=4)
    search_in(tmp_path, family, trainer, num_trials=8)
    assert lines(tmp_path) == lines(whole[0])


def test_a_deadline_in_the_past_begins_no_round(tmp_path, family, trainer):
    _, records, _ = search_in(tmp_path, family, trainer, deadline=0.0)
    assert records == []


def test_a_log_of_another_search_is_refused(tmp_path, family, trainer, whole):
    text = (whole[0] / "trials.jsonl").read_text().splitlines()
    row = json.loads(text[0])
    row["decisions"]["lowercase"] = not row["decisions"]["lowercase"]
    (tmp_path / "trials.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="trial 0 of one in the log has another design"):
        search_in(tmp_path, family, trainer)


def test_a_log_with_a_hole_is_refused(tmp_path, family, trainer, whole):
    text = (whole[0] / "trials.jsonl").read_text().splitlines()
    (tmp_path / "trials.jsonl").write_text("\n".join([text[0], *text[2:4]]) + "\n")
    with pytest.raises(UserError, match="lacks a trial"):
        search_in(tmp_path, family, trainer)


def test_requests_number_trials_by_round(family):
    setup, state = setup_of(family, None)
    proposal = setup.search.ask(state)
    requests = make_requests(family.space, NAMES, proposal, 2)
    assert [(r.task_id, r.task_name, r.trial) for r in requests] == [
        (i, NAMES[i], t) for t, i in itertools.product((6, 7, 8), (0, 1))
    ]
    for request, actions in zip(requests, proposal.actions, strict=True):
        assert family.space.encode(request.design).tolist() == actions.tolist()


def rung_record(trial, round_index, rungs, samples=128, task="one"):
    return TrialRecord(task, trial, {}, 0.5, None, 1.0, samples, "x", round_index, rungs)


def test_rungs_stop_a_share_of_a_tasks_children():
    accuracies = [0.1 * k for k in range(1, 10)]
    records = [rung_record(k, 0, [a, 1 - a]) for k, a in enumerate(accuracies)]
    needed = rung_accuracies(records, "one", 1, 0.5)
    assert needed == pytest.approx([0.5, 0.5])
    assert rung_accuracies(records, "one", 1, 0.25) == pytest.approx([0.3, 0.3])
    assert rung_accuracies(records, "one", 1, 0.0) == []
    # Neither this round's, nor another task's, nor what was answered from the log counts.
    others = [
        rung_record(10, 1, [0.9, 0.9]),
        rung_record(11, 0, [0.9, 0.9], task="two"),
        rung_record(12, 0, [0.9, 0.9], samples=0),
    ]
    assert rung_accuracies(records + others, "one", 1, 0.5) == needed
    # Of few children none is stopped.
    assert rung_accuracies(records[:7], "one", 1, 0.5) == [-math.inf, -math.inf]
    few = [rung_record(k, 0, [a]) for k, a in enumerate(accuracies)] + records[:3]
    assert rung_accuracies(few, "one", 1, 0.5)[1] == -math.inf


def test_early_stopping_is_the_same_after_an_interruption(tmp_path):
    # Many designs, and a controller that hardly learns: repeats aren't trained, and a rung that few
    # children came to stops nobody.
    rates = (0.001, 0.003, 0.01, 0.03)
    family = make_family(deep_learning_rate=rates, wide_learning_rate=rates, samples=(256, 384))
    trainer = make_trainer(TASKS, family, rung_samples=(128, 256))
    kwargs = {"num_trials": 24, "early_stopping": 0.5, "learning_rate": 1e-6}
    _, records, _ = search_in(tmp_path / "whole", family, trainer, **kwargs)
    stopped = [r for r in records if r.stopped and r.samples]
    assert stopped
    for record in stopped:
        needed = rung_accuracies(records, record.task, record.round, 0.5)
        *passed, last = zip(record.rungs, needed, strict=False)
        assert record.reward == last[0] < last[1]
        assert all(accuracy >= least for accuracy, least in passed)
    dying = DyingTrainer(trainer, 20)
    with pytest.raises(DiedError):
        search_in(tmp_path / "killed", family, dying, **kwargs)
    search_in(tmp_path / "killed", family, trainer, **kwargs)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
