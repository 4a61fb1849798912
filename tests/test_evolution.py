import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.evolution import make_evolution
from mnms_jax.space import Decision, SearchSpace

pytestmark = pytest.mark.usefixtures("quick_compiler")

WIDE = SearchSpace([Decision(name, tuple(range(4))) for name in "abcdef"])


def test_a_population_is_random_first_and_its_children_are_near_the_best(key):
    search = make_evolution(WIDE, num_tasks=2, trials_per_task=2, population_size=10)
    state = search.init(key)
    goals = (np.zeros(6, int), np.full(6, 3))
    scores = []
    for _ in range(100):
        proposal = search.ask(state)
        assert proposal.task_ids.tolist() == [0, 1, 0, 1]
        np.testing.assert_array_equal(proposal.actions, search.ask(state).actions)
        ids, actions = np.asarray(proposal.task_ids), np.asarray(proposal.actions)
        rewards = np.array([(a == goals[t]).sum() for t, a in zip(ids, actions, strict=True)])
        scores.append(rewards)
        state, _ = search.tell(state, proposal, jnp.asarray(rewards, jnp.float32))
    assert np.mean(scores[:5]) < 2.5  # 1.5 is expected
    assert np.mean(scores[-20:]) > 4
    assert np.max(scores) == 6
    assert state.replay.rewards.shape == (2, 10)


def test_failed_trials_are_nobodys_parents(key):
    search = make_evolution(WIDE, population_size=4, sample_size=50)
    state = search.init(key)
    for number in range(4):
        proposal = search.ask(state)
        rewards = jnp.array([0.1 if number == 2 else jnp.nan])
        if number == 2:
            alive = np.asarray(proposal.actions[0])
        state, _ = search.tell(state, proposal, rewards)
    child = np.asarray(search.ask(state).actions[0])
    assert (child != alive).sum() == 1
