import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.children.layers import (
    ACTIVATIONS,
    NORMALIZATIONS,
    NormalizedDense,
    activate,
    activation_coefficients,
    counter_bits,
    dropout,
    mix,
    to_uniform,
)

REFERENCE = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "swish": jax.nn.swish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_jax(name):
    x = jnp.linspace(-9, 9, 73)
    coefficients = activation_coefficients(name)
    np.testing.assert_allclose(activate(x, coefficients), REFERENCE[name](x), atol=2e-6)
    ours = jax.vmap(jax.grad(lambda x: activate(x, coefficients)))(x)
    theirs = jax.vmap(jax.grad(REFERENCE[name]))(x)
    smooth = (x != 0) & (jnp.abs(x) != 6)
    np.testing.assert_allclose(ours[smooth], theirs[smooth], atol=2e-6)


def test_mix_is_murmur_and_a_bijection():
    # The 32-bit finaliser of MurmurHash3, computed in plain Python.
    def reference(h):
        h ^= h >> 16
        h = h * 0x85EBCA6B % 2**32
        h ^= h >> 13
        h = h * 0xC2B2AE35 % 2**32
        return h ^ (h >> 16)

    values = [0, 1, 2, 77, 2**31, 2**32 - 1]
    assert mix(jnp.array(values, jnp.uint32)).tolist() == [reference(v) for v in values]
    assert len(np.unique(mix(jnp.arange(100_000, dtype=jnp.uint32)))) == 100_000


def test_counter_bits_look_uniform_and_independent():
    draws = np.stack([to_uniform(counter_bits(jnp.uint32(s), (4096,))) for s in range(20)])
    assert draws.min() >= 0 and draws.max() < 1
    histogram = np.histogram(draws, bins=16, range=(0, 1))[0] / draws.size
    np.testing.assert_allclose(histogram, 1 / 16, atol=0.003)
    correlation = np.corrcoef(draws) - np.eye(20)
    assert np.abs(correlation).max() < 0.08
    neighbours = [np.corrcoef(row[:-1], row[1:])[0, 1] for row in draws]
    assert np.abs(neighbours).max() < 0.08


def test_a_draw_is_a_prefix_of_a_longer_one():
    seed = jnp.uint32(5)
    np.testing.assert_array_equal(counter_bits(seed, (3, 4)), counter_bits(seed, (9, 4))[:3])


def test_dropout_keeps_the_mean_and_differs_by_seed_and_layer():
    x = jnp.ones((200, 50))
    kept = dropout(x, jnp.float32(0.3), jnp.uint32(1), 0, train=True)
    assert float(jnp.mean(kept == 0)) == pytest.approx(0.3, abs=0.02)
    assert set(np.unique(kept)) == {0, np.float32(1 / (1 - np.float32(0.3)))}
    for seed, layer in ((2, 0), (1, 1)):
        other = dropout(x, jnp.float32(0.3), jnp.uint32(seed), layer, train=True)
        assert float(jnp.mean((other == 0) == (kept == 0))) == pytest.approx(0.58, abs=0.03)
    np.testing.assert_array_equal(dropout(x, jnp.float32(0.3), jnp.uint32(1), 0, train=False), x)
    np.testing.assert_array_equal(dropout(x, jnp.float32(0), jnp.uint32(1), 0, train=True), x)


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, kind, train):
        return NormalizedDense(5, name="layer")(x, kind, jnp.uint32(3), train=train)


@pytest.fixture
def net(key):
    x = jax.random.normal(key, (40, 7)) * 3 + 1
    variables = Net().init(key, x, jnp.int32(0), False)
    return x, variables, x @ variables["params"]["layer"]["kernel"]


@pytest.mark.parametrize("kind", range(3))
def test_normalization_equals_flax(net, kind):
    x, variables, projected = net
    out, updated = Net().apply(variables, x, jnp.int32(kind), True, mutable=["batch_stats"])
    if NORMALIZATIONS[kind] == "none":
        expected = projected
    elif NORMALIZATIONS[kind] == "batch":
        norm = nn.BatchNorm(use_running_average=False, momentum=0.9)
        expected = norm.init_with_output(jax.random.key(0), projected)[0]
    else:
        expected = nn.LayerNorm(epsilon=1e-5).init_with_output(jax.random.key(0), projected)[0]
    np.testing.assert_allclose(out, expected, atol=1e-4)
    moments = updated["batch_stats"]["layer"]["moments"]
    np.testing.assert_allclose(moments[0], 0.1 * projected.mean(0), atol=1e-5)
    np.testing.assert_allclose(moments[1], 0.9 + 0.1 * (projected**2).mean(0), rtol=1e-5)


def test_batch_normalization_uses_moving_statistics_outside_training(net):
    x, variables, projected = net
    for _ in range(200):
        _, updated = Net().apply(variables, x, jnp.int32(1), True, mutable=["batch_stats"])
        variables = {**variables, **updated}
    out = Net().apply(variables, x[:3], jnp.int32(1), False)
    expected = (projected[:3] - projected.mean(0)[None]) / np.sqrt(projected.var(0) + 1e-5)[None]
    np.testing.assert_allclose(out, expected, atol=1e-4)


def test_kernels_start_with_the_variance_of_one_over_fan_in(key):
    x = jnp.ones((2, 300))
    kernel = Net().init(key, x, jnp.int32(0), False)["params"]["layer"]["kernel"]
    assert float(kernel.var()) == pytest.approx(1 / 300, rel=0.1)
    assert float(jnp.abs(kernel).max()) <= np.sqrt(3 / 300)
