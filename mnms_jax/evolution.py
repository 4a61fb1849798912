"""Regularised evolution as a search: the oldest die, however good (Real et al. 2019).

"Regularized Evolution for Image Classifier Architecture Search", arXiv:1802.01548. The population
is the replay bank, a ring of each task's last trials.
"""

import jax
import jax.numpy as jnp

from mnms_jax.candidates import mutate
from mnms_jax.controller import make_random_policy
from mnms_jax.learner import make_null_learner
from mnms_jax.randomness import draw, index
from mnms_jax.replay import ReplayBank
from mnms_jax.search import Proposal, Search, SearchState, make_search
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array

_BREED = 2  # use of a round's key, beside those of any search


def make_evolution(
    space: SearchSpace,
    *,
    num_tasks: int = 1,
    trials_per_task: int = 1,
    population_size: int = 50,
    sample_size: int = 15,
) -> Search:
    """Returns regularised evolution: a child is the best of a sample with one decision changed.

    Until a task has its population, its designs are random.

    Args:
      space: the search space.
      num_tasks: number of tasks T, each with a population of its own.
      trials_per_task: of a round; none of them is another's parent.
      population_size: the paper's P, from 20 to 100 there; at least `trials_per_task`.
      sample_size: the paper's S, drawn with replacement.
    """
    random = make_search(
        space,
        make_random_policy(space),
        make_null_learner(),
        num_tasks=num_tasks,
        trials_per_task=trials_per_task,
        replay_capacity=population_size,
    )

    def breed(chances: Array, replay: ReplayBank, task_id: Array, stranger: Array) -> Array:
        """Returns a child's actions, int32 [D]; the stranger is a random design."""
        drawn = index(chances[:sample_size], replay.rewards.shape[1])
        rewards = replay.rewards[task_id, drawn]
        best = drawn[jnp.argmax(jnp.where(jnp.isnan(rewards), -jnp.inf, rewards))]
        child = mutate(chances[sample_size:], space, replay.actions[task_id, best], stranger)
        return jnp.where(replay.size[task_id] < population_size, stranger, child)

    def ask(state: SearchState) -> Proposal:
        proposal = random.ask(state)
        key = jax.random.fold_in(jax.random.fold_in(state.key, state.step), _BREED)
        chances = draw(key, (proposal.task_ids.size, sample_size + space.num_decisions + 1))
        over_trials = jax.vmap(breed, in_axes=(0, None, 0, 0))
        children = over_trials(chances, state.replay, proposal.task_ids, proposal.actions)
        return proposal._replace(actions=children)

    return Search(random.init, jax.jit(ask), random.tell)
