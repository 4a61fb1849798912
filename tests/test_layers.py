import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.children.dense import NORMALIZATIONS, NormalizedDense, batch_moments, normalize
from mnms_jax.children.layers import (
    ACTIVATIONS,
    activate,
    activation_coefficients,
    counter_bits,
    embed,
    keep_mask,
    max_over_windows,
    mix,
    to_uniform,
    uniform_param,
)
from mnms_jax.children.ragged import Layout

REFERENCE = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "leaky_relu": jax.nn.leaky_relu,
    "swish": jax.nn.swish,
    "sigmoid": jax.nn.sigmoid,
    "tanh": jnp.tanh,
}


def random(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def check_gradients(ours, theirs, inputs, atol=1e-5):
    """Checks a function's value and the gradients of all its inputs against plain autodiff."""
    weights = random(99, *jax.eval_shape(theirs, *inputs).shape)
    both = []
    for function in (ours, theirs):
        # Jitted, as in training: XLA may compute what it stores twice, and otherwise.
        grads = jax.grad(lambda args, f=function: jnp.vdot(weights, f(*args)))
        both.append((jax.jit(function)(*inputs), *jax.jit(grads)(inputs)))
    for a, b in zip(*both, strict=True):
        assert a.shape == b.shape and np.asarray(b).any()
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_jax(name):
    x = jnp.concatenate([jnp.linspace(-9, 9, 75), jnp.array([-1e4, 1e4])]).reshape(7, 11)
    coefficients = activation_coefficients(name)
    mask = jax.random.bernoulli(jax.random.key(1), 0.7, x.shape) / 0.7
    np.testing.assert_allclose(
        activate(x, coefficients, jnp.ones_like(x)), REFERENCE[name](x), atol=2e-6
    )
    check_gradients(
        lambda x: activate(x, coefficients, mask), lambda x: REFERENCE[name](x) * mask, (x,), 3e-6
    )


def test_no_gradient_at_the_corner_of_relu():
    grad = jax.grad(lambda x: activate(x, activation_coefficients("relu"), jnp.float32(1)))
    assert float(grad(0.0)) == 0.0


@pytest.mark.parametrize("shape", [(6,), (4, 5)])
def test_embedding_equals_indexing_but_for_padding(shape):
    table = random(0, 5, 3)
    tokens = jax.random.randint(jax.random.key(1), shape, 0, 5)
    tokens = tokens.at[..., 0].set(0).at[..., 1:3].set(4)  # padding, and a row read twice
    # The reference's row 0 is a constant.
    check_gradients(
        lambda table: embed(table, tokens),
        lambda table: table.at[0].set(jax.lax.stop_gradient(table[0]))[tokens],
        (table,),
    )
    assert not jax.grad(lambda table: embed(table, tokens).sum())(table)[0].any()


@pytest.mark.parametrize("layout", [Layout(4, (3, 7)), Layout(5, (7,)), Layout(1, (2, 5))])
def test_maximum_over_windows(layout):
    """With 40, 35 and 7 positions the kernel's gradient is summed in eight parts, or in one."""
    lengths = np.repeat(layout.lengths, layout.group_size)
    ends = np.cumsum(lengths)
    words = 1 + np.arange(len(lengths)) % 3
    inside = jnp.concatenate([jnp.arange(n) < k for n, k in zip(lengths, words, strict=True)])

    def reference(windows, kernel):
        responses = jnp.where(inside[:, None], windows @ kernel, -99)
        rows = zip(ends - lengths, ends, strict=True)
        return jnp.stack([responses[start:end].max(0) for start, end in rows])

    inputs = (random(0, ends[-1], 6), random(1, 6, 4))
    check_gradients(lambda w, k: max_over_windows(w, k, inside, layout), reference, inputs)


def test_equal_windows_share_the_gradient_and_others_get_none():
    """Windows 0 and 2 are the same; outside are the same once more and the largest one."""
    windows = jnp.array([[1.0, 2.0], [0.0, 1.0], [1.0, 2.0], [1.0, 2.0], [9.0, 9.0]])
    kernel = jnp.array([[1.0, -1.0], [1.0, 0.0]])
    inside, layout = jnp.array([True, True, True, False, False]), Layout(1, (5,))
    value, grads = jax.vjp(lambda w, k: max_over_windows(w, k, inside, layout), windows, kernel)
    np.testing.assert_array_equal(value, [[3.0, 0.0]])
    window_grad, kernel_grad = grads(jnp.array([[6.0, 10.0]]))
    # The second filter's maximum is at window 1.
    expected = [[3.0, 3.0], [-10.0, 0.0], [3.0, 3.0], [0.0, 0.0], [0.0, 0.0]]
    np.testing.assert_allclose(window_grad, expected)
    np.testing.assert_allclose(kernel_grad, [[6.0, 0.0], [12.0, 10.0]])


def reference_norm(kind, x, affine):
    """Flax's layers with our parameters, in training."""
    x = x + affine[None, 0]
    norm = {
        "batch": nn.BatchNorm(use_running_average=False, epsilon=1e-5),
        "layer": nn.LayerNorm(epsilon=1e-5),
    }.get(kind)
    if norm is None:
        return x
    params = {"params": {"scale": affine[1], "bias": affine[2]}}
    state = jax.tree.map(jnp.zeros_like, norm.init(jax.random.key(0), x))
    return norm.apply({**state, **params}, x, mutable=["batch_stats"])[0]


@pytest.mark.parametrize("kind", NORMALIZATIONS)
def test_gradients_of_normalization_equal_those_of_flax(kind):
    """Also with columns beyond the units, whatever they hold."""
    x, affine, fixed = 2 * random(0, 12, 5) + 1, 1 + random(1, 3, 5), random(2, 2, 5)

    def ours(x, affine, beyond=0):
        x, affine, moving = (
            jnp.pad(y, ((0, 0), (0, beyond)), constant_values=7.0) for y in (x, affine, fixed)
        )
        index = jnp.int32(NORMALIZATIONS.index(kind))
        return normalize(x, affine, index, jnp.float32(5), moving, jnp.array(True))[:, :5]

    def theirs(x, affine):
        return reference_norm(kind, x, affine)

    check_gradients(ours, theirs, (x, affine), 1e-4)
    check_gradients(functools.partial(ours, beyond=3), theirs, (x, affine), 1e-4)
    bias_grad = jax.grad(lambda affine: jnp.sum(ours(x, affine) ** 3))(affine)[0]
    # Exactly zero where it cancels: Adam makes steps as large of rounding errors.
    assert bias_grad.all() if kind != "batch" else not bias_grad.any()


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


def test_masks_keep_the_mean_and_differ_by_seed_and_layer():
    rate = jnp.float32(0.3)

    def mask(seed, layer, rate=rate):
        return keep_mask(jnp.uint32(seed), layer, rate, (200, 50))

    kept = mask(1, 0)
    assert float(jnp.mean(kept == 0)) == pytest.approx(0.3, abs=0.02)
    assert set(np.unique(kept)) == {0, np.float32(1 / (1 - np.float32(0.3)))}
    for seed, layer in ((2, 0), (1, 1), (1, 101)):
        other = mask(seed, layer)
        assert float(jnp.mean((other == 0) == (kept == 0))) == pytest.approx(0.58, abs=0.03)
    np.testing.assert_array_equal(mask(1, 0), kept)
    np.testing.assert_array_equal(mask(1, 0, jnp.float32(0)), jnp.ones((200, 50)))


class Table(nn.Module):
    rows: int
    zero_first: bool = False

    @nn.compact
    def __call__(self):
        bound = np.array([0.1, 1, 10], np.float32)
        shape = (self.rows, 3)
        return uniform_param(self, "w", jnp.uint32(1), shape, bound, zero_first=self.zero_first)


def test_bounds_may_differ_by_column_and_row_0_be_zero(key):
    table = Table(1000).init(key)["params"]["w"]
    np.testing.assert_allclose(jnp.abs(table).max(0), [0.1, 1, 10], rtol=0.02)
    np.testing.assert_allclose(table.mean(0) / jnp.array([0.1, 1, 10]), jnp.zeros(3), atol=0.05)
    padded = Table(1100, zero_first=True).init(key)["params"]["w"]
    assert table[0].any() and not padded[0].any()
    np.testing.assert_array_equal(padded[1:1000], table[1:])


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, kind, training):
        dense = NormalizedDense(5, name="layer")
        return dense(x, x.shape[1], jnp.float32(5), kind, jnp.uint32(3), training)


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
    moments = updated["batch_stats"]["layer"]["norm"]["moments"]
    np.testing.assert_allclose(moments[0], 0.1 * projected.mean(0), atol=1e-5)
    np.testing.assert_allclose(moments[1], 0.9 + 0.1 * (projected**2).mean(0), rtol=1e-5)


def test_batch_normalization_uses_moving_statistics_outside_training(net):
    x, variables, projected = net
    for _ in range(200):
        _, updated = Net().apply(variables, x, jnp.int32(1), True, mutable=["batch_stats"])
        variables = {**variables, **updated}
    out, _ = Net().apply(variables, x[:3], jnp.int32(1), False, mutable=["batch_stats"])
    expected = (projected[:3] - projected.mean(0)[None]) / np.sqrt(projected.var(0) + 1e-5)[None]
    np.testing.assert_allclose(out, expected, atol=1e-4)


@pytest.mark.parametrize("kind", range(3))
def test_moving_statistics_stay_outside_training(net, kind):
    x, variables, _ = net
    variables = jax.tree.map(lambda x: x + 0.5, variables)
    apply = jax.jit(
        lambda training: Net().apply(
            variables, x, jnp.int32(kind), training, mutable=["batch_stats"]
        )[1]["batch_stats"]["layer"]["norm"]["moments"]
    )
    before = variables["batch_stats"]["layer"]["norm"]["moments"]
    np.testing.assert_array_equal(apply(False), before)
    assert (apply(True) != before).all()


def test_batch_moments(net):
    x, _, _ = net
    np.testing.assert_allclose(batch_moments(x), [x.mean(0), (x**2).mean(0)], rtol=1e-5)


def test_kernels_start_with_the_variance_of_one_over_fan_in(key):
    x = jnp.ones((2, 300))
    kernel = Net().init(key, x, jnp.int32(0), False)["params"]["layer"]["kernel"]
    assert float(kernel.var()) == pytest.approx(1 / 300, rel=0.1)
    assert float(jnp.abs(kernel).max()) <= np.sqrt(3 / 300)
