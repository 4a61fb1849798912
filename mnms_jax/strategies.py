"""Strategies on tables: whole searches on several new tasks, with or without source tasks."""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mnms_jax.advantage import ADVANTAGES
from mnms_jax.config import PUBLISHED
from mnms_jax.controller import make_policy
from mnms_jax.learner import Learner, make_learner
from mnms_jax.methods import (
    Method,
    Sources,
    make_cold_search,
    make_methods,
    make_transfer_method,
)
from mnms_jax.replay import ReplayBank, init_replay, shrink
from mnms_jax.search import Search, SearchState, make_search
from mnms_jax.simulate import Played, Strategy, play
from mnms_jax.space import SearchSpace
from mnms_jax.tabular import RewardTable
from mnms_jax.transfer import WarmStart
from mnms_jax.types import Array, Params, Policy, PRNGKey, UserError

_ROUND = 8  # trials of a round on each source


class TableSetup(NamedTuple):
    """Which of a table's tasks are searched, and for how long."""

    space: SearchSpace
    sources: tuple[int, ...]  # the table's numbers of the source tasks
    targets: tuple[int, ...]  # G numbers of the tasks that are new
    num_trials: int = 200  # on each target
    num_source_trials: int = 200  # on each source, rounded up to a multiple of 8
    trials_per_round: int = 2  # on each target


def make_strategy(name: str, setup: TableSetup) -> Strategy:
    """Returns a strategy by its name, a function of the table and a key.

    - multitask: one search of all targets, from scratch, in which they tell each other.
    - mnms2017, tnaml2018: on each target, the published controller, see `PUBLISHED`, that was
      trained on all sources, with a random new embedding. Of the second there are tnaml2018_trpo
      and tnaml2018_urex too. With `_cold` behind such a name, a fresh one for each target; with
      `_multitask`, a fresh one for all of them.
    - pretrained: `transfer` with a controller that was trained on all sources, not a fresh one.

    And the methods of `make_methods`, on each target; those that need sources get the trials of the
    controller that was trained on all of them. TPE and transfer_replay, which looks at how many
    trials there are, can't be compiled, and aren't among them, nor is transfer_similar: nobody
    knows how alike a table's tasks are.

    Raises:
      UserError: an unknown name, one of these, or a method that needs sources, and there are none.
    """
    base, _, scope = name.rpartition("_")
    if base in _PUBLISHED and scope in ("cold", "multitask"):
        return _from_scratch(setup, *_published(base), together=scope == "multitask")
    if name == "multitask":
        return _play_together(
            setup, make_cold_search(setup.space, setup.trials_per_round, len(setup.targets))
        )
    if name in (*_PUBLISHED, "pretrained"):
        return _pretrained(setup, name)
    if name.startswith("tpe") or name == "transfer_replay":
        raise UserError(f"method {name!r} can't be compiled, and so can't be simulated")
    (method,) = make_methods([name])
    if method.uses_similarity:
        raise UserError(f"method {name!r} needs to know how alike a table's tasks are")
    if not method.uses_sources:
        return _without_sources(setup, method)
    return _after_pretraining(setup, lambda params: method)


_PUBLISHED = (*PUBLISHED, "tnaml2018_trpo", "tnaml2018_urex")
_MakePolicy: TypeAlias = Callable[[SearchSpace, int], Policy]
_MakeLearner: TypeAlias = Callable[..., Learner]  # see `make_learner`
_PPO = functools.partial(make_learner, "ppo")


def _published(name: str) -> tuple[_MakePolicy, _MakeLearner]:
    preset, _, learner = name.partition("_")
    settings = PUBLISHED[preset]
    learns = functools.partial(
        make_learner,
        learner or settings["learner"],
        advantage=ADVANTAGES[settings["advantage"]],
        imitate_best=settings["imitate_best"],
    )
    skip = settings["skip_connection"]
    return functools.partial(make_policy, skip_connection=skip), learns


def _from_scratch(
    setup: TableSetup, make_policy: _MakePolicy, make_learner: _MakeLearner, *, together: bool
) -> Strategy:
    num_tasks = len(setup.targets) if together else 1
    policy = make_policy(setup.space, num_tasks)
    search = make_search(
        setup.space,
        policy,
        make_learner(policy=policy, num_updates=setup.trials_per_round),
        num_tasks=num_tasks,
        trials_per_task=setup.trials_per_round,
    )
    if together:
        return _play_together(setup, search)
    return _without_sources(
        setup, Method("from scratch", lambda space, sources, number, key: search)
    )


def _without_sources(setup: TableSetup, method: Method) -> Strategy:
    nothing = init_replay(0, 1, setup.space.num_decisions)
    return lambda table, key: _one_by_one(setup, method, nothing, table, key)


def _pretrained(setup: TableSetup, name: str) -> Strategy:
    if name == "pretrained":
        return _after_pretraining(
            setup, lambda params: make_transfer_method(name, WarmStart(), params=params)
        )
    make_policy, make_learner = _published(name)
    start = WarmStart(embedding="random", imitation_steps=0, ranked=False)
    parts = {"make_policy": make_policy, "make_learner": functools.partial(make_learner, warm=True)}
    return _after_pretraining(
        setup,
        lambda params: make_transfer_method(name, start, params=params, **parts),
        make_policy,
        make_learner,
    )


def _after_pretraining(
    setup: TableSetup,
    make_method: Callable[[Params], Method],
    make_policy: _MakePolicy = make_policy,
    make_learner: _MakeLearner = _PPO,
) -> Strategy:
    """Returns the strategy that trains a controller on all sources, and then plays each target.

    Args:
      setup: sources and targets.
      make_method: from the controller's parameters, what searches a target.
      make_policy: makes the controller's policy.
      make_learner: makes its learner.

    Raises:
      UserError: there are no sources.
    """
    if not setup.sources:
        raise UserError(
            f"method {make_method(None).name!r} needs source tasks, which are tasks of the table "
            "that aren't searched on; name fewer --tasks, or other --methods (random, evolution, "
            "cold and multitask need none)"
        )
    policy = make_policy(setup.space, len(setup.sources))
    num_rounds = -(-setup.num_source_trials // _ROUND)
    pretraining = make_search(
        setup.space,
        policy,
        make_learner(policy=policy),
        num_tasks=len(setup.sources),
        trials_per_task=_ROUND,
        replay_capacity=num_rounds * _ROUND,
    )

    def strategy(table: RewardTable, key: PRNGKey) -> Played:
        source_key, key = jax.random.split(key)
        state, _ = play(pretraining, table, jnp.array(setup.sources), num_rounds, source_key)
        return _one_by_one(setup, make_method(state.params), state.replay, table, key)

    return strategy


def _num_rounds(setup: TableSetup) -> int:
    return -(-setup.num_trials // setup.trials_per_round)


def _play_together(setup: TableSetup, search: Search) -> Strategy:
    """Returns the strategy that plays all targets at once."""
    return lambda table, key: _play(setup, search, table, jnp.array(setup.targets), key)


def _play(
    setup: TableSetup, search: Search, table: RewardTable, task_ids: Array, key: PRNGKey
) -> Played:
    num_rounds = _num_rounds(setup)

    def init(key: PRNGKey) -> SearchState:
        # A ranker takes as long for a slot that stays empty.
        state = search.init(key)
        return state._replace(replay=shrink(state.replay, num_rounds * setup.trials_per_round))

    played = play(search._replace(init=init), table, task_ids, num_rounds, key)[1]
    return jax.tree.map(lambda x: x[:, : setup.num_trials], played)


def _one_by_one(
    setup: TableSetup, method: Method, sources: ReplayBank, table: RewardTable, key: PRNGKey
) -> Played:
    """Plays each target alone."""

    def play_one(task_id: Array, key: PRNGKey) -> Played:
        make_key, key = jax.random.split(key)
        search = method.make(setup.space, Sources(sources), setup.trials_per_round, make_key)
        return _play(setup, search, table, task_id[None], key)

    keys = jax.random.split(key, len(setup.targets))
    played = jax.vmap(play_one)(jnp.array(setup.targets), keys)
    return jax.tree.map(lambda x: x[:, 0], played)
