"""A search as pure functions: ask for children to train, tell their rewards."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax import replay as replay_lib
from mnms_jax.advantage import Baseline, init_baseline, update_baseline
from mnms_jax.controller import make_random_policy
from mnms_jax.learner import Learner, Metrics
from mnms_jax.replay import Batch, ReplayBank
from mnms_jax.reward_model import Ranker, Ranking, Trials
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, Policy, PolicyOutput, PRNGKey

_ASK, _TELL = range(2)  # uses of a round's key


class SearchState(NamedTuple):
    """All that a search knows; a pytree of arrays, to be saved as it is."""

    params: Params
    opt_state: Any
    baseline: Baseline
    replay: ReplayBank
    step: Array  # int32 [], rounds told
    key: PRNGKey  # []
    knowledge: Any = None  # what the ranker is given of other tasks


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
    replay_capacity: int = 256,
    ranker: Ranker | None = None,
    num_candidates: int = 128,
    num_uniform: int = 64,
    num_replayed: int = 0,
) -> Search:
    """Returns a search as three jit-compiled pure functions.

    Args:
      space: the search space.
      policy: samples children.
      learner: improves the policy.
      num_tasks: number of tasks T.
      trials_per_task: children that a round trains on every task, so that B is T times this.
      replay_capacity: trials kept of every task; at least a round's.
      ranker: chooses a round's trials from more samples of the policy, and none that the replay
        bank holds as long as there are others; without one, all samples are trials.
      num_candidates: samples of the policy to choose from, of every task; at least
        `trials_per_task`.
      num_uniform: designs drawn at random to choose from as well, lest what the policy has come to
        avoid stay out of reach.
      num_replayed: tasks after these that have a row in the replay bank too, which is learned from
        and never grows.
    """
    capacity = max(replay_capacity, trials_per_task)
    # Not on a device, so that searches can be made while others are traced.
    task_ids = np.tile(np.arange(num_tasks, dtype=np.int32), trials_per_task)
    sample = jax.vmap(policy.sample, in_axes=(None, 0, 0))
    numbers = (max(num_candidates, trials_per_task), num_uniform)

    def init(key: PRNGKey) -> SearchState:
        init_key, key = jax.random.split(key)
        params = policy.init(init_key)
        return SearchState(
            params,
            learner.init(params),
            init_baseline(num_tasks + num_replayed),
            replay_lib.init_replay(num_tasks + num_replayed, capacity, space.num_decisions),
            jnp.int32(0),
            key,
        )

    def ask(state: SearchState) -> Proposal:
        key = _round_key(state, _ASK)
        if ranker is None:
            output = sample(state.params, jax.random.split(key, task_ids.size), task_ids)
        else:
            candidates = _candidates(space, policy, state.params, key, num_tasks, numbers)
            trials = _trials(state.replay, num_tasks)
            scores = _rank(ranker, state.knowledge, trials, candidates.actions).scores
            output = _choose(candidates, scores, trials, trials_per_task)
        return Proposal(jnp.asarray(task_ids), output.actions, output.log_probs)

    def tell(state: SearchState, proposal: Proposal, rewards: Array) -> tuple[SearchState, Metrics]:
        chex.assert_rank([proposal.actions, rewards], [2, 1])
        batch = Batch(*proposal, rewards=jnp.asarray(rewards, jnp.float32))
        baseline = update_baseline(state.baseline, batch.task_ids, batch.rewards)
        replay = replay_lib.add(state.replay, batch)
        params, opt_state, metrics = learner.update(
            _round_key(state, _TELL), state.params, state.opt_state, baseline, replay, batch
        )
        told = (params, opt_state, baseline, replay, state.step + 1)
        state = SearchState(*told, state.key, state.knowledge)
        if ranker is not None:
            trials = _trials(replay, num_tasks)
            beliefs = _rank(ranker, state.knowledge, trials, trials.actions[:, :1]).belief
            metrics = {**metrics, **{f"belief/{t}": beliefs[t] for t in range(num_tasks)}}
        return state, metrics

    return Search(jax.jit(init), jax.jit(ask), jax.jit(tell))


def _round_key(state: SearchState, use: int) -> PRNGKey:
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), use)


def _trials(replay: ReplayBank, num_tasks: int) -> Trials:
    """Returns the trials of a bank's first tasks, with a leading axis of tasks."""
    trials = Trials(replay.actions, replay.rewards, replay.valid)
    return jax.tree.map(lambda x: x[:num_tasks], trials)


def _rank(ranker: Ranker, knowledge: Any, trials: Trials, designs: Array) -> Ranking:
    """Ranks designs [T, M, D] for each task."""
    return jax.vmap(ranker, in_axes=(None, 0, 0))(knowledge, trials, designs)


def _candidates(
    space: SearchSpace,
    policy: Policy,
    params: Params,
    key: PRNGKey,
    num_tasks: int,
    numbers: tuple[int, int],
) -> PolicyOutput:
    """Returns designs for each task, with leading axes [T, M]: the policy's, then random ones."""

    def draw(policy: Policy, params: Params, keys: PRNGKey) -> PolicyOutput:
        over_samples = jax.vmap(policy.sample, in_axes=(None, 0, None))
        over_tasks = jax.vmap(over_samples, in_axes=(None, 0, 0))
        return over_tasks(params, keys, jnp.arange(num_tasks, dtype=jnp.int32))

    keys = jax.random.split(key, (num_tasks, sum(numbers)))
    own, others = keys[:, : numbers[0]], keys[:, numbers[0] :]
    return jax.tree.map(
        lambda *parts: jnp.concatenate(parts, 1),
        draw(policy, params, own),
        draw(make_random_policy(space), {}, others),
    )


def _choose(candidates: PolicyOutput, scores: Array, trials: Trials, number: int) -> PolicyOutput:
    """Returns each task's best candidates, each design once, and new ones first.

    Args:
      candidates: with leading axes [T, M].
      scores: [T, M].
      trials: what was tried, with a leading axis of tasks.
      number: to choose for each task.

    Returns:
      The chosen ones [number * T], tasks taking turns.
    """

    def choose(candidates: PolicyOutput, scores: Array, trials: Trials) -> PolicyOutput:
        designs = candidates.actions
        earlier = jnp.tril(jnp.ones((len(designs), len(designs)), bool), -1)
        repeated = jnp.any(jnp.all(designs[:, None] == designs[None], -1) & earlier, 1)
        tried = jnp.all(designs[:, None] == trials.actions[None], -1) & trials.valid[None]
        known = repeated | jnp.any(tried, 1)
        _, best = jax.lax.top_k(jnp.where(known, -jnp.inf, scores), number)
        return jax.tree.map(lambda x: x[best], candidates)

    chosen = jax.vmap(choose)(candidates, scores, trials)
    return jax.tree.map(lambda x: jnp.concatenate(jnp.swapaxes(x, 0, 1)), chosen)
