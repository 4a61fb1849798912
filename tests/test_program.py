import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import make_task

from mnms_jax.children.layers import mix
from mnms_jax.children.ragged import Ragged, group_lengths
from mnms_jax.children.text import PRESETS, make_text_family, make_text_model
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.training.optimizer import coefficients
from mnms_jax.training.program import (
    BATCH_SIZE,
    Recipe,
    _evaluation_rows,
    _training_rows,
    cross_entropy,
    make_program,
    predict,
)

DESIGN = {
    "embedding": "random32",
    "lowercase": True,
    "strip": True,
    "convolution": True,
    "conv_activation": "swish",
    "conv_batch_norm": True,
    "conv_max_ngram": 2,
    "conv_dropout": 0.2,
    "conv_filters": 16,
    "conv_embedding_dropout": 0.2,
    "hidden_layers": 1,
    "hidden_size": 64,
    "hidden_activation": "tanh",
    "normalization": "batch",
    "hidden_dropout": 0.2,
    "optimizer": "adagrad",
    "deep_learning_rate": 0.05,
    "deep_regularization": 1e-3,
    "wide_learning_rate": 0.005,
    "wide_regularization": 1e-3,
    "samples": 0,
}
TASKS = (make_task("one", 500, seed=1), make_task("two", 210, num_classes=3, seed=2))
FAMILY = make_text_family("cpu", {})
MODEL = make_text_model(FAMILY.make_spec(DESIGN).architecture, 3)
PROGRAM = jax.jit(make_program(MODEL))


@pytest.fixture(scope="module")
def data():
    """The data of both tasks; evaluation rows take two steps of the first, one of the second."""
    inputs = TextInputs(TASKS, PRESETS["cpu"]._replace(length=8), {})
    return [inputs.child_data(i, FAMILY.make_spec(DESIGN)) for i in (0, 1)]


def recipe_of(num_steps, rungs=(), needed=(), **changes):
    spec = FAMILY.make_spec({**DESIGN, **changes})
    groups = {name: coefficients(settings) for name, settings in spec.optimizers.items()}
    rungs, needed = np.array(rungs, np.int32), np.array(needed, np.float32)
    return Recipe(spec.hyperparameters, groups, np.int32(num_steps), rungs, needed)


def rows_of_epoch(num_train, epoch, seed=7):
    steps = -(-num_train // BATCH_SIZE)
    numbers = range(epoch * steps, (epoch + 1) * steps)
    return np.stack([_training_rows(jnp.uint32(seed), jnp.int32(i), num_train) for i in numbers])


@pytest.mark.parametrize("num_train", [1, 37, 128, 129, 200, 1000, 1280])
def test_every_row_is_seen_in_every_epoch(num_train):
    num_train = jnp.int32(num_train)
    epochs = [rows_of_epoch(num_train, epoch) for epoch in range(3)]
    for rows in epochs:
        counts = np.bincount(rows.ravel(), minlength=int(num_train))
        assert counts.size == num_train and counts.min() >= 1
        # Rows are repeated to fill the last batch, equally.
        assert counts.max() <= -(-rows.size // int(num_train))
    if num_train >= 200:
        batches = {frozenset(row) for rows in epochs for row in rows}
        assert len(batches) == sum(map(len, epochs))  # no batch twice
        assert (rows_of_epoch(num_train, 0, seed=8) != epochs[0]).any()


@pytest.mark.parametrize("num_rows", [1, 37, 128, 129, 200, 1000])
def test_every_row_is_evaluated_on_once(num_rows):
    seen = []
    for position in range(-(-num_rows // BATCH_SIZE)):
        rows, counts = _evaluation_rows(jnp.int32(position), jnp.int32(num_rows))
        assert rows.min() >= 0 and rows.max() < num_rows
        seen += np.asarray(rows)[np.asarray(counts)].tolist()
    assert sorted(seen) == list(range(num_rows))


@pytest.mark.parametrize("num_rows", [1, 2, 37, 129, 1000])
def test_places_of_a_group_take_rows_of_that_group(num_rows):
    """Rows are sorted by length; bounds are those of 4 groups, as a batch's places are."""
    lengths = np.sort(np.random.default_rng(0).integers(1, 50, num_rows))
    bounds = np.repeat(group_lengths([lengths], 4, 50), BATCH_SIZE // 4)
    training = rows_of_epoch(jnp.int32(num_rows), 0)
    evaluated = [
        _evaluation_rows(jnp.int32(i), jnp.int32(num_rows))[0] for i in range(len(training))
    ]
    for rows in (*training, *evaluated):
        assert (lengths[rows] <= bounds).all()
    if num_rows == 1000:  # and no bound is larger than it need be
        longest = np.max(lengths[np.stack(evaluated)], 0).reshape(4, -1).max(1)
        np.testing.assert_array_equal(longest, bounds[:: BATCH_SIZE // 4])


def test_large_tasks_do_not_overflow():
    num_train = jnp.int32(2**25 - BATCH_SIZE)
    rows = np.asarray(_training_rows(jnp.uint32(1), jnp.int32(9), num_train))
    np.testing.assert_array_equal(rows // (2**18 - 1), np.arange(BATCH_SIZE))


def test_cross_entropy_equals_optax():
    logits = 3 * jax.random.normal(jax.random.key(0), (6, 4))
    logits = logits.at[:, 3].set(-1e9)  # a class that the task doesn't have
    labels = jnp.array([0, 1, 2, 2, 1, 0])

    def reference(logits):
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    for scale in (1.0, -3.0):
        ours = jax.value_and_grad(lambda x, s=scale: s * cross_entropy(x, labels))(logits)
        theirs = jax.value_and_grad(lambda x, s=scale: s * reference(x))(logits)
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_a_program_equals_a_plain_loop(data):
    """With optax and plain autodiff of the loss, and no dropout; six steps are two epochs."""
    still = {name: 0.0 for name in DESIGN if name.endswith("dropout")}
    recipe, task, seed = recipe_of(6, **still), data[1], jnp.uint32(3)
    outcome, found = PROGRAM(seed, recipe, task)
    hyper = recipe.hyperparameters
    batch = jax.tree.map(lambda x: x[:BATCH_SIZE], task.inputs)
    variables = MODEL.init(seed, batch, None, hyper)

    def tower(name):
        regularized = lambda tree: jax.tree_util.tree_map_with_path(  # noqa: E731
            lambda path, _: path[-1].key in ("kernel", "table"), tree
        )
        rate = optax.linear_schedule(DESIGN[f"{name}_learning_rate"], 0, 6)
        decay = optax.add_decayed_weights(DESIGN[f"{name}_regularization"], regularized)
        return optax.chain(decay, optax.adagrad(rate))

    optimizer = optax.multi_transform(
        {name: tower(name) for name in ("deep", "wide")}, {"deep": "deep", "wide": "wide"}
    )
    params, stats = variables["params"], variables["batch_stats"]
    state = optimizer.init(params)

    @jax.jit
    def step(params, stats, state, rows):
        def loss_fn(params):
            start = {"params": params, "batch_stats": stats}
            batch = jax.tree.map(lambda x: x[rows], task.inputs)
            logits, new = MODEL.apply(start, batch, None, hyper, jnp.uint32(0), True)
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, task.labels[rows])
            return losses.mean(), new

        (loss, stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), stats, state, loss

    for epoch in range(3):
        for rows in rows_of_epoch(jnp.int32(210), epoch, seed=3):
            params, stats, state, loss = step(params, stats, state, rows)
    assert float(outcome.loss) == pytest.approx(float(loss), rel=1e-3)
    expected = {"params": params, "batch_stats": stats}
    assert not found["params"]["deep"]["table"][0].any()  # padding stays as it was
    start = jax.tree.leaves(variables["params"])
    for a, b in zip(start, jax.tree.leaves(found["params"]), strict=True):
        assert (a != b).any()
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-4), found, expected
    )


def test_evaluation_in_the_program_equals_predictions(data):
    """Of all rows, in evaluation: with moving statistics and without dropout."""
    for task, changes in zip(
        data, ({}, {"normalization": "layer", "conv_batch_norm": False}), strict=True
    ):
        # Few steps, so that predictions are neither all right nor all the same.
        recipe = recipe_of(6, **changes)
        outcome, variables = PROGRAM(jnp.uint32(3), recipe, task)
        first, count = int(task.first_evaluation), int(task.num_evaluation)
        inputs, labels = jax.tree.map(
            lambda x, s=slice(first, first + count): x[s], (task.inputs, task.labels)
        )
        tokens = inputs.tokens.values
        inputs = inputs._replace(tokens=Ragged(tokens, tokens.shape[1:]))
        logits = predict(MODEL, variables, inputs, None, recipe.hyperparameters)
        right = logits[:, : int(task.num_classes)].argmax(-1) == labels
        assert 0.3 < right.mean() < 1
        assert float(outcome.accuracy) == pytest.approx(float(right.mean()), abs=1e-6)
        assert int(outcome.num_steps) == 6


def test_classes_of_other_tasks_learn_nothing(data):
    recipe = recipe_of(4, wide_regularization=0.0, deep_regularization=0.0)
    for task, used in zip(data, (2, 3), strict=True):
        _, variables = PROGRAM(jnp.uint32(3), recipe, task)
        bias = variables["params"]["wide"]["bias"]
        assert (bias != 0).tolist() == [i < used for i in range(3)]


def test_evaluation_changes_no_variable(data):
    recipe = recipe_of(4)
    few, many = (
        PROGRAM(jnp.uint32(3), recipe, data[0]._replace(num_evaluation=jnp.int32(n)))
        for n in (1, 160)
    )
    assert float(few[0].loss) == float(many[0].loss)
    jax.tree.map(np.testing.assert_array_equal, few[1], many[1])


def test_children_mapped_at_once_equal_single_ones(data):
    """Of other lengths, tasks and settings each; the last one diverges."""
    diverging = {"optimizer": "sgd", "deep_learning_rate": 1e30}
    recipes = [
        recipe_of(5),
        recipe_of(11, optimizer="adam", deep_learning_rate=0.01, normalization="layer"),
        recipe_of(40, **diverging),
    ]
    children = [
        (jnp.uint32(seed), recipe, data[task])
        for seed, recipe, task in zip((3, 4, 5), recipes, (0, 1, 1), strict=True)
    ]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *children)
    program = jax.jit(jax.vmap(make_program(MODEL, "children"), axis_name="children"))
    together = program(*stacked)
    for i, child in enumerate(children):
        outcome, variables = PROGRAM(*child)
        mapped, its = jax.tree.map(lambda x, i=i: x[i], together)
        assert int(mapped.num_steps) == int(outcome.num_steps)
        if i < 2:
            assert int(outcome.num_steps) == (5, 11)[i]
            assert float(mapped.accuracy) == pytest.approx(float(outcome.accuracy), abs=0.02)
            assert float(mapped.loss) == pytest.approx(float(outcome.loss), rel=1e-3)
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2, atol=1e-3), its, variables
            )
        else:
            assert np.isnan(mapped.accuracy) and np.isnan(outcome.accuracy)
            assert not np.isfinite(mapped.loss) and int(outcome.num_steps) < 10


def test_each_step_has_its_own_dropout(data):
    """The first step's loss, of the same rows, differs by the seed that `mix` makes alone."""
    recipe = recipe_of(1, deep_learning_rate=0.0, wide_learning_rate=0.0)
    outcome, _ = PROGRAM(jnp.uint32(3), recipe, data[0])
    rows = rows_of_epoch(jnp.int32(500), 0, seed=3)[0]
    batch = jax.tree.map(lambda x: x[rows], data[0].inputs)
    hyper = recipe.hyperparameters
    start = MODEL.init(jnp.uint32(3), batch, None, hyper)
    losses = []
    for step in (1, 2):
        step_seed = mix(jnp.uint32(3) ^ mix(jnp.uint32(step)))
        logits, _ = MODEL.apply(start, batch, None, hyper, step_seed, True)
        losses.append(float(cross_entropy(logits[:, :2], data[0].labels[rows])))
    assert float(outcome.loss) == pytest.approx(losses[0], rel=1e-4)
    assert losses[1] != pytest.approx(losses[0], rel=1e-4)


def test_rungs_are_evaluated_on_the_way_and_change_nothing(data):
    for task in data:
        plain, variables = PROGRAM(jnp.uint32(3), recipe_of(9), task)
        assert plain.rungs.shape == (0,)
        recipe = recipe_of(9, rungs=(2, 5, 9, 12), needed=(-np.inf,) * 4)
        outcome, same = PROGRAM(jnp.uint32(3), recipe, task)
        assert float(outcome.accuracy) == float(plain.accuracy)
        assert int(outcome.num_steps) == 9
        assert np.isfinite(outcome.rungs).tolist() == [True, True, False, False]
        jax.tree.map(np.testing.assert_array_equal, variables, same)


def test_a_child_below_a_rung_stops_there(data):
    for task in data:
        passed = PROGRAM(jnp.uint32(3), recipe_of(9, (2, 5, 7), (0.0, 0.0, 0.0)), task)[0].rungs
        assert len(set(passed.tolist())) > 1
        # As good as needed at the first rung, and just below at the second.
        needed = (passed[0], passed[1] + 1e-3, 0.0)
        outcome, variables = PROGRAM(jnp.uint32(3), recipe_of(9, (2, 5, 7), needed), task)
        assert int(outcome.num_steps) == 5
        assert float(outcome.accuracy) == float(passed[1])
        np.testing.assert_array_equal(outcome.rungs, [passed[0], passed[1], np.nan])
        # What was trained so far is what the longer training had at that time.
        start = jax.tree.leaves(PROGRAM(jnp.uint32(3), recipe_of(0), task)[1]["params"])
        moved = zip(start, jax.tree.leaves(variables["params"]), strict=True)
        assert all((a != b).any() for a, b in moved)


def test_divergence_after_a_rung_keeps_its_accuracy(data):
    recipe = recipe_of(9, (1, 4), (0.0, 0.0), deep_learning_rate=1e30, optimizer="sgd")
    outcome, _ = PROGRAM(jnp.uint32(3), recipe, data[0])
    assert np.isnan(outcome.accuracy) and int(outcome.num_steps) < 9
    assert np.isnan(outcome.rungs[1])
