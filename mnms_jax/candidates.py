"""The designs among which a search's ranker chooses."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnms_jax.controller import are_active, make_random_policy
from mnms_jax.reward_model import Trials
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, Policy, PRNGKey

_PARENTS = 8  # a task's best trials, whose designs are varied


class Numbers(NamedTuple):
    """How many designs are to choose from for a task, beside those that were good elsewhere."""

    sampled: int = 128  # by the policy
    uniform: int = 64  # lest what the policy has come to avoid stays out of reach
    mutated: int = 64  # good designs of this task or others with one decision changed


def make_candidates(
    key: PRNGKey,
    space: SearchSpace,
    policy: Policy,
    params: Params,
    task_id: Array,
    trials: Trials,
    suggestions: Array,
    numbers: Numbers,
) -> Array:
    """Returns designs to choose from, int32 [M, D] (unbatched; callers vmap over tasks).

    Args:
      key: of all that is random.
      space: the search space.
      policy: that samples.
      params: of the policy.
      task_id: int32 [].
      trials: the task's.
      suggestions: int32 [P, D], designs that were good on other tasks.
      numbers: of designs.
    """
    policy_key, uniform_key, parent_key, mutation_key, stranger_key = jax.random.split(key, 5)

    def draw(policy: Policy, params: Params, key: PRNGKey, number: int) -> Array:
        sample = jax.vmap(policy.sample, in_axes=(None, 0, None))
        return sample(params, jax.random.split(key, number), task_id).actions

    uniform = make_random_policy(space)
    drawn = draw(uniform, {}, uniform_key, numbers.uniform)
    known = trials.valid & jnp.isfinite(trials.rewards)
    number = min(_PARENTS, len(known))
    rewards, best = jax.lax.top_k(jnp.where(known, trials.rewards, -jnp.inf), number)
    own = jnp.where(jnp.isfinite(rewards)[:, None], trials.actions[best], drawn[:number])
    parents = jnp.concatenate([own, suggestions])
    chosen = jax.random.randint(parent_key, (numbers.mutated,), 0, len(parents))
    strangers = draw(uniform, {}, stranger_key, numbers.mutated)
    mutants = jax.vmap(mutate, in_axes=(0, None, 0, 0))(
        jax.random.split(mutation_key, numbers.mutated), space, parents[chosen], strangers
    )
    sampled = draw(policy, params, policy_key, numbers.sampled)
    return jnp.concatenate([sampled, drawn, mutants, suggestions])


def choose(designs: Array, scores: Array, trials: Trials, number: int) -> Array:
    """Returns the best designs, each once, and new ones first (unbatched; callers vmap).

    Args:
      designs: int32 [M, D].
      scores: [M].
      trials: what was tried.
      number: to choose.
    """
    earlier = jnp.tril(jnp.ones((len(designs), len(designs)), bool), -1)
    repeated = jnp.any(jnp.all(designs[:, None] == designs[None], -1) & earlier, 1)
    tried = jnp.all(designs[:, None] == trials.actions[None], -1) & trials.valid[None]
    known = repeated | jnp.any(tried, 1)
    _, best = jax.lax.top_k(jnp.where(known, -jnp.inf, scores), number)
    return designs[best]


def mutate(key: PRNGKey, space: SearchSpace, parent: Array, stranger: Array) -> Array:
    """Returns a design with another choice for one active decision (unbatched; callers vmap).

    Args:
      key: chooses decision and choice.
      space: the search space.
      parent: int32 [D].
      stranger: int32 [D], a design whose choices decisions take that become active by it.
    """
    num_choices = jnp.asarray(space.action_mask).sum(1)
    active = are_active(space, parent)
    decision_key, choice_key = jax.random.split(key)
    may_change = jnp.where(active & (num_choices > 1), 0.0, -jnp.inf)
    d = jax.random.categorical(decision_key, may_change)
    shift = jax.random.randint(choice_key, (), 1, jnp.maximum(num_choices[d], 2))
    changed = parent.at[d].set((parent[d] + shift) % num_choices[d])
    now_active = are_active(space, changed)
    return jnp.where(now_active, jnp.where(active, changed, stranger), 0)
