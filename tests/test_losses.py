import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax

from mnms_jax.losses import entropy_loss, ppo_loss, reinforce_loss


def test_reinforce_and_its_gradient_equal_rlax():
    logits = jax.random.normal(jax.random.key(0), (5, 1, 4))
    actions = jnp.array([[0], [3], [2], [2], [1]])
    advantages = jnp.array([1.0, -0.5, 0.0, 2.0, 0.3])

    def ours(logits):
        log_p = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(log_p, actions[..., None], -1)[..., 0]
        return reinforce_loss(picked, advantages)

    def theirs(logits):
        return rlax.policy_gradient_loss(logits[:, 0], actions[:, 0], advantages, jnp.ones(5))

    np.testing.assert_allclose(ours(logits), theirs(logits), rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ours)(logits), jax.grad(theirs)(logits), atol=1e-6)


def test_decisions_add_up():
    log_probs = jnp.array([[-1.0, -2.0], [-3.0, 0.0]])
    assert float(reinforce_loss(log_probs, jnp.array([1.0, 2.0]))) == pytest.approx((3 + 6) / 2)


def test_ppo_equals_rlax_for_one_decision():
    new = jnp.log(jnp.array([0.5, 0.1, 0.3, 0.9]))
    old = jnp.log(jnp.array([0.4, 0.2, 0.3, 0.5]))
    advantages = jnp.array([1.0, 1.0, -1.0, -2.0])
    expected = rlax.clipped_surrogate_pg_loss(jnp.exp(new - old), advantages, 0.2)
    got = ppo_loss(new[:, None], old[:, None], advantages, clip=0.2)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_ppo_stops_where_the_ratio_has_gone_far_enough():
    grad = jax.grad(lambda x: ppo_loss(x, jnp.zeros((1, 2)), jnp.ones(1), clip=0.2))
    got = grad(jnp.log(jnp.array([[1.3, 1.1]])))
    np.testing.assert_allclose(got, [[0.0, -1.1]], rtol=1e-6)


def test_entropy_is_a_designs():
    assert float(entropy_loss(jnp.array([[1.0, 2.0], [0.0, 3.0]]))) == -3.0
