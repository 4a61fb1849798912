import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.replay import Batch, add, best, fill_failures, init_replay, sample


def batch_of(task_ids, rewards):
    rewards = jnp.array(rewards, jnp.float32)
    actions = jnp.stack([jnp.arange(len(rewards)), 10 * jnp.arange(len(rewards))], 1)
    return Batch(jnp.array(task_ids), actions.astype(jnp.int32), -actions * 1.0, rewards)


def test_a_full_bank_forgets_its_oldest():
    replay = init_replay(2, 3, 2)
    replay = add(replay, batch_of([0, 1, 0], [1, 2, 3]))
    assert replay.size.tolist() == [2, 1]
    replay = add(replay, batch_of([0, 0], [4, 5]))
    assert replay.rewards.tolist() == [[5, 3, 4], [2, 0, 0]]
    assert replay.size.tolist() == [4, 1]
    assert replay.valid.tolist() == [[True] * 3, [True, False, False]]
    assert replay.actions[0, 0].tolist() == [1, 10]
    assert replay.log_probs[0, 1].tolist() == [-2, -20]


def test_draws_are_balanced_whole_and_uniform(key):
    replay = add(init_replay(2, 8, 2), batch_of([0, 0, 0, 1], [1, 2, 3, 4]))
    batch = sample(replay, key, 2000)
    assert np.bincount(batch.task_ids).tolist() == [1000, 1000]
    assert set(batch.rewards[batch.task_ids == 1].tolist()) == {4}
    counts = np.bincount(batch.rewards[batch.task_ids == 0].astype(int))
    assert counts[0] == 0 and (counts[1:] > 280).all()
    np.testing.assert_array_equal(batch.actions[:, 0] + 1, batch.rewards)
    np.testing.assert_array_equal(batch.log_probs, -batch.actions)


def test_draws_change_with_the_key(key):
    replay = add(init_replay(1, 8, 2), batch_of([0] * 8, range(8)))
    first, second = (sample(replay, jax.random.key(i), 32).rewards for i in (0, 1))
    assert first.tolist() != second.tolist()


def test_failures_are_a_deviation_below_their_tasks_lowest_reward():
    nan = float("nan")
    replay = add(init_replay(3, 3, 2), batch_of([0, 0, 0, 1], [0.7, nan, 0.6, nan]))
    filled = fill_failures(replay)
    np.testing.assert_allclose(filled.rewards[0], [0.7, 0.6 - 0.05, 0.6], rtol=1e-5)
    np.testing.assert_allclose(filled.rewards[1, 0], -1e-3)
    assert jnp.all(jnp.isfinite(filled.rewards))


def test_the_best_of_each_task_without_failures_or_empty_slots():
    nan = float("nan")
    replay = add(init_replay(2, 5, 2), batch_of([0, 0, 0, 0, 1], [0.1, 0.9, nan, 0.5, -2.0]))
    batch, there = best(replay, 2)
    assert batch.task_ids.tolist() == [0, 0, 1, 1]
    assert there.tolist() == [True, True, True, False]
    np.testing.assert_allclose(batch.rewards[:3], [0.9, 0.5, -2.0])
    assert batch.actions[:3, 0].tolist() == [1, 3, 4]
