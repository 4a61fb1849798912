import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.losses import entropy_loss, imitation_loss, ppo_loss, reinforce_loss, urex_loss


def test_reinforce_has_the_policy_gradient_of_a_softmax():
    logits = np.random.default_rng(0).normal(size=(5, 4))
    actions = np.array([0, 3, 2, 2, 1])
    advantages = np.array([1.0, -0.5, 0.0, 2.0, 0.3])

    def loss(logits):
        log_p = jax.nn.log_softmax(logits)
        return reinforce_loss(log_p[jnp.arange(5), actions][:, None], jnp.array(advantages))

    # By hand: d log p(a) / d logits = onehot(a) - p.
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = -advantages[:, None] * (np.eye(4)[actions] - p) / 5
    np.testing.assert_allclose(jax.grad(loss)(jnp.array(logits)), expected, atol=1e-6)
    by_hand = -np.mean(np.log(p[np.arange(5), actions]) * advantages)
    assert float(loss(jnp.array(logits))) == pytest.approx(by_hand, rel=1e-5)


def test_decisions_add_up():
    log_probs = jnp.array([[-1.0, -2.0], [-3.0, 0.0]])
    assert float(reinforce_loss(log_probs, jnp.array([1.0, 2.0]))) == pytest.approx((3 + 6) / 2)


def test_ppo_by_hand():
    new = jnp.log(jnp.array([[0.5], [0.1], [0.3], [0.9]]))
    old = jnp.log(jnp.array([[0.4], [0.2], [0.3], [0.5]]))
    advantages = jnp.array([1.0, 1.0, -1.0, -2.0])
    # Ratios 1.25, 0.5, 1, 1.8: clipped at 1.2; kept, as it is the worse; kept; kept likewise.
    expected = -np.mean([1.2 * 1, 0.5 * 1, 1.0 * -1, 1.8 * -2])
    assert float(ppo_loss(new, old, advantages, clip=0.2)) == pytest.approx(expected, rel=1e-5)


def test_ppo_stays_finite_where_the_impossible_has_become_likely():
    """As after some 3,000 trials, when designs of other samplers had a log-probability of -400."""
    new, old = jnp.zeros((3, 1)), jnp.full((3, 1), -400.0)
    advantages = jnp.array([1.0, 0.0, -1.0])
    loss, grads = jax.value_and_grad(ppo_loss)(new, old, advantages)
    assert np.isfinite(loss) and np.isfinite(grads).all()
    assert loss > 1e6  # no less of a bad thing


def test_ppo_stops_where_the_ratio_has_gone_far_enough():
    grad = jax.grad(lambda x: ppo_loss(x, jnp.zeros((1, 2)), jnp.ones(1), clip=0.2))
    got = grad(jnp.log(jnp.array([[1.3, 1.1]])))
    np.testing.assert_allclose(got, [[0.0, -1.1]], rtol=1e-6)


def test_entropy_is_a_designs():
    assert float(entropy_loss(jnp.array([[1.0, 2.0], [0.0, 3.0]]))) == -3.0


def test_imitation_is_a_weighted_mean():
    log_probs = jnp.array([[-1.0, -2.0], [-5.0, -5.0], [0.0, -1.0]])
    assert float(imitation_loss(log_probs, jnp.array([1.0, 0.0, 1.0]))) == pytest.approx(2.0)
    assert float(imitation_loss(log_probs, jnp.zeros(3))) == 0.0


def test_urex_by_hand():
    log_probs = jnp.log(jnp.array([[0.5, 0.5], [0.1, 1.0], [0.2, 0.1], [0.3, 0.3]]))
    task_ids, advantages = jnp.array([0, 0, 0, 1]), jnp.array([1.0, 0.5, -1.0, 0.7])
    # Designs have probabilities .25, .1, .02 and .09; the last one is alone on its task.
    weights = np.exp([2.0, 1.0, -2.0]) / [0.25, 0.1, 0.02]
    weights /= weights.sum()
    of_first = np.sum(weights * np.log([0.25, 0.1, 0.02]))
    expected = -0.5 * (of_first + np.log(0.09)) / 2
    found = urex_loss(log_probs, task_ids, advantages, temperature=0.5)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    grad = jax.grad(lambda x: urex_loss(x, task_ids, advantages, temperature=0.5))(log_probs)
    np.testing.assert_allclose(grad[:, 0], [*(-0.25 * weights), -0.25], rtol=1e-5)
