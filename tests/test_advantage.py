import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.advantage import (
    ADVANTAGES,
    Baseline,
    init_baseline,
    rank_advantage,
    relative_advantage,
    standardized_advantage,
    update_baseline,
)
from mnms_jax.replay import init_replay

NAN = float("nan")


def replay_with(rewards):
    rewards = jnp.array(rewards)
    replay = init_replay(rewards.shape[0], rewards.shape[1], 1)
    return replay._replace(rewards=rewards, size=jnp.full(rewards.shape[0], rewards.shape[1]))


def test_baseline_by_hand():
    baseline = update_baseline(
        init_baseline(2), jnp.array([0, 1, 0]), jnp.array([0.5, 0.8, 1.0]), decay=0.9
    )
    np.testing.assert_allclose(baseline.mean, [0.5 + 0.1 * 0.5, 0.8], rtol=1e-6)
    np.testing.assert_allclose(baseline.variance, [0.9 * 0.1 * 0.25, 0.0], rtol=1e-5)
    assert baseline.seen.tolist() == [2, 1]


def test_baseline_converges_to_mean_and_variance():
    rewards = jnp.array(np.random.default_rng(0).normal(3.0, 0.5, 4000))
    ids = jnp.zeros(4000, jnp.int32)
    baseline = update_baseline(init_baseline(1), ids, rewards, decay=0.999)
    assert float(baseline.mean[0]) == pytest.approx(3.0, abs=0.05)
    assert float(baseline.variance[0]) == pytest.approx(0.25, rel=0.1)


def test_failed_trials_leave_the_baseline():
    before = update_baseline(init_baseline(2), jnp.array([0]), jnp.array([0.7]), decay=0.5)
    after = update_baseline(before, jnp.array([0, 1]), jnp.array([NAN, NAN]), decay=0.5)
    for old, new in zip(before, after, strict=True):
        np.testing.assert_array_equal(old, new)


def test_relative_is_as_published():
    baseline = Baseline(jnp.array([0.5, 0.8]), jnp.zeros(2), jnp.array([9, 9]))
    got = relative_advantage(
        baseline, replay_with([[0.0]]), jnp.array([0, 1]), jnp.array([0.6, 0.6])
    )
    np.testing.assert_allclose(got, [(0.6 - 0.5) / 0.5, (0.6 - 0.8) / 0.8], rtol=1e-5)


def test_standardized_divides_by_the_deviation():
    baseline = Baseline(jnp.array([0.5]), jnp.array([0.04]), jnp.array([9]))
    got = standardized_advantage(baseline, replay_with([[0.0]]), jnp.array([0]), jnp.array([0.9]))
    np.testing.assert_allclose(got, [2.0], rtol=1e-5)


def test_rank_by_hand():
    replay = replay_with([[0.1, 0.2, 0.2, 0.9]])
    got = rank_advantage(init_baseline(1), replay, jnp.zeros(3, int), jnp.array([0.1, 0.2, 0.9]))
    np.testing.assert_allclose(got, [-3 / 4, (1 - 1) / 4, 3 / 4])


def test_rank_ignores_empty_slots_and_other_tasks():
    replay = replay_with([[0.5, 0.7, 0.0], [9.0, 9.0, 9.0]])._replace(size=jnp.array([2, 3]))
    got = rank_advantage(init_baseline(2), replay, jnp.array([0, 0]), jnp.array([0.5, 0.7]))
    np.testing.assert_allclose(got, [-0.5, 0.5])


@pytest.mark.parametrize("name", ["std", "rank"])
def test_scale_of_a_task_does_not_matter(name):
    rewards = jnp.array([0.2, 0.4, 0.9, 0.3])
    ids = jnp.zeros(4, jnp.int32)

    def advantages(rewards):
        baseline = update_baseline(init_baseline(1), ids, rewards, decay=0.9)
        return ADVANTAGES[name](baseline, replay_with(rewards[None]), ids, rewards)

    np.testing.assert_allclose(advantages(rewards), advantages(10 * rewards + 3), rtol=1e-4)
