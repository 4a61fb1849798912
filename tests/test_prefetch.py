import queue
import types

import jax
import jax.numpy as jnp
import pytest
from toy import SPACE

from mnms_jax import executor, run
from mnms_jax.controller import make_random_policy
from mnms_jax.journal import Journal
from mnms_jax.learner import make_null_learner
from mnms_jax.run import Budget, RoundSetup
from mnms_jax.search import make_search
from mnms_jax.store import TrialLog, open_workdir
from mnms_jax.tracking import Tracker
from mnms_jax.training.fit import TrainerStats
from mnms_jax.training.judge import TrialResult


class NotingTrainer:
    """Notes what is prefetched before each round, and what the round trains: all fail."""

    stats = TrainerStats(0, 0.0, 0.0, 0.0)

    def __init__(self):
        self.prefetched, self.rounds = [], []
        self.prefetch = self.prefetched.append

    def train(self, requests, arrived=None):
        self.rounds.append([request._replace(rung_accuracies=()) for request in requests])
        return ((i, TrialResult(None, "noted", 0.0, 0, "")) for i in range(len(requests)))


@pytest.fixture(scope="module")
def search():
    policy, learner = make_random_policy(SPACE), make_null_learner()
    return make_search(SPACE, policy, learner, num_tasks=2, trials_per_task=2)


def setup_of(search):
    return RoundSetup(SPACE, ("one", "two"), search, NotingTrainer(), Budget(7))


def test_what_random_search_trains_is_prefetched_before(tmp_path, search):
    setup = setup_of(search)
    state = search.init(jax.random.key(0))
    with open_workdir(tmp_path, {}) as workdir, Tracker(tmp_path) as tracker:
        run.run_rounds(setup, state, workdir, tracker, "random")
    rounds = setup.trainer.rounds
    assert len(rounds) == 4 and 0 < sum(map(len, rounds)) < 14  # the rest are repeats
    assert setup.trainer.prefetched == rounds[1:]


def test_each_of_two_processes_prefetches_what_it_trains(tmp_path, search, monkeypatch):
    proposal = search.ask(search.init(jax.random.key(0)))
    actions = jnp.array([[0, 0, 0], [1, 0, 0], [0, 0, 0], [2, 0, 0]])
    repeating = proposal._replace(task_ids=jnp.array([0, 1, 0, 1]), actions=actions)
    journal = Journal(TrialLog(tmp_path / "trials.jsonl"), 4)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(executor, "exchange", lambda message: [message])
    for process, number in ((0, 2), (1, 1)):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        setup = setup_of(search)
        run._prefetch(setup, repeating, 0, journal, ())
        counts = []
        watch = types.SimpleNamespace(
            arrivals=queue.SimpleQueue(),
            show_trained=lambda *known, counts=counts: counts.append(known),
        )
        begun = run._begin_round(setup, repeating, 0, journal, (), watch)
        assert len(list(begun.outcomes)) == number
        assert counts == [(0, done + 1, number) for done in range(number)]
        assert setup.trainer.prefetched == setup.trainer.rounds
