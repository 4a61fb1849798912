import jax
import numpy as np
import pytest

from mnms_jax.bench import make_bench
from mnms_jax.children.mlp import PRESETS, make_record_family
from mnms_jax.config import Config
from mnms_jax.export import load_child, save_child
from mnms_jax.training.fit import Request
from mnms_jax.types import UserError

DESIGN = {
    "scaling": "standard",
    "input_dropout": 0.0,
    "hidden_layers": 0,
    "optimizer": "adam",
    "learning_rate": 0.01,
    "schedule": "linear",
    "regularization": 0.0,
    "samples": 20_000,
}
HIDDEN = {
    "hidden_layers": 2,
    "hidden_size": 64,
    "hidden_activation": "swish",
    "normalization": "batch",
    "hidden_dropout": 0.1,
    "linear": True,
}


@pytest.mark.parametrize("preset", PRESETS)
def test_every_choice_changes_its_part_of_the_spec(preset):
    """Nothing that can be decided is ignored."""
    family = make_record_family(preset)
    base = {**DESIGN, **HIDDEN}
    spec = family.make_spec(base)
    for decision in family.space.decisions:
        for choice in decision.choices:
            other = family.make_spec({**base, decision.name: choice})
            same = jax.tree.all(jax.tree.map(np.array_equal, other, spec))
            assert same == (choice == base[decision.name]), (decision.name, choice)


@pytest.mark.parametrize(
    "changes",
    [{}, HIDDEN, {**HIDDEN, "scaling": "normal", "input_dropout": 0.1, "linear": False}],
)
def test_children_learn_records_and_come_back(tmp_path, changes):
    bench = make_bench(Config(tasks=("breast_cancer", "wine")))
    task = bench.tasks[0]
    design = {**DESIGN, **changes}
    outcome, variables = bench.trainer.fit(Request(0, task.name, 0, design))
    assert outcome.accuracy > 0.9
    child = bench.make_child(0, design, variables)
    split = task.splits["validation"]
    probabilities = child.predict_proba(split.inputs)
    # What is predicted from records as they are is what was measured in training.
    assert np.mean(probabilities.argmax(1) == split.labels) == pytest.approx(outcome.accuracy)
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-5)
    save_child(tmp_path / "best", child)
    again = load_child(tmp_path / "best")
    np.testing.assert_array_equal(again.predict_proba(split.inputs), probabilities)
    assert again.predict(split.inputs) == child.predict(split.inputs)
    empty = {name: column[:0] for name, column in split.inputs.items()}
    assert again.predict(empty) == []
    with pytest.raises(UserError, match="column 'mean radius' is missing"):
        again.predict({"mean radiuss": split.inputs["mean radius"]})


def test_children_of_categories_alone_come_back(tmp_path):
    rows = "".join(f"{'xy'[i % 2]},{'pqrst'[i % 5]},k{i % 7},{i % 2}\n" for i in range(70))
    (tmp_path / "a.csv").write_text(f"one,two,three,label\n{rows}{rows}")
    bench = make_bench(Config(tasks=(f"mine={tmp_path / 'a.csv'}",)))
    outcome, variables = bench.trainer.fit(Request(0, "mine", 0, DESIGN))
    assert outcome.accuracy == 1
    save_child(tmp_path / "best", bench.make_child(0, DESIGN, variables))
    again = load_child(tmp_path / "best")
    new = {"one": ["x", "y"], "two": ["p", "never seen"], "three": ["k1", None]}
    assert again.predict(new) == ["0", "1"]
    with pytest.raises(UserError, match="equally long"):
        again.predict({**new, "two": ["p"]})


def test_a_child_does_not_depend_on_what_is_searched_beside_it(tmp_path):
    """Features that pad are none that the initial weights are scaled by."""
    columns = [f"c{i}" for i in range(60)]
    rows = "\n".join(
        ",".join(map(str, [*((i * j) % 7 for j in range(60)), i % 2])) for i in range(90)
    )
    (tmp_path / "wide.csv").write_text(",".join([*columns, "label"]) + "\n" + rows)
    design, losses = {**DESIGN, **HIDDEN, "normalization": "none", "samples": 200_000}, []
    for others in ((), (f"wide={tmp_path / 'wide.csv'}",)):
        bench = make_bench(Config(tasks=("iris", *others)))
        outcome, _ = bench.trainer.fit(Request(0, "iris", 0, {**design, "linear": False}))
        losses.append(float(outcome.loss))
    assert losses[0] == pytest.approx(losses[1], rel=1e-2)


def test_numbers_are_asked_for():
    bench = make_bench(Config(tasks=("iris",)))
    _, variables = bench.trainer.fit(Request(0, "iris", 0, DESIGN))
    child = bench.make_child(0, DESIGN, variables)
    columns = {name: ["5", ""] for name in child.encoder.numbers}
    assert len(child.predict(columns)) == 2
    with pytest.raises(UserError, match=r"must be of numbers: could not convert.*'big'"):
        child.predict({**columns, child.encoder.numbers[0]: ["5", "big"]})


def test_an_unknown_preset():
    with pytest.raises(UserError, match="space 'huge' is unknown"):
        make_record_family("huge")
