"""Searches with toy children, which may die, for the tests of the loop."""

import functools
import json

import jax
from toy import make_family, make_task

from mnms_jax.controller import make_policy
from mnms_jax.learner import make_ppo_learner
from mnms_jax.run import Budget, RoundSetup, run_rounds
from mnms_jax.search import make_search
from mnms_jax.store import open_workdir

TASKS = (make_task("one", 200, seed=1), make_task("two", 150, seed=2))
NAMES = ("one", "two")


class Recorder:
    """A tracker that keeps what it is shown."""

    def __init__(self):
        self.shown, self.notes = [], []

    def show(self, progress):
        self.shown.append(progress)

    def note(self, line):
        self.notes.append(line)


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


def dying_family():
    """Returns children of which some diverge."""
    return make_family(
        lowercase=(True, False),
        optimizer=("adam", "sgd"),
        deep_learning_rate=(0.01, 1e30),
        samples=(128, 256, 384),
    )


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


def search_in(path, family, trainer, recorder=None, **kwargs):
    setup, state = setup_of(family, trainer, **kwargs)
    recorder = recorder or Recorder()
    with open_workdir(path, {}) as workdir:
        state = run_rounds(setup, state, workdir, recorder, "ppo")
        return state, workdir.log.records, recorder.shown


def lines(path):
    """Returns the log without the seconds, which differ between runs."""
    rows = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


def assert_equal(ours, theirs):
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a == b).all()
