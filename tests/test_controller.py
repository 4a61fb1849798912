import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_space import all_canonical
from toy import SPACE

from mnms_jax.controller import choice_frequencies, make_policy, make_random_policy

POLICIES = {"recurrent": make_policy(SPACE, 2), "random": make_random_policy(SPACE)}


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]


@pytest.mark.parametrize("jit", [False, True])
def test_evaluate_agrees_with_sample(policy, key, jit):
    wrap = jax.jit if jit else lambda f: f
    params = policy.init(key)
    for seed in range(5):
        sampled = wrap(policy.sample)(params, jax.random.key(seed), jnp.int32(seed % 2))
        again = wrap(policy.evaluate)(params, sampled.actions, jnp.int32(seed % 2))
        np.testing.assert_array_equal(sampled.actions, again.actions)
        np.testing.assert_allclose(sampled.log_probs, again.log_probs, atol=1e-6)
        np.testing.assert_allclose(sampled.entropy, again.entropy, atol=1e-6)


def test_probabilities_over_the_whole_space_sum_to_one(policy, key):
    params = policy.init(key)
    actions = jnp.stack(list(all_canonical(SPACE)))
    for task_id in range(2):
        output = jax.vmap(policy.evaluate, (None, 0, None))(params, actions, jnp.int32(task_id))
        assert float(jnp.sum(jnp.exp(jnp.sum(output.log_probs, 1)))) == pytest.approx(1, abs=1e-5)


def test_inactive_decisions_cost_nothing_and_take_their_first_choice(policy, key):
    params = policy.init(key)
    keys = jax.random.split(key, 200)
    output = jax.vmap(policy.sample, (None, 0, None))(params, keys, jnp.int32(0))
    active = SPACE.active(output.actions)
    assert active[:, 1:].any() and not active[:, 1:].all()
    for rows in (output.actions, output.log_probs, output.entropy):
        assert not np.asarray(rows)[~active].any()
    assert (np.asarray(output.log_probs)[active] < 0).all()
    assert SPACE.action_mask[np.arange(3), output.actions].all()


def test_uniform_policy_is_uniform(key):
    output = POLICIES["random"].evaluate({}, jnp.array([1, 1, 2]), jnp.int32(0))
    np.testing.assert_allclose(np.exp(output.log_probs), [1 / 3, 1 / 2, 1 / 3], rtol=1e-6)
    np.testing.assert_allclose(np.exp(output.entropy), [3, 2, 3], rtol=1e-6)


def test_every_parameter_matters_and_no_gradient_is_nan(key):
    policy = POLICIES["recurrent"]
    params = policy.init(key)
    actions = jnp.array([1, 1, 2])

    def loss(params):
        output = policy.evaluate(params, actions, jnp.int32(1))
        return jnp.sum(output.log_probs) + jnp.sum(output.entropy)

    grads = jax.grad(loss)(params)
    for path, grad in jax.tree.leaves_with_path(grads):
        assert jnp.all(jnp.isfinite(grad)), path
        assert jnp.any(grad != 0), path
    # Task 1's embedding alone has a gradient when task 1 is asked.
    assert not jnp.any(grads["task_embedding"][0])
    # The padded choice of b is never touched.
    assert not jnp.any(grads["head_bias"][1, 2])


def test_tasks_differ_and_parameters_start_in_their_interval(key):
    policy = make_policy(SPACE, 2, init_scale=0.5)
    params = policy.init(key)
    actions = jnp.array([1, 1, 2])
    first, second = (policy.evaluate(params, actions, jnp.int32(i)).log_probs for i in (0, 1))
    assert not np.allclose(first, second)
    kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
    assert all(float(jnp.max(jnp.abs(leaf))) <= 0.5 for leaf in kernels)
    assert max(float(jnp.max(jnp.abs(leaf))) for leaf in kernels) > 0.45


def test_skip_connection_carries_the_task_around_the_cell(key):
    policy = POLICIES["recurrent"]
    params = policy.init(key)
    params["cell"] = jax.tree.map(jnp.zeros_like, params["cell"])  # the cell now gives zeros
    actions = jnp.array([1, 1, 2])
    first, second = (policy.evaluate(params, actions, jnp.int32(i)).log_probs for i in (0, 1))
    assert not np.allclose(first, second)


def test_choice_frequencies_match_exact_probabilities(key):
    policy = POLICIES["recurrent"]
    params = policy.init(key)
    table = choice_frequencies(policy, SPACE, params, key, 0, num_samples=4000)
    assert table.shape == (3, 3)
    actions = np.stack(list(all_canonical(SPACE)))
    output = jax.vmap(policy.evaluate, (None, 0, None))(params, actions, jnp.int32(0))
    probabilities = np.exp(np.sum(output.log_probs, 1))
    expected = np.zeros((3, 3))
    for row, active, p in zip(actions, SPACE.active(actions), probabilities, strict=True):
        expected[np.arange(3)[active], row[active]] += p
    np.testing.assert_allclose(table, expected, atol=0.03)
