import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_space import all_canonical
from toy import SPACE

from mnms_jax.children.text import make_text_family
from mnms_jax.controller import choice_frequencies, make_policy, make_random_policy
from mnms_jax.randomness import draw

pytestmark = pytest.mark.usefixtures("quick_compiler")

TEXT_SPACE = make_text_family("cpu").space
POLICIES = {"recurrent": make_policy(SPACE, 2), "random": make_random_policy(SPACE)}


@pytest.fixture(params=POLICIES)
def policy(request):
    return POLICIES[request.param]


@pytest.mark.parametrize("jit", [False, True])
def test_evaluate_agrees_with_sample(policy, key, jit):
    sample, evaluate = policy.sample, jax.vmap(policy.evaluate, in_axes=(None, 0, None))
    if jit:
        sample, evaluate = jax.jit(sample, static_argnums=3), jax.jit(evaluate)
    params = policy.init(key)
    for task_id in (0, 1):
        sampled = sample(params, key, jnp.int32(task_id), 5)
        again = evaluate(params, sampled.actions, jnp.int32(task_id))
        np.testing.assert_array_equal(sampled.actions, again.actions)
        np.testing.assert_allclose(sampled.log_probs, again.log_probs, atol=1e-6)
        np.testing.assert_allclose(sampled.entropy, again.entropy, atol=1e-6)


def roll_plainly(space, params, task_id, choose):
    """One decision after another with Flax's cell, on concatenated embeddings."""
    cell = nn.OptimizedLSTMCell(params["cell"]["hi"]["bias"].size)
    carry = cell.initialize_carry(jax.random.key(0), params["first_input"].shape)
    previous = params["first_input"]
    actions, log_probs = np.zeros(space.num_decisions, np.int32), np.zeros(space.num_decisions)
    for d, decision in enumerate(space.decisions):
        x = jnp.concatenate([previous, params["task_embedding"][task_id]])
        carry, h = cell.apply({"params": params["cell"]}, carry, x)
        logits = jnp.concatenate([h, x]) @ params["head_kernel"][d] + params["head_bias"][d]
        logits = jnp.where(jnp.arange(space.max_choices) < len(decision.choices), logits, -jnp.inf)
        if space.active(actions)[d]:
            actions[d] = choose(d, logits)
            log_probs[d] = jax.nn.log_softmax(logits)[actions[d]]
        previous = params["action_embedding"][d, actions[d]]
    return actions, log_probs


def test_sample_and_evaluate_are_the_plain_recurrence(key):
    policy = make_policy(TEXT_SPACE, 3, init_scale=0.5)
    params = policy.init(key)
    noise = draw(key, (4, TEXT_SPACE.num_decisions, TEXT_SPACE.max_choices), jax.random.gumbel)
    for task_id in range(3):
        sampled = jax.jit(policy.sample, static_argnums=3)(params, key, jnp.int32(task_id), 4)
        evaluated = jax.jit(jax.vmap(policy.evaluate, in_axes=(None, 0, None)))(
            params, sampled.actions, jnp.int32(task_id)
        )
        for i in range(4):
            actions, log_probs = roll_plainly(
                TEXT_SPACE, params, task_id, lambda d, logits, i=i: jnp.argmax(logits + noise[i, d])
            )
            for output in (sampled, evaluated):
                np.testing.assert_array_equal(output.actions[i], actions)
                np.testing.assert_allclose(output.log_probs[i], log_probs, atol=1e-5)


@pytest.mark.parametrize("policy", [make_policy(SPACE, 2, init_scale=1), POLICIES["random"]])
def test_samples_are_as_likely_as_they_say(policy, key):
    params = policy.init(key)
    output = jax.jit(policy.sample, static_argnums=3)(params, key, jnp.int32(1), 20_000)
    designs, first, counts = np.unique(
        output.actions, axis=0, return_index=True, return_counts=True
    )
    assert len(designs) == len(list(all_canonical(SPACE)))
    likely = np.exp(np.asarray(output.log_probs).sum(1))[first]
    # Four standard deviations of a binomial count.
    tolerance = 4 * np.sqrt(20_000 * likely * (1 - likely))
    assert (abs(counts - 20_000 * likely) < tolerance).all()


@pytest.mark.parametrize("space", [SPACE, TEXT_SPACE])
def test_what_is_active_is_what_the_space_says(space):
    choices = space.action_mask.sum(1)
    actions = np.random.default_rng(0).integers(choices, size=(300, space.num_decisions))
    output = jax.vmap(make_random_policy(space).evaluate, (None, 0, None))(
        {}, jnp.asarray(actions, jnp.int32), jnp.int32(0)
    )
    active = space.active(actions)
    assert not active.all()
    np.testing.assert_array_equal(output.actions, np.where(active, actions, 0))
    np.testing.assert_array_equal(np.asarray(output.entropy) != 0, active & (choices > 1))


def test_probabilities_over_the_whole_space_sum_to_one(policy, key):
    params = policy.init(key)
    actions = jnp.stack(list(all_canonical(SPACE)))
    for task_id in range(2):
        output = jax.vmap(policy.evaluate, (None, 0, None))(params, actions, jnp.int32(task_id))
        assert float(jnp.sum(jnp.exp(jnp.sum(output.log_probs, 1)))) == pytest.approx(1, abs=1e-5)


def test_inactive_decisions_cost_nothing_and_take_their_first_choice(policy, key):
    params = policy.init(key)
    output = policy.sample(params, key, jnp.int32(0), 200)
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
