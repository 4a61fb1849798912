import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.bench import make_bench
from mnms_jax.children.image import (
    PRESETS,
    Convolution,
    PixelStatistics,
    _pool,
    augment,
    make_image_family,
    make_image_model,
)
from mnms_jax.config import Config
from mnms_jax.controller import make_random_policy
from mnms_jax.export import load_child, save_child
from mnms_jax.tasks.image_inputs import ImageInputs
from mnms_jax.tasks.registry import load_tasks
from mnms_jax.training.fit import Request, Trainer
from mnms_jax.types import UserError

DESIGN = {
    "shift": 0,
    "flip": False,
    "blocks": 2,
    "filters": 8,
    "kernel_size": 3,
    "pooling": "max",
    "skip": False,
    "conv_activation": "relu",
    "conv_batch_norm": False,
    "conv_dropout": 0.0,
    "readout": "flat",
    "hidden_layers": 0,
    "optimizer": "adam",
    "learning_rate": 0.01,
    "schedule": "linear",
    "regularization": 0.0,
    "samples": 10_000,
}
HIDDEN = {
    "hidden_layers": 1,
    "hidden_size": 64,
    "hidden_activation": "swish",
    "normalization": "layer",
    "hidden_dropout": 0.2,
}


def random_images(key, shape=(3, 7, 6, 2)):
    return jax.random.uniform(key, shape, minval=0.5)


def test_augment_leaves_images_alone_if_not_asked(key):
    x = random_images(key)
    np.testing.assert_array_equal(augment(x, jnp.uint32(1), jnp.float32(0), jnp.float32(0)), x)


def shifted(image, down, right):
    """Returns the image whose pixel (i, j) is (i + down, j + right) of another, or zero."""
    height, width = image.shape[:2]
    big = np.pad(image, ((9, 9), (9, 9), (0, 0)))
    return big[9 + down : 9 + down + height, 9 + right : 9 + right + width]


def test_augment_moves_and_mirrors_each_image_by_itself(key):
    x = np.asarray(random_images(key, (40, 7, 6, 2)))
    found = np.asarray(augment(jnp.asarray(x), jnp.uint32(1), jnp.float32(2), jnp.float32(1)))
    seen = set()
    for image, moved in zip(x, found, strict=True):
        places = [
            (down, right, mirrored)
            for down in range(-2, 3)
            for right in range(-2, 3)
            for mirrored in (False, True)
            if np.array_equal(moved, mirror_and_shift(image, down, right, mirrored))
        ]
        assert len(places) == 1
        seen |= set(places)
    assert {place[2] for place in seen} == {False, True}
    assert {place[0] for place in seen} == {place[1] for place in seen} == {-2, -1, 0, 1, 2}


def mirror_and_shift(image, down, right, mirrored):
    """Columns are counted from the other side first, and moved then."""
    if not mirrored:
        return shifted(image, down, right)
    return shifted(image, down, -right)[:, ::-1]


@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_convolution_is_one(key, size, stride):
    x = random_images(key, (2, 8, 6, 3))
    module = Convolution(4, size, stride)
    variables = module.init(key, x, jnp.uint32(3))
    kernel = variables["params"]["kernel"].reshape(size, size, 3, 4)
    border = size // 2
    expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        ((border, border - stride + 1), (border, border - stride + 1)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )
    np.testing.assert_allclose(module.apply(variables, x, jnp.uint32(3)), expected, atol=1e-5)


@pytest.mark.parametrize(("kind", "function"), [("max", np.max), ("mean", np.mean)])
def test_pooling_takes_fields_of_four(key, kind, function):
    x = np.asarray(random_images(key, (2, 4, 6, 3)))
    expected = [[function(x[:, i : i + 2, j : j + 2], (1, 2)) for j in (0, 2, 4)] for i in (0, 2)]
    np.testing.assert_allclose(_pool(x, kind), np.array(expected).transpose(2, 0, 1, 3), rtol=1e-6)


def test_every_choice_changes_its_part_of_the_spec():
    """Nothing that can be decided is ignored."""
    family = make_image_family()
    base = family.make_spec({**DESIGN, **HIDDEN})
    for decision in family.space.decisions:
        for choice in decision.choices:
            design = {**DESIGN, **HIDDEN, decision.name: choice}
            spec = family.make_spec(design)
            same = jax.tree.all(jax.tree.map(np.array_equal, spec, base))
            # Hidden layers share programs, being padded; how many units there are is an input.
            assert same == (choice == {**DESIGN, **HIDDEN}[decision.name]), (decision.name, choice)


@pytest.mark.parametrize("preset", PRESETS)
def test_any_design_gives_finite_logits_and_gradients(preset, key):
    family = make_image_family(preset)
    batch = np.random.default_rng(0).integers(256, size=(4, 11, 11, 1), dtype=np.uint8)
    statistics = PixelStatistics(jnp.full(1, 127.0), jnp.full(1, 73.0))
    policy = make_random_policy(family.space)
    for actions in np.asarray(policy.sample({}, key, jnp.int32(0), 12).actions):
        spec = family.make_spec(family.space.decode(actions))
        model = make_image_model(spec.architecture, 3)
        variables = model.init(jnp.uint32(1), batch, statistics, spec.hyperparameters)
        assert set(variables["params"]) == set(spec.optimizers)

        def loss(params, spec=spec, model=model, variables=variables):
            known = {**variables, "params": params}
            return jnp.sum(
                model.apply(
                    known, batch, statistics, spec.hyperparameters, jnp.uint32(2), jnp.array(True)
                )[0]
                ** 2
            )

        value, gradients = jax.value_and_grad(loss)(variables["params"])
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() and np.any(g) for g in jax.tree.leaves(gradients)), spec


def make_inputs():
    return ImageInputs(load_tasks(["digits"]), PRESETS["cpu"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {**HIDDEN, "shift": 1, "conv_batch_norm": True, "skip": True, "conv_dropout": 0.2},
        {"pooling": "stride", "readout": "mean", "conv_activation": "swish", "schedule": "cosine"},
    ],
)
def test_children_learn_digits_and_come_back(tmp_path, changes):
    bench = make_bench(Config(tasks=("digits",)))
    (task,), inputs = bench.tasks, bench.inputs
    design = {**DESIGN, **changes}
    trainer = Trainer(bench.family, inputs.child_data, num_classes=inputs.num_classes)
    outcome, variables = trainer.fit(Request(0, "digits", 0, design))
    assert outcome.accuracy > 0.85
    child = bench.make_child(0, design, variables)
    split = task.splits["validation"]
    probabilities = child.predict_proba(split.inputs)
    # What is predicted from images as they are is what was measured in training.
    assert np.mean(probabilities.argmax(1) == split.labels) == pytest.approx(outcome.accuracy)
    save_child(tmp_path / "best", child)
    again = load_child(tmp_path / "best")
    np.testing.assert_array_equal(again.predict_proba(split.inputs), probabilities)
    assert again.predict(split.inputs[:3]) == child.predict(split.inputs[:3])
    assert again.decisions == design
    assert child.predict(split.inputs[:0]) == []
    with pytest.raises(
        UserError, match=r"images of shape \[2, 8, 8\]: must be \[N, H, W, 1 or 1\]"
    ):
        child.predict(split.inputs[:2, ..., 0])


def test_an_unknown_preset():
    with pytest.raises(UserError, match="space 'huge' is unknown"):
        make_image_family("huge")
