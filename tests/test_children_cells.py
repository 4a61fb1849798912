import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.bench import make_bench
from mnms_jax.children import cells
from mnms_jax.children.cells import make_cell_family, make_cell_model
from mnms_jax.children.image import PixelStatistics
from mnms_jax.children.operations import OPERATIONS, operate
from mnms_jax.config import Config
from mnms_jax.controller import make_random_policy
from mnms_jax.export import load_child, save_child
from mnms_jax.training.fit import Request, Trainer


def random_design(key, **changes):
    family = make_cell_family()
    actions = make_random_policy(family.space).sample({}, key, jnp.int32(0), 1).actions[0]
    return {**family.space.decode(np.asarray(actions)), **changes}


def convolve(size, x, weights):
    """A separable convolution as XLA has it."""
    depthwise, pointwise = weights
    border = (5 - size) // 2
    kernel = depthwise.reshape(5, 5, 1, -1)[border : 5 - border, border : 5 - border]
    y = jax.lax.conv_general_dilated(
        jax.nn.relu(x),
        kernel,
        (1, 1),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
    )
    return y @ pointwise


def pool(start, reduce, x, weights):
    del weights
    return jax.lax.reduce_window(x, start, reduce, (1, 3, 3, 1), (1, 1, 1, 1), "SAME")


REFERENCES = {
    "identity": lambda x, weights: x,
    "sep3": functools.partial(convolve, 3),
    "sep5": functools.partial(convolve, 5),
    "avg3": lambda x, weights: pool(0.0, jax.lax.add, x, weights) / 9,
    "max3": functools.partial(pool, -jnp.inf, jax.lax.max),
}


def random_weights(key, *, blocks=(), filters=4):
    keys = jax.random.split(key)
    shapes = ((*blocks, 25, filters), (*blocks, filters, filters))
    return tuple(jax.random.normal(k, shape) for k, shape in zip(keys, shapes, strict=True))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_and_their_gradients_are_those_of_xla(name, key):
    x, weights = jax.random.normal(key, (3, 6, 5, 4)), random_weights(key)
    chosen = jnp.int32(OPERATIONS.index(name))

    def total(operation, x, weights):
        return jnp.sum(jnp.sin(operation(x, weights)))

    own = functools.partial(total, functools.partial(operate, chosen))
    reference = functools.partial(total, REFERENCES[name])
    for found, expected in zip(
        jax.tree.leaves(jax.jit(jax.value_and_grad(own, (0, 1)))(x, weights)),
        jax.tree.leaves(jax.value_and_grad(reference, (0, 1))(x, weights)),
        strict=True,
    ):
        np.testing.assert_allclose(found, expected, atol=1e-4)


def test_equal_maxima_share_the_gradient():
    x, weights = jnp.zeros((1, 3, 3, 1)), (jnp.zeros((25, 1)), jnp.zeros((1, 1)))
    max3 = functools.partial(operate, jnp.int32(OPERATIONS.index("max3")))
    gradient = jax.grad(lambda x: max3(x, weights)[0, 1, 1, 0])(x)
    np.testing.assert_allclose(gradient, np.full(x.shape, 1 / 9), rtol=1e-6)


def test_a_cell_is_wired_as_it_is_designed(key):
    inputs = np.array([[0, 0], [2, 0], [1, 2]], np.int32)  # nothing takes the last two blocks
    operations = np.array([[0, 1], [3, 2], [4, 4]], np.int32)
    hyper = cells.CellHyperparameters(0, 0, inputs[None], operations[None], 0)
    states = jax.random.normal(key, (2, 3, 4, 4, 4))
    module = cells._Cell(4, 0)
    variables = module.init(key, states, hyper, jnp.uint32(1), False)
    weights = random_weights(key, blocks=(3, 2))
    variables["params"] |= dict(zip(("depthwise", "pointwise"), weights, strict=True))
    (found, columns), _ = module.apply(
        variables, states, hyper, jnp.uint32(1), False, mutable="batch_stats"
    )
    known = [*states]
    for block in range(3):
        parts = [
            REFERENCES[OPERATIONS[operations[block, side]]](
                known[inputs[block, side]], [w[block, side] for w in weights]
            )
            for side in (0, 1)
        ]
        known.append(sum(parts) / np.sqrt(1 + 1e-5))  # moving mean and variance are 0 and 1 yet
    zero = np.zeros_like(known[0])
    expected = [zero, zero, zero, *(np.maximum(x, 0) for x in known[3:])]
    np.testing.assert_allclose(found, np.concatenate(expected, -1), atol=1e-4)
    assert columns == 8


def test_every_choice_changes_its_part_of_the_spec(key):
    family, base = make_cell_family(), random_design(key)
    for decision in family.space.decisions:
        for choice in decision.choices:
            spec = family.make_spec({**base, decision.name: choice})
            same = jax.tree.all(jax.tree.map(np.array_equal, spec, family.make_spec(base)))
            assert same == (choice == base[decision.name]), (decision.name, choice)


def test_one_program_serves_all_cells_and_what_a_design_leaves_unused_is_counted(
    key, quick_compiler
):
    family = make_cell_family()
    # Large enough for the last cells' 3 x 3 pixels to be seen by all weights of 5 x 5.
    batch = np.random.default_rng(0).integers(256, size=(64, 12, 12, 1), dtype=np.uint8)
    statistics = PixelStatistics(jnp.full(1, 127.0), jnp.full(1, 73.0))
    traced = []

    @jax.jit
    def train(hyper):
        traced.append(hyper)
        variables = model.init(jnp.uint32(1), batch, statistics, hyper)

        def loss(params):
            known = {**variables, "params": params}
            logits, _ = model.apply(known, batch, statistics, hyper, jnp.uint32(2), jnp.array(True))
            return jnp.sum(logits**2)

        return jax.value_and_grad(loss)(variables["params"])

    for number in range(6):
        design = random_design(jax.random.fold_in(key, number), cells=1, filters=8)
        spec = family.make_spec({**design, "conv_dropout": 0.0, "shift": 0})
        model = make_cell_model(spec.architecture, 3)
        value, gradients = train(spec.hyperparameters)
        assert np.isfinite(value) and set(gradients) == set(spec.optimizers)
        zeros = 0
        for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
            assert np.isfinite(gradient).all()
            if path[-1].key in ("kernel", "depthwise", "pointwise"):
                zeros += np.sum(gradient == 0)
        assert zeros == spec.unused
    assert len(traced) == 1


def test_a_child_learns_digits_and_comes_back(tmp_path):
    bench = make_bench(Config(tasks=("digits",), space="cells"))
    (task,) = bench.tasks
    names = [name for name in bench.family.space.names if "operation" in name]
    design = random_design(
        jax.random.key(1),
        **{
            **dict.fromkeys(names, "sep3"),
            "cells": 1,
            "filters": 8,
            "conv_dropout": 0.0,
            "shift": 1,
            "flip": False,
        },
        **{"optimizer": "adam", "learning_rate": 0.01, "regularization": 1e-4, "samples": 10_000},
    )
    inputs = bench.inputs
    trainer = Trainer(bench.family, inputs.child_data, num_classes=inputs.num_classes)
    outcome, variables = trainer.fit(Request(0, "digits", 0, design))
    assert outcome.accuracy > 0.9
    child = bench.make_child(0, design, variables)
    split = task.splits["validation"]
    probabilities = child.predict_proba(split.inputs)
    assert np.mean(probabilities.argmax(1) == split.labels) == pytest.approx(outcome.accuracy)
    save_child(tmp_path / "best", child)
    again = load_child(tmp_path / "best")
    np.testing.assert_array_equal(again.predict_proba(split.inputs), probabilities)
    assert again.decisions == design
