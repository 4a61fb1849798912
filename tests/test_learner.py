import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import SPACE

from mnms_jax.advantage import init_baseline, update_baseline
from mnms_jax.controller import make_policy
from mnms_jax.learner import make_learner, make_trpo_learner
from mnms_jax.replay import Batch, add, init_replay
from mnms_jax.types import LEARNERS, Policy, PolicyOutput

pytestmark = pytest.mark.usefixtures("quick_compiler")

NUM_CHOICES = 4


def evaluate(logits, actions, task_id):
    del task_id
    log_p = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p)
    return PolicyOutput(actions, log_p[actions], entropy[None])


def sample(logits, key, task_id, number):
    actions = jax.random.categorical(key, logits, shape=(number, 1))
    return jax.vmap(evaluate, in_axes=(None, 0, None))(logits, actions, task_id)


# One decision, and its logits are the parameters.
SOFTMAX = Policy(lambda key: jnp.zeros(NUM_CHOICES), sample, evaluate)


def told(policy, params, actions, rewards, num_tasks=1):
    """Returns what a learner is given after one round of trials, but the key."""
    task_ids = jnp.arange(len(rewards)) % num_tasks
    output = jax.vmap(policy.evaluate, (None, 0, 0))(params, actions, task_ids)
    batch = Batch(task_ids, output.actions, output.log_probs, rewards)
    replay = add(init_replay(num_tasks, len(rewards), actions.shape[1]), batch)
    baseline = update_baseline(init_baseline(num_tasks), task_ids, rewards)
    return baseline, replay, batch


def test_trpo_steps_along_the_natural_gradient(key):
    logits = jnp.log(jnp.array([0.5, 0.3, 0.15, 0.05]))
    actions, advantages = jnp.array([[0], [1], [2], [3]]), jnp.array([0.1, -0.4, 1.0, 0.3])
    learner = make_trpo_learner(
        SOFTMAX,
        advantage=lambda baseline, replay, task_ids, rewards: rewards,
        max_divergence=1e-3,
        entropy_weight=0.0,
        num_probes=2000,
        damping=1e-4,
    )
    moved, _, metrics = learner.update(key, logits, (), *told(SOFTMAX, logits, actions, advantages))
    p = np.exp(np.asarray(logits))
    natural = np.asarray(advantages) / p  # as F = diag(p) - p p^T, and the gradient is A - p sum(A)
    step = np.asarray(moved - logits)
    step = step - step.mean()  # a constant changes no probability
    natural = natural - natural.mean()
    cosine = step @ natural / np.linalg.norm(step) / np.linalg.norm(natural)
    assert cosine > 0.99
    assert 0.2e-3 < float(metrics["divergence"]) <= 1e-3  # of a step once halved, or whole
    new = np.asarray(jax.nn.softmax(moved))
    assert np.sum(p * np.log(p / new)) == pytest.approx(float(metrics["divergence"]), rel=0.2)


def test_trpo_stays_where_no_step_is_safe(key):
    logits = jnp.zeros(NUM_CHOICES)
    learner = make_trpo_learner(SOFTMAX, num_steps=1, max_divergence=0.0, entropy_weight=0.0)
    actions, rewards = jnp.array([[0], [1]]), jnp.array([0.0, 1.0])
    moved, _, metrics = learner.update(key, logits, (), *told(SOFTMAX, logits, actions, rewards))
    np.testing.assert_array_equal(moved, logits)
    assert float(metrics["divergence"]) == 0.0


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("name", LEARNERS)
def test_every_learner_makes_what_was_good_likelier(name, warm, key):
    policy = make_policy(SPACE, 2)
    params = policy.init(key)
    learner = make_learner(name, policy, warm=warm)
    actions = (
        jnp.zeros((6, SPACE.num_decisions), jnp.int32).at[:, 0].set(jnp.array([0, 0, 1, 1, 2, 2]))
    )
    rewards = jnp.array([0.1, 0.2, 0.3, 0.2, jnp.nan, 0.9])
    moved, _, metrics = learner.update(
        key, params, learner.init(params), *told(policy, params, actions, rewards, num_tasks=2)
    )
    assert all(np.isfinite(value) for value in metrics.values())
    best, task_id = actions[-1], jnp.int32(1)
    after, before = (policy.evaluate(x, best, task_id).log_probs.sum() for x in (moved, params))
    assert float(after) > float(before)
