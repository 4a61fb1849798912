import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import scipy.stats
from sklearn.preprocessing import QuantileTransformer

from mnms_jax.bench import make_bench
from mnms_jax.children.mlp import RecordPreprocessing
from mnms_jax.config import Config
from mnms_jax.tasks.record_inputs import RecordInputs
from mnms_jax.tasks.records import (
    BUNDLED_TASKS,
    encode_records,
    fit_record_encoder,
    is_feature,
    make_record_task,
    to_column,
)
from mnms_jax.tasks.reference import Reference, fit_reference
from mnms_jax.tasks.registry import load_tasks
from mnms_jax.tasks.traits import task_traits
from mnms_jax.types import Split, Task, UserError

STANDARD, NORMAL = RecordPreprocessing("standard"), RecordPreprocessing("normal")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["1", " 2.5", "", "-1e3"], [1, 2.5, math.nan, -1000]),
        ([1, None, 2.5, math.nan], [1, math.nan, 2.5, math.nan]),
        (["1", "inf", "nan", "1e200"], [1, math.nan, math.nan, math.nan]),
        (["1", "NA", "?", "null", "-"], [1, math.nan, math.nan, math.nan, math.nan]),
        (["a", "NA", "?"], ["a", "", ""]),
        (["1", "two", ""], ["1", "two", ""]),
        ([True, "TRUE", "False", None], ["true", "true", "false", ""]),
        (["", None], ["", ""]),
    ],
)
def test_a_column_is_of_numbers_or_of_texts(values, expected):
    found = to_column(values)
    assert (found.dtype == object) == isinstance(expected[0], str)
    np.testing.assert_array_equal(found, np.array(expected, found.dtype))


def test_a_column_is_what_it_is_said_to_be():
    assert to_column(["1", "2"], False).tolist() == ["1", "2"]
    np.testing.assert_array_equal(to_column(["", None], True), [math.nan, math.nan])
    with pytest.raises(ValueError, match="two"):
        to_column(["1", "two"], True)
    with pytest.raises(ValueError, match="True"):
        to_column([True], True)


def test_what_can_be_learned_from():
    assert is_feature(np.arange(5.0))
    assert is_feature(np.array(["a", "b", "a", ""], object))
    assert not is_feature(np.array(["a", "a", ""], object))  # all alike
    assert not is_feature(np.array([f"name {i}" for i in range(9)], object))


def test_numbers_are_scaled_by_the_training_records_alone():
    train = {"x": np.array([1.0, 3.0, math.nan, 5.0])}
    encoder = fit_record_encoder(train, STANDARD)
    found = encode_records(encoder, {"x": np.array([3.0, 5.0, math.nan, 1e9])})
    deviation = np.std([1, 3, 5])
    expected = [[0, 1], [2 / deviation, 1], [0, 0], [10, 1]]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found.dtype == np.float32 and encoder.num_features == 2


def test_ranks_become_normal_and_equal_numbers_share_one():
    rng = np.random.default_rng(0)
    column = np.concatenate([np.exp(rng.normal(size=500)), np.zeros(300)])
    encoder = fit_record_encoder({"x": column}, NORMAL)
    found = encode_records(encoder, {"x": column})[:, 0]
    theirs = QuantileTransformer(n_quantiles=101, output_distribution="normal")
    expected = theirs.fit_transform(column[:, None])[:, 0]
    inside = np.abs(expected) < 2
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-5)
    assert len(set(found[column == 0])) == 1
    most = -scipy.stats.norm.ppf(1 / 202)
    assert found.max() == pytest.approx(most, rel=1e-5)
    beyond = encode_records(encoder, {"x": np.array([-9.0, 1e9])})[:, 0]
    np.testing.assert_allclose(beyond, [-most, most], rtol=1e-5)


@pytest.mark.parametrize("preprocessing", [STANDARD, NORMAL])
def test_columns_without_any_difference_or_number_do_no_harm(preprocessing):
    train = {"same": np.full(9, 7.0), "none": np.full(9, math.nan), "c": np.array([""] * 9, object)}
    encoder = fit_record_encoder(train, preprocessing)
    assert np.isfinite(encode_records(encoder, train)).all()


def test_categories_are_the_commonest_texts():
    column = np.array(["b"] * 3 + ["a"] * 2 + ["", "a", "c"], object)
    encoder = fit_record_encoder({"c": column}, STANDARD)
    assert encoder.categories == (("c", ("a", "b", "c")),)
    found = encode_records(encoder, {"c": np.array(["b", "unseen", "", "a"], object)})
    assert found.tolist() == [[0, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
    many = np.array([f"text {i % 60}" for i in range(200)], object)
    assert fit_record_encoder({"c": many}, STANDARD).num_features == 50


def make_records(number, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(2, size=number).astype(np.int32)
    x = np.round(rng.normal(labels * 2.0), 1)
    return Split({"x": x, "c": np.array([f"kind{i % 3}" for i in range(number)], object)}, labels)


def test_equal_rows_are_in_one_part_and_none_is_lost():
    train = make_records(400)
    task = make_record_task("mine", {"train": train}, ("no", "yes"))
    rows = {
        part: list(zip(*(c.tolist() for c in split.inputs.values()), strict=True))
        for part, split in task.splits.items()
    }
    assert sum(map(len, rows.values())) == 400
    assert len(set(rows["train"])) < len(rows["train"])  # there are repeats
    assert not set(rows["train"]) & set(rows["test"])
    assert not set(rows["validation"]) & {*rows["train"], *rows["test"]}
    assert 0.05 < len(rows["test"]) / 400 < 0.15
    again = make_record_task("mine", {"train": train}, ("no", "yes"))
    np.testing.assert_array_equal(again.splits["test"].inputs["x"], task.splits["test"].inputs["x"])


def rows_of(split):
    return list(zip(*(column.tolist() for column in split.inputs.values()), strict=True))


def test_what_is_held_out_is_not_learned_from():
    test, validation = make_records(30, seed=1), make_records(200, seed=2)
    given = {"train": make_records(400), "validation": validation, "test": test}
    assert set(rows_of(given["train"])) & set(rows_of(test))
    task = make_record_task("mine", given, ("no", "yes"))
    assert task.splits["test"] is test and list(task.splits) == ["train", "validation", "test"]
    rows = {part: set(rows_of(split)) for part, split in task.splits.items()}
    assert not rows["train"] & (set(rows_of(validation)) | rows["test"])
    assert rows["validation"] == set(rows_of(validation)) - rows["test"]
    assert rows["train"] == set(rows_of(given["train"])) - set(rows_of(validation)) - rows["test"]
    alone = make_record_task("mine", {"train": given["train"], "test": test}, ("no", "yes"))
    assert not set(rows_of(alone.splits["validation"])) & rows["test"]
    with pytest.raises(UserError, match="leave nothing for train"):
        make_record_task("mine", {"train": test, "test": test}, ("no", "yes"))


def test_the_order_of_rows_changes_no_part():
    train = make_records(300)
    order = np.random.default_rng(5).permutation(300)
    turned = Split({k: v[order] for k, v in train.inputs.items()}, train.labels[order])
    tasks = [make_record_task("mine", {"train": t}, ("no", "yes")) for t in (train, turned)]
    for part, split in tasks[0].splits.items():
        assert sorted(rows_of(split)) == sorted(rows_of(tasks[1].splits[part]))


def test_too_little_to_learn_from():
    with pytest.raises(UserError, match="leave nothing for validation; a class needs 6 rows"):
        make_record_task("mine", {"train": make_records(4)}, ("no", "yes"))
    same = make_records(100)._replace(labels=np.zeros(100, np.int32))
    with pytest.raises(UserError, match="all its training rows are of one class"):
        make_record_task("mine", {"train": same}, ("no", "yes"))


def test_the_reference_bears_a_class_of_one_row_in_many():
    labels = np.append(np.arange(11_000) % 2, 2).astype(np.int32)
    split = Split({"x": labels + np.linspace(0, 0.5, len(labels))}, labels)
    few = Split({"x": split.inputs["x"][:50]}, labels[:50])
    task = Task("mine", {"train": split, "validation": few, "test": few}, tuple("abc"), "record")
    assert fit_reference(task) == Reference("gradient boosting", 1.0, 1.0)


@pytest.mark.parametrize("name", BUNDLED_TASKS)
def test_what_scikit_learn_brings_along(name):
    (task,) = load_tasks([name])
    assert task.kind == "record"
    sizes = {"iris": (150, 3, 4), "wine": (178, 3, 13), "breast_cancer": (569, 2, 30)}[name]
    number = sum(len(split.labels) for split in task.splits.values())
    assert (number, task.num_classes, len(task.splits["train"].inputs)) == sizes
    traits = task_traits(task)
    assert (traits.mean_words, traits.words) == (sizes[2], ())


def test_features_of_several_tasks_are_padded_to_one_number():
    tasks = load_tasks(["iris", "wine"])
    inputs = RecordInputs(tasks)
    bench = make_bench(Config(tasks=("iris", "wine")))
    design = {d.name: d.choices[0] for d in bench.family.space.decisions}
    spec = bench.family.make_spec(design)
    first, second = (inputs.child_data(task_id, spec) for task_id in range(2))
    assert first.inputs.shape == second.inputs.shape == (142 + 18, 26)
    assert not np.any(first.inputs[:, 8:]) and inputs.num_classes == 3
    own = encode_records(inputs.encoder(0, spec), tasks[0].splits["train"].inputs)
    np.testing.assert_array_equal(first.inputs[: len(own), :8], own)
    assert inputs.digests["iris"] != inputs.digests["wine"]


def write(path, rows):
    path.write_text("\n".join(",".join(map(str, row)) for row in rows) + "\n")


def test_a_file_without_a_text_is_of_records(tmp_path, caplog):
    caplog.set_level("INFO")
    rng = np.random.default_rng(0)
    rows = [
        (f"id{i}", round(rng.normal() + i % 2, 3), "" if i % 9 == 0 else f"k{i % 4}", "ab"[i % 2])
        for i in range(120)
    ]
    write(tmp_path / "a.csv", [("id", "size", "kind", "label"), *rows])
    others = [(f"other{i}", i / 7, "", "ab"[i % 2]) for i in range(40)]
    write(tmp_path / "b.csv", [("id", "size", "kind", "label"), *others])
    (task,) = load_tasks([f"mine={tmp_path / 'a.csv'}?test={tmp_path / 'b.csv'}"])
    assert (task.kind, task.class_names) == ("record", ("a", "b"))
    assert set(task.splits["train"].inputs) == {"size", "kind"}
    assert "'id' isn't learned from" in caplog.text
    assert task.splits["test"].inputs["kind"].tolist() == [""] * 40
    assert "'label' is the label, size, kind are learned from" in caplog.text


def test_columns_must_be_the_same_in_all_files(tmp_path):
    rows = [(i / 7, i % 2) for i in range(60)]
    write(tmp_path / "a.csv", [("size", "label"), *rows])
    write(tmp_path / "b.csv", [("weight", "label"), *rows])
    write(tmp_path / "c.csv", [("size", "label"), *rows, ("large", 1)])
    with pytest.raises(UserError, match="no column 'size'"):
        load_tasks([f"mine={tmp_path / 'a.csv'}?test={tmp_path / 'b.csv'}"])
    with pytest.raises(UserError, match=r"c.csv: not all of its 'size' are numbers.*'large'"):
        load_tasks([f"mine={tmp_path / 'a.csv'}?test={tmp_path / 'c.csv'}"])
    write(tmp_path / "d.csv", [("size", "label"), *(("", i % 2) for i in range(9))])
    (task,) = load_tasks([f"mine={tmp_path / 'a.csv'}?test={tmp_path / 'd.csv'}"])
    assert np.isnan(task.splits["test"].inputs["size"]).all()


def test_a_column_of_numbers_is_no_text_whatever_its_name(tmp_path):
    write(tmp_path / "a.csv", [("content", "label"), *((i / 7, i % 2) for i in range(60))])
    (task,) = load_tasks([f"mine={tmp_path / 'a.csv'}"])
    assert task.kind == "record"


def test_half_a_character_is_refused(tmp_path):
    rows = [json.dumps({"kind": "ab"[i % 2], "label": i % 2}) for i in range(60)]
    rows.append('{"kind": "\\ud800", "label": 1}')
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="row 61 has half a character"):
        load_tasks([f"mine={tmp_path / 'a.jsonl'}"])
    rows = [json.dumps({"\ud800": i / 7, "label": i % 2}) for i in range(60)]  # a name
    (tmp_path / "a.jsonl").write_text("\n".join(rows))
    with pytest.raises(UserError, match="row 1 has half a character"):
        load_tasks([f"mine={tmp_path / 'a.jsonl'}"])


def test_a_text_under_another_name_is_asked_for(tmp_path):
    rows = [(f"number {i} is here", i % 2) for i in range(60)]
    write(tmp_path / "a.csv", [("said", "label"), *rows])
    with pytest.raises(UserError, match=r"columns said is the text\? Say \?text=COLUMN"):
        load_tasks([f"mine={tmp_path / 'a.csv'}"])


def test_a_file_is_said_to_be_of_records(tmp_path):
    rows = [(f"model {i % 7}", i / 9, i % 2) for i in range(60)]
    write(tmp_path / "a.csv", [("title", "price", "label"), *rows])
    entry = f"mine={tmp_path / 'a.csv'}"
    with pytest.raises(UserError, match="none of its texts is left to learn from"):
        load_tasks([entry])  # as titles are texts
    (task,) = load_tasks([f"{entry}?text=none"])
    assert (task.kind, set(task.splits["train"].inputs)) == ("record", {"title", "price"})
    write(tmp_path / "b.csv", [("none", "label"), *((f"text {i}", i % 2) for i in range(60))])
    assert load_tasks([f"mine={tmp_path / 'b.csv'}?text=none"])[0].kind == "text"


def test_columns_of_types_that_python_lacks_are_not_learned_from(tmp_path, caplog):
    times = pa.array([1_700_000_000_000_000_001 + i for i in range(60)], pa.timestamp("ns"))
    table = pa.table({"seen": times, "size": np.arange(60) / 7, "label": np.arange(60) % 2})
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    (task,) = load_tasks([f"mine={tmp_path / 'a.parquet'}"])
    assert set(task.splits["train"].inputs) == {"size"}
    assert "'seen' isn't learned from: cannot use " in caplog.text
    with pytest.raises(UserError, match="its column 'seen' cannot be read"):
        load_tasks([f"mine={tmp_path / 'a.parquet'}?label=seen"])
