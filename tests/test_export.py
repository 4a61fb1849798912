import json
import os
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import SPACE, make_family, make_task

import mnms_jax
from mnms_jax.artifact import load_artifact, save_artifact
from mnms_jax.children.text import PRESETS, make_text_family
from mnms_jax.controller import make_policy
from mnms_jax.export import TextChild, load_child, save_child
from mnms_jax.saved_controller import SavedController, load_controller, save_controller
from mnms_jax.tasks.embeddings import WordVectors
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.tasks.traits import task_traits
from mnms_jax.training.fit import Request, Trainer
from mnms_jax.transfer import make_bank
from mnms_jax.types import UserError

TASK = make_task("one", 200, num_classes=2, seed=1)
OTHER = make_task("other", 90, num_classes=3, seed=2)


def train_child(embedding="random32", **choices):
    """Returns a trained child as an experiment makes it, and its validation accuracy."""
    words = sorted({word for text in TASK.splits["train"].inputs for word in text.lower().split()})
    table = np.random.default_rng(0).normal(size=(len(words), 6)).astype(np.float32)
    vectors = WordVectors({word: i for i, word in enumerate(words)}, table)
    inputs = TextInputs((TASK, OTHER), PRESETS["cpu"]._replace(length=8), {"mine": vectors})
    family = make_text_family("cpu", {"mine": 6}, subwords=True)
    trainer = Trainer(family, inputs.child_data, num_classes=3)
    base = {d.name: d.choices[0] for d in make_family().space.decisions}
    design = {**base, "embedding": embedding, **choices}
    outcome, variables = trainer.fit(Request(0, "one", 0, design))
    spec = family.make_spec(design)
    return TextChild(
        "one",
        TASK.class_names,
        design,
        spec.architecture,
        spec.hyperparameters,
        inputs.encoder(0, spec.preprocessing),
        inputs.table(0, spec.preprocessing, spec.architecture),
        variables,
    ), float(outcome.accuracy)


DEEP = {
    "hidden_layers": 1,
    "hidden_size": 64,
    "hidden_activation": "tanh",
    "normalization": "batch",
    "hidden_dropout": 0.2,
    "convolution": True,
    "conv_activation": "relu",
    "conv_batch_norm": True,
    "conv_max_ngram": 2,
    "conv_dropout": 0.2,
    "conv_filters": 16,
    "conv_embedding_dropout": 0.2,
}


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"embedding": "mine", "fine_tune": False},
        {"embedding": "mine", "fine_tune": True, "lowercase": False, "strip": False},
        {"embedding": "mine", "fine_tune": False, **DEEP},
        {"embedding": "hashed32"},
        {"embedding": "subwords32"},
    ],
)
def test_a_child_comes_back_and_predicts_the_same(tmp_path, choices):
    child, accuracy = train_child(**choices)
    split = TASK.splits["validation"]
    probabilities = child.predict_proba(split.inputs)
    assert probabilities.shape == (len(split.inputs), 2)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    # What is predicted from raw texts is what was measured in training.
    assert np.mean(probabilities.argmax(1) == split.labels) == pytest.approx(accuracy)
    save_child(tmp_path / "best", child)
    again = load_child(tmp_path / "best")
    np.testing.assert_array_equal(again.predict_proba(split.inputs), probabilities)
    assert again.predict(split.inputs) == [TASK.class_names[i] for i in probabilities.argmax(1)]
    assert again.decisions == child.decisions and again.task == "one"


def test_texts_of_all_kinds_get_probabilities():
    child, _ = train_child()
    texts = ["", "   ", "?!", "unseen words only", "film " * 500, "日本語", "\x00"]
    assert np.isfinite(child.predict_proba(texts)).all()
    assert child.predict([]) == []


def test_saving_twice_replaces(tmp_path):
    first, _ = train_child()
    second, _ = train_child(samples=128)
    save_child(tmp_path, first)
    save_child(tmp_path, second)
    texts = TASK.splits["test"].inputs
    np.testing.assert_array_equal(
        load_child(tmp_path).predict_proba(texts), second.predict_proba(texts)
    )


def test_no_child_here(tmp_path):
    with pytest.raises(UserError, match="holds no child"):
        load_child(tmp_path)
    (tmp_path / "child.json").write_text("{")
    with pytest.raises(UserError, match="holds no child"):
        load_child(tmp_path)
    with pytest.raises(UserError, match="holds no controller"):
        load_controller(tmp_path)


def test_damaged_arrays_are_noticed(tmp_path):
    """Orbax reads a flipped bit as another number."""
    save_artifact(
        tmp_path / "a", "thing", {"is": 1}, {"w": np.random.default_rng(0).normal(size=999)}
    )
    description, arrays = load_artifact(tmp_path / "a", "thing")
    assert description == {"is": 1} and arrays["w"].shape == (999,)
    largest = max((tmp_path / "a").rglob("*"), key=lambda path: path.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    with pytest.raises(UserError, match="holds no thing that can be read"):
        load_artifact(tmp_path / "a", "thing")


def controller_of(params, *names):
    """Returns a controller whose tasks have three trials each, one of them failed."""
    designs = [{"a": 1}, {"a": 2, "b": True}, {"a": 3, "b": False, "c": "z"}]
    trials = make_bank(SPACE, [list(zip(designs, (0.5, 0.7, None), strict=True)) for _ in names])
    return SavedController(names, SPACE, params, trials, (task_traits(TASK),) * len(names))


def test_a_controller_comes_back(tmp_path, key):
    policy = make_policy(SPACE, 2)
    params = policy.init(key)
    saved = controller_of(params, "one", "two")
    save_controller(tmp_path, saved)
    again = load_controller(tmp_path)
    jax.tree.map(np.testing.assert_array_equal, again.trials, saved.trials)
    assert again.traits == saved.traits and again.skip_connection
    description = json.loads((tmp_path / "controller.json").read_text())
    assert description["versions"]["mnms_jax"] == mnms_jax.__version__
    rewards = description["rewards"]
    assert rewards["two"]["trials"] == 3 and rewards["two"]["failed"] == 1
    best = {"reward": pytest.approx(0.7), "decisions": {"a": 2, "b": True}}
    assert rewards["one"]["best"][0] == best and len(rewards["one"]["best"]) == 2
    assert again.task_names == ("one", "two")
    del description["skip_connection"]  # which older ones don't say
    (tmp_path / "controller.json").write_text(json.dumps(description))
    assert load_controller(tmp_path).skip_connection is None
    assert again.space.fingerprint == SPACE.fingerprint
    restored = make_policy(again.space, 2).sample(again.params, key, jnp.int32(1), 3)
    for a, b in zip(restored, policy.sample(params, key, jnp.int32(1), 3), strict=True):
        np.testing.assert_array_equal(a, b)
    assert jax.tree.structure(again.params) == jax.tree.structure(params)


def test_what_one_device_saved_another_machine_loads(tmp_path, key):
    params = jax.device_put(make_policy(SPACE, 1).init(key), jax.devices()[3])
    save_controller(tmp_path / "c", controller_of(params, "one"))
    code = "import sys, mnms_jax; print(mnms_jax.load_controller(sys.argv[1]).task_names)"
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "c")],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    )
    assert done.stdout == "('one',)\n"


def test_damaged_arrays_are_a_clear_error(tmp_path, key):
    params = make_policy(SPACE, 1).init(key)
    save_controller(tmp_path / "c", controller_of(params, "one"))
    shutil.rmtree(tmp_path / "c" / "arrays")
    with pytest.raises(UserError, match="holds no controller that can be read"):
        load_controller(tmp_path / "c")


@pytest.mark.parametrize("key_of", ["traits", "fingerprint"])
def test_a_controller_of_another_version_is_a_clear_error(tmp_path, key, key_of):
    save_controller(tmp_path / "c", controller_of(make_policy(SPACE, 1).init(key), "one"))
    path = tmp_path / "c" / "controller.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key_of: [{}]}))
    with pytest.raises(UserError, match=r"of this version|fingerprint"):
        load_controller(tmp_path / "c")
