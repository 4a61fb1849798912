import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mnms_jax.training.optimizer import apply_gradients, coefficients, init_slots
from mnms_jax.types import OptimizerSettings, UserError

REFERENCE = {
    "sgd": lambda rate: optax.sgd(rate, momentum=0.9),
    "adam": optax.adam,
    "adagrad": optax.adagrad,
}


SCHEDULES = {
    "linear": optax.linear_schedule(0.05, 0.0, 20),
    "cosine": optax.cosine_decay_schedule(0.05, 20),
    "constant": optax.constant_schedule(0.05),
}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", REFERENCE)
def test_twenty_steps_equal_optax(name, schedule):
    params = {"deep": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    groups = {"deep": coefficients(OptimizerSettings(name, 0.05, 0.0, schedule))}
    transform = REFERENCE[name](SCHEDULES[schedule])
    ours, slots = params, init_slots(params, groups)
    theirs, state = params, transform.init(params)
    for step in range(20):
        grads = jax.tree.map(
            lambda w, k=step: jax.random.normal(jax.random.key(k), w.shape) + w, params
        )
        ours, slots = apply_gradients(ours, grads, slots, groups, jnp.int32(step), 20)
        updates, state = transform.update(grads, state, theirs)
        theirs = optax.apply_updates(theirs, updates)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6)


def test_groups_have_their_own_rates_and_biases_no_regularization():
    params = {
        "deep": {"kernel": jnp.full((1, 1), 2.0), "bias": jnp.full(1, 2.0)},
        "wide": {"kernel": jnp.full((1, 1), 2.0)},
    }
    zeros = jax.tree.map(jnp.zeros_like, params)
    groups = {
        "deep": coefficients(OptimizerSettings("sgd", 0.1, 0.5)),
        "wide": coefficients(OptimizerSettings("sgd", 0.01, 0.5)),
    }
    moved, _ = apply_gradients(params, zeros, init_slots(params, groups), groups, jnp.int32(0), 9)
    assert float(moved["deep"]["kernel"][0, 0]) == pytest.approx(2 - 0.1 * 0.5 * 2)
    assert float(moved["deep"]["bias"][0]) == 2.0
    assert float(moved["wide"]["kernel"][0, 0]) == pytest.approx(2 - 0.01 * 0.5 * 2)


@pytest.mark.parametrize("name", REFERENCE)
def test_nothing_moves_outside_training_even_by_what_is_not_finite(name):
    params = {"deep": {"kernel": jnp.ones((3, 2)), "bias": jnp.zeros(2)}}
    groups = {"deep": coefficients(OptimizerSettings(name, 0.05, 0.1))}
    grads = {"deep": {"kernel": jnp.full((3, 2), jnp.nan), "bias": jnp.full(2, jnp.inf)}}
    step = jax.jit(apply_gradients)
    slots = init_slots(params, groups)
    for count in (3, 9, 12):  # the last two are past the end
        moved, _ = step(params, grads, slots, groups, jnp.int32(count), 9, jnp.array(False))
        jax.tree.map(np.testing.assert_array_equal, moved, params)
    ones = jax.tree.map(jnp.ones_like, params)
    moved, _ = step(params, ones, slots, groups, jnp.int32(3), 9, jnp.array(True))
    assert all((a != b).all() for a, b in zip(*map(jax.tree.leaves, (moved, params)), strict=True))


def test_unknown_optimizer():
    with pytest.raises(UserError, match="did you mean 'adam'"):
        coefficients(OptimizerSettings("adamm", 0.1, 0.0))
    with pytest.raises(UserError, match="schedule 'cosin' is unknown; did you mean 'cosine'"):
        coefficients(OptimizerSettings("adam", 0.1, 0.0, "cosin"))


def test_groups_without_an_optimizer_are_named():
    params = {"hidden": {"kernel": jnp.ones((2, 2))}}
    groups = {"network": coefficients(OptimizerSettings("sgd", 0.1, 0.0))}
    with pytest.raises(UserError, match=r"optimizers for network, and its model .* hidden"):
        init_slots(params, groups)
