"""Strategies on tables: whole searches on several new tasks, with or without source tasks."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnms_jax.controller import make_policy
from mnms_jax.learner import make_ppo_learner
from mnms_jax.methods import (
    Method,
    Sources,
    make_cold_search,
    make_methods,
    make_transfer_method,
)
from mnms_jax.replay import ReplayBank, init_replay
from mnms_jax.search import Search, make_search
from mnms_jax.simulate import Played, Strategy, play
from mnms_jax.space import SearchSpace
from mnms_jax.tabular import RewardTable
from mnms_jax.transfer import WarmStart
from mnms_jax.types import Array, PRNGKey, UserError

_ROUND = 8  # trials of a round on each source


class TableSetup(NamedTuple):
    """Which of a table's tasks are searched, and for how long."""

    space: SearchSpace
    sources: tuple[int, ...]  # the table's numbers of the source tasks
    targets: tuple[int, ...]  # G numbers of the tasks that are new
    num_trials: int = 200  # on each target
    num_source_trials: int = 200  # on each source
    trials_per_round: int = 2  # on each target


def make_strategy(name: str, setup: TableSetup) -> Strategy:
    """Returns a strategy by its name, a function of the table and a key.

    multitask: one controller for all targets, from scratch.
    published: on each target, the controller that was trained on all sources, with a random new
      embedding (Wong & Gesmundo 2017).
    pretrained: that controller in place of a fresh one, and otherwise `transfer`.
    And the methods of `make_methods`, on each target; those that need sources get the trials of the
    controller that was trained on all of them. TPE can't be compiled, and isn't among them, nor is
    transfer_similar: nobody knows how alike a table's tasks are.

    Raises:
      UserError: an unknown name, one of these, or a method that needs sources, and there are none.
    """
    if name == "multitask":
        return _multitask(setup)
    if name.startswith("tpe"):
        raise UserError(f"method {name!r} can't be compiled, and so can't be simulated")
    method = make_methods([name])[0] if name not in _PRETRAINED else None
    if method is not None and method.uses_similarity:
        raise UserError(f"method {name!r} needs to know how alike a table's tasks are")
    if method is not None and not method.uses_sources:
        nothing = init_replay(0, 1, setup.space.num_decisions)
        return lambda table, key: _one_by_one(setup, method, nothing, table, key)
    if not setup.sources:
        raise UserError(f"method {name!r} needs source tasks")
    pretraining = _make_pretraining(setup)

    def strategy(table: RewardTable, key: PRNGKey) -> Played:
        source_key, key = jax.random.split(key)
        num_rounds = -(-setup.num_source_trials // _ROUND)
        state, _ = play(pretraining, table, jnp.array(setup.sources), num_rounds, source_key)
        own = method or make_transfer_method(name, _PRETRAINED[name], params=state.params)
        return _one_by_one(setup, own, state.replay, table, key)

    return strategy


_PRETRAINED = {
    "published": WarmStart(embedding="random", imitation_steps=0, ranked=False),
    "pretrained": WarmStart(),
}


def _num_rounds(setup: TableSetup) -> int:
    return -(-setup.num_trials // setup.trials_per_round)


def _multitask(setup: TableSetup) -> Strategy:
    search = make_cold_search(setup.space, setup.trials_per_round, len(setup.targets))

    def strategy(table: RewardTable, key: PRNGKey) -> Played:
        played = play(search, table, jnp.array(setup.targets), _num_rounds(setup), key)[1]
        return jax.tree.map(lambda x: x[:, : setup.num_trials], played)

    return strategy


def _make_pretraining(setup: TableSetup) -> Search:
    policy = make_policy(setup.space, len(setup.sources))
    return make_search(
        setup.space,
        policy,
        make_ppo_learner(policy),
        num_tasks=len(setup.sources),
        trials_per_task=_ROUND,
        replay_capacity=setup.num_source_trials,
    )


def _one_by_one(
    setup: TableSetup, method: Method, sources: ReplayBank, table: RewardTable, key: PRNGKey
) -> Played:
    """Plays each target alone."""

    def play_one(task_id: Array, key: PRNGKey) -> Played:
        make_key, key = jax.random.split(key)
        search = method.make(setup.space, Sources(sources), setup.trials_per_round, make_key)
        return play(search, table, task_id[None], _num_rounds(setup), key)[1]

    keys = jax.random.split(key, len(setup.targets))
    played = jax.vmap(play_one)(jnp.array(setup.targets), keys)
    return jax.tree.map(lambda x: x[:, 0, : setup.num_trials], played)
