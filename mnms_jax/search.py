"""A search as pure functions: ask for children to train, tell their rewards."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mnms_jax import replay as replay_lib
from mnms_jax.advantage import Baseline, init_baseline, update_baseline
from mnms_jax.learner import Learner, Metrics
from mnms_jax.replay import Batch, ReplayBank
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, Policy, PRNGKey

_ASK, _TELL = range(2)  # uses of a round's key


class SearchState(NamedTuple):
    """All that a search knows; a pytree of arrays, to be saved as it is."""

    params: Params
    opt_state: Any
    baseline: Baseline
    replay: ReplayBank
    step: Array  # int32 [], rounds told
    key: PRNGKey  # []


class Proposal(NamedTuple):
    """The children of a round."""

    task_ids: Array  # int32 [B]
    actions: Array  # int32 [B, D]
    log_probs: Array  # [B, D], under the policy that sampled them


class Search(NamedTuple):
    """A search over a space for several tasks.

    Attributes:
      init: key -> state.
      ask: state -> the round's proposal. Asking twice gives the same proposal.
      tell: state, proposal, rewards [B] (NaN: the trial failed) -> state, metrics.
    """

    init: Callable[[PRNGKey], SearchState]
    ask: Callable[[SearchState], Proposal]
    tell: Callable[[SearchState, Proposal, Array], tuple[SearchState, Metrics]]


def make_search(
    space: SearchSpace,
    policy: Policy,
    learner: Learner,
    *,
    num_tasks: int,
    trials_per_task: int = 8,
    baseline_decay: float = 0.95,
    replay_capacity: int = 256,
) -> Search:
    """Returns a search as three jit-compiled pure functions.

    Args:
      space: the search space.
      policy: samples children.
      learner: improves the policy.
      num_tasks: number of tasks T.
      trials_per_task: children that a round trains on every task, so that B is T times this.
      baseline_decay: of the moving average of each task's rewards (Zoph & Le 2017).
      replay_capacity: trials kept of every task; at least a round's.
    """
    capacity = max(replay_capacity, trials_per_task)
    task_ids = jnp.tile(jnp.arange(num_tasks, dtype=jnp.int32), trials_per_task)

    def init(key: PRNGKey) -> SearchState:
        init_key, key = jax.random.split(key)
        params = policy.init(init_key)
        return SearchState(
            params,
            learner.init(params),
            init_baseline(num_tasks),
            replay_lib.init_replay(num_tasks, capacity, space.num_decisions),
            jnp.int32(0),
            key,
        )

    def ask(state: SearchState) -> Proposal:
        keys = jax.random.split(_round_key(state, _ASK), task_ids.size)
        output = jax.vmap(policy.sample, in_axes=(None, 0, 0))(state.params, keys, task_ids)
        return Proposal(task_ids, output.actions, output.log_probs)

    def tell(state: SearchState, proposal: Proposal, rewards: Array) -> tuple[SearchState, Metrics]:
        chex.assert_rank([proposal.actions, rewards], [2, 1])
        batch = Batch(*proposal, rewards=jnp.asarray(rewards, jnp.float32))
        baseline = update_baseline(
            state.baseline, batch.task_ids, batch.rewards, decay=baseline_decay
        )
        replay = replay_lib.add(state.replay, batch)
        params, opt_state, metrics = learner.update(
            _round_key(state, _TELL), state.params, state.opt_state, baseline, replay, batch
        )
        state = SearchState(params, opt_state, baseline, replay, state.step + 1, state.key)
        return state, metrics

    return Search(jax.jit(init), jax.jit(ask), jax.jit(tell))


def _round_key(state: SearchState, use: int) -> PRNGKey:
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), use)
