"""The designs among which a search's ranker chooses."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnms_jax.controller import are_active, make_random_policy
from mnms_jax.randomness import draw, index
from mnms_jax.ranker import Ranker, Trials
from mnms_jax.replay import Suggestions
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, Policy, PRNGKey

_SHARED = 10  # trials before any is chosen by a task's own trials alone, being too few to tell
_PARENTS = 8  # a task's best trials, whose designs are varied


class Numbers(NamedTuple):
    """How many designs are to choose from for a task, beside those that were good elsewhere."""

    sampled: int = 128  # by the policy
    uniform: int = 64  # lest what the policy has come to avoid stays out of reach; at least 1
    mutated: int = 64  # good designs of this task or others with one decision changed


def make_candidates(
    key: PRNGKey,
    space: SearchSpace,
    policy: Policy,
    params: Params,
    task_id: Array,
    trials: Trials,
    suggestions: Suggestions,
    numbers: Numbers,
) -> tuple[Array, Array]:
    """Returns designs to choose from, and which of them are there whatever was good elsewhere.

    Unbatched; callers vmap over tasks: int32 [M, D], bool [M].

    Args:
      key: of all that is random.
      space: the search space.
      policy: that samples.
      params: of the policy.
      task_id: int32 [].
      trials: the task's.
      suggestions: P designs, which come first.
      numbers: of all others.
    """
    policy_key, uniform_key, mutation_key = jax.random.split(key, 3)
    random = make_random_policy(space).sample
    drawn = random({}, uniform_key, task_id, numbers.uniform + numbers.mutated).actions
    drawn, strangers = drawn[: numbers.uniform], drawn[numbers.uniform :]
    chances = draw(mutation_key, (numbers.mutated, 1 + space.num_decisions + 1))
    parent_chances, chances = chances[:, 0], chances[:, 1:]
    known = trials.valid & jnp.isfinite(trials.rewards)
    number = min(_PARENTS, len(known), numbers.uniform)
    rewards, best = jax.lax.top_k(jnp.where(known, trials.rewards, -jnp.inf), number)
    own = jnp.where(jnp.isfinite(rewards)[:, None], trials.actions[best], drawn[:number])
    parents = own[index(parent_chances, len(own))]
    half = 0  # of the mutants
    if len(suggestions.designs):
        half = numbers.mutated // 2
        most = jnp.maximum(suggestions.number, 1)
        theirs = suggestions.designs[index(parent_chances[:half], most)]
        theirs = jnp.where(suggestions.number > 0, theirs, parents[:half])
        parents = parents.at[:half].set(theirs)
    mutants = jax.vmap(mutate, in_axes=(0, None, 0, 0))(chances, space, parents, strangers)
    sampled = policy.sample(params, policy_key, task_id, numbers.sampled).actions
    brought = jnp.concatenate([suggestions.designs, sampled, mutants[:half]])
    designs = jnp.concatenate([brought, drawn, mutants[half:]])
    return designs, jnp.arange(len(designs)) >= len(brought)


def assume_pending(ranker: Ranker, beliefs: Any, first: int, valid: Array) -> Any:
    """Returns beliefs as if all that is pending had earned what is expected of it.

    Args:
      ranker: whose beliefs these are.
      beliefs: of designs of which P in a row are pending.
      first: index of the first of them.
      valid: bool [P], which of them count.
    """

    def step(beliefs: Any, row: tuple[Array, Array]) -> tuple[Any, None]:
        place, counts = row
        assumed = ranker.assume(beliefs, place)
        return jax.tree.map(functools.partial(jnp.where, counts), assumed, beliefs), None

    return jax.lax.scan(step, beliefs, (first + jnp.arange(len(valid)), valid))[0]


def choose(
    ranker: Ranker,
    beliefs: Any,
    designs: Array,
    is_own: Array,
    is_tried: Array,
    num_made: Array,
    number: int,
    suggestions: Suggestions,
    num_suggested: int,
) -> Array:
    """Returns the designs for a task's next trials, int32 [number, D] (unbatched; callers vmap).

    Where other tasks are known, and guarded against, every other trial after the first `_SHARED` is
    chosen by the task's own alone, among the designs that no other task brought, so that tasks
    which mislead cost half of them at most.

    One after another: each is ranked as if those before it had earned what was expected of them,
    which makes what is like them less uncertain, so that designs of a round aren't alike (Desautels
    et al. 2014, "Parallelizing exploration-exploitation tradeoffs in Gaussian process bandit
    optimization"). No design is tried twice as long as there are others; then those that were tried
    are chosen among.

    Args:
      ranker: ranks designs.
      beliefs: the ranker's, of these designs; what it believes of more behind them is left out.
      designs: int32 [M, D], to choose from.
      is_own: bool [M], those that are there whatever was good elsewhere.
      is_tried: bool [M], those that were tried or are pending.
      num_made: int32 [], trials of the task so far.
      number: to choose.
      suggestions: the first designs.
      num_suggested: among the task's first so many trials every other one is the next suggestion,
        whatever the ranker says.
    """
    places = jnp.arange(len(designs))
    is_suggestion = places < suggestions.number
    is_filler = (places < len(suggestions.designs)) & ~is_suggestion

    def choose_next(state: tuple[Any, Array], turn: Array) -> tuple[tuple[Any, Array], Array]:
        beliefs, is_new = state
        ranking = ranker.rank(beliefs)
        may_be = jnp.where(jnp.any(is_new), is_new, ~is_filler)
        best = jnp.argmax(jnp.where(may_be, ranking.scores[: len(designs)], -jnp.inf))
        if ranking.alone is not None:
            may_be_alone = may_be & is_own
            is_alone = (turn >= _SHARED) & (turn % 2 == 1) & jnp.any(may_be_alone)
            alone = ranking.alone[: len(designs)]
            own_best = jnp.argmax(jnp.where(may_be_alone, alone, -jnp.inf))
            best = jnp.where(is_alone, own_best, best)
        left = is_new & is_suggestion
        suggestion = jnp.argmax(left)  # the first; 0 if there is none
        is_turn = (turn < num_suggested) & (turn % 2 == 0) & left[suggestion]
        chosen = jnp.where(is_turn, suggestion, best)
        is_new &= jnp.any(designs != designs[chosen][None], axis=1)
        return (ranker.assume(beliefs, chosen), is_new), designs[chosen]

    start = (beliefs, ~(is_filler | is_tried))
    return jax.lax.scan(choose_next, start, num_made + jnp.arange(number))[1]


def mutate(chances: Array, space: SearchSpace, parent: Array, stranger: Array) -> Array:
    """Returns a design with another choice for one active decision (unbatched; callers vmap).

    Args:
      chances: [D + 1], uniform in [0, 1): the largest chooses the decision, the last the choice.
      space: the search space.
      parent: int32 [D].
      stranger: int32 [D], a design whose choices decisions take that become active by it.
    """
    num_choices = jnp.asarray(space.action_mask).sum(1)
    active = are_active(space, parent)
    d = jnp.argmax(jnp.where(active & (num_choices > 1), chances[:-1], -1.0))
    shift = 1 + index(chances[-1], num_choices[d] - 1)
    changed = parent.at[d].set((parent[d] + shift) % num_choices[d])
    now_active = are_active(space, changed)
    return jnp.where(now_active, jnp.where(active, changed, stranger), 0)
