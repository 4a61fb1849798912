import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import SPACE

from mnms_jax.candidates import Numbers, choose, make_candidates, mutate
from mnms_jax.controller import make_policy
from mnms_jax.reward_model import Trials
from mnms_jax.space import Decision, SearchSpace

pytestmark = pytest.mark.usefixtures("quick_compiler")

WIDE = SearchSpace([Decision(name, tuple(range(4))) for name in "abcdef"])
NONE = jnp.zeros((0, 6), jnp.int32)


def designs_of(space):
    sizes = [len(decision.choices) for decision in space.decisions]
    every = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), -1)
    return {tuple(np.where(space.active(row), row, 0).tolist()) for row in every}


def test_a_mutant_differs_in_one_active_decision(key):
    """In the toy space, b hangs on a, and c on b."""
    designs = sorted(designs_of(SPACE))
    children = jax.jit(jax.vmap(lambda key, parent, stranger: mutate(key, SPACE, parent, stranger)))
    for parent in designs:
        keys = jax.random.split(key, 200)
        strangers = jnp.array(designs)[jax.random.randint(key, (200,), 0, len(designs))]
        mutants = np.asarray(children(keys, jnp.tile(jnp.array(parent), (200, 1)), strangers))
        assert {tuple(row) for row in mutants.tolist()} <= set(designs) - {parent}
        was, now = SPACE.active(np.array(parent)), SPACE.active(mutants)
        changed = (mutants != np.array(parent)) & was & now
        lost = was & ~now
        assert ((changed.sum(1) == 1) | lost.any(1)).all()
        # Each choice of another active decision is drawn.
        assert len({tuple(row) for row in mutants.tolist()}) >= was.sum()


def no_trials(capacity=5):
    return Trials(
        jnp.zeros((capacity, 6), jnp.int32), jnp.zeros(capacity), jnp.zeros(capacity, bool)
    )


def candidates(key, numbers, trials=None, suggestions=NONE):
    policy = make_policy(WIDE, 2)
    return np.asarray(
        make_candidates(
            key,
            WIDE,
            policy,
            policy.init(key),
            jnp.int32(1),
            no_trials() if trials is None else trials,
            suggestions,
            numbers,
        )
    )


def distance(designs, parents):
    return (designs[:, None] != np.asarray(parents)[None]).sum(-1).min(1)


def test_mutants_are_of_the_best_trials_and_of_what_was_good_elsewhere(key):
    rewards = jnp.array([0.1, jnp.nan, 0.9, 0.8, 0.0])
    actions = jnp.array([[0] * 6, [1] * 6, [2] * 6, [3] * 6, [0, 1, 2, 3, 0, 1]])
    trials = Trials(actions, rewards, jnp.array([True, True, True, True, False]))
    suggestions = jnp.array([[0, 0, 0, 1, 1, 1]])
    found = candidates(key, Numbers(0, 8, 300), trials, suggestions)
    assert found.shape == (8 + 300 + 1, 6)
    np.testing.assert_array_equal(found[-1:], suggestions)
    mutants = found[8:-1]
    near = {tuple(p): (distance(mutants, [p]) == 1).sum() for p in np.asarray(actions).tolist()}
    assert near[(2,) * 6] > 20 and near[(3,) * 6] > 20 and near[(0,) * 6] > 20
    assert (distance(mutants, suggestions) == 1).sum() > 20
    assert near[(1,) * 6] < 20 and near[(0, 1, 2, 3, 0, 1)] < 20  # failed; no trial
    # All others are mutants of random designs, in place of trials that aren't there.
    assert (distance(mutants, [*actions[:1], *actions[2:4], *suggestions, *found[:8]]) <= 1).all()


def test_without_trials_or_suggestions_there_are_samples_and_random_designs(key):
    found = candidates(key, Numbers(30, 20, 10))
    assert found.shape == (60, 6)
    assert len(np.unique(found, axis=0)) > 50
    np.testing.assert_array_equal(found, candidates(key, Numbers(30, 20, 10)))


def test_the_best_new_designs_are_chosen_once_each():
    designs = jnp.array([[0], [1], [2], [1], [3]])
    scores = jnp.array([0.1, 0.9, 0.5, 0.95, 0.7])
    tried = Trials(jnp.array([[3], [0]]), jnp.zeros(2), jnp.array([True, False]))
    # The 3 was tried; the 0 was not; the second 1 repeats the first.
    assert choose(designs, scores, tried, 3).tolist() == [[1], [2], [0]]
    assert choose(designs, scores, tried, 4).tolist()[:3] == [[1], [2], [0]]
