"""How the labels of further texts of TFDS become classes, and which rows are read."""

import numpy as np
import pytest
import tfds_data
from tfds_data import PACKAGED, failure, load

from mnms_jax.tasks import tfds
from mnms_jax.tasks.tfds_specs import TFDS_TASKS

WORDS = ("amber", "birch", "cedar", "dune", "ember", "fjord")


def texts(number, first=0):
    return [f"{WORDS[i % 6]} number {i}" for i in range(first, first + number)]


@pytest.fixture
def write(tmp_path):
    """Prepares a data set of texts: its features, and the values of each example by split."""

    def write_to(dataset, features, **splits):
        import tensorflow_datasets as real_tfds

        (text,) = [name for name in features if features[name] is str]
        features = {**features, text: real_tfds.features.Text()}
        examples = {
            split: [dict(zip(features, row, strict=True)) for row in rows]
            for split, rows in splits.items()
        }
        tfds_data.write(tmp_path, dataset, features, examples)
        return tmp_path

    return write_to


def by_text(task):
    return {
        text: task.class_names[label]
        for split in task.splits.values()
        for text, label in zip(split.inputs, split.labels.tolist(), strict=True)
    }


def test_of_several_flags_the_only_true_one_is_the_class(write):
    flags = {"anger": np.bool_, "joy": np.bool_, "neutral": np.bool_}
    rows = [(text, i % 3 == 0, i % 3 == 1, i % 3 == 2) for i, text in enumerate(texts(60))]
    rows[:3] = [(rows[0][0], True, True, False), (rows[1][0], False, False, False), rows[2]]
    path = write(
        "goemotions",
        {"comment_text": str, **flags},
        train=rows[:40],
        validation=rows[40:50],
        test=rows[50:],
    )
    task = load("goemotions", path)
    assert task.class_names == ("anger", "joy", "neutral")
    found = by_text(task)
    assert found == {row[0]: task.class_names[row[1:].index(True)] for row in rows[2:]}
    assert [len(split.labels) for split in task.splits.values()] == [38, 10, 10]


def test_fractions_are_cut_at_a_half(write):
    rows = [(text, "", i / 49, 0.0) for i, text in enumerate(texts(50))]
    features = {"text": str, "id": np.str_, "toxicity": np.float32, "insult": np.float32}
    path = write(
        "civil_comments/CivilComments",
        features,
        train=rows[::2],
        validation=rows[1::4],
        test=rows[3::4],
    )
    task = load("civil_comments", path)
    assert task.class_names == ("other", "toxicity")
    expected = {text: ("other", "toxicity")[share >= 0.5] for text, _, share, _ in rows}
    assert by_text(task) == expected and len(task.splits["train"].labels) == 25


def test_numbers_beyond_one_are_classes_of_their_own(write):
    rows = [(text, float(i % 5 + 1)) for i, text in enumerate(texts(60))]
    path = write("stars", {"text": str, "label": np.float32}, train=rows[:50], test=rows[50:])
    assert load("tfds:stars", path).class_names == ("1.0", "2.0", "3.0", "4.0", "5.0")


def test_texts_are_classes_and_validation_is_as_published(write):
    rows = [(text, i % 3, f"intent {i % 3}") for i, text in enumerate(texts(60))]
    # What is held out isn't learned from, and what is tested is in no other part.
    path = write(
        "clinc_oos",
        {"text": str, "intent": np.int32, "intent_name": np.str_},
        train=rows[:45],
        validation=rows[40:50] + rows[51:52],
        test=rows[50:],
    )
    task = load("clinc150", path)
    assert task.class_names == ("intent 0", "intent 1", "intent 2")
    parts = {part: set(split.inputs) for part, split in task.splits.items()}
    assert parts == {
        "train": set(texts(40)),
        "validation": set(texts(10, 40)),
        "test": set(texts(10, 50)),
    }


def test_a_set_without_a_test_split(write):
    rows = [(text, i % 2) for i, text in enumerate(texts(60))]
    path = write("single", {"text": str, "label": np.int32}, train=rows)
    fault = "has no rows in the split 'test'; known: train; ?test=train holds out a tenth"
    assert fault in failure("tfds:single", path)
    task = load("tfds:single?test=train", path)
    assert [len(split.labels) for split in task.splits.values()] == [48, 6, 6]
    assert len(by_text(task)) == 60


def test_labels_that_are_no_class_a_row_are_refused(write):
    import tensorflow_datasets as real_tfds

    rows = [(text, [i % 2, 1], True, i % 2) for i, text in enumerate(texts(6))]
    features = {
        "text": str,
        "labels": real_tfds.features.Sequence(np.int32),
        "flag": np.bool_,
        "label": np.int32,
    }
    path = write("several", features, train=rows[:4], test=rows[4:])
    fault = failure("tfds:several?label=labels", path)
    assert "'labels' of the data set in " in fault and "not one label a row" in fault
    fault = failure("tfds:several?label=*", path)
    assert "?label=* is for two flags or more, of which the data set in " in fault
    assert fault.endswith("has 1; name one of its features flag, label, labels, text")


@pytest.mark.parametrize("name", sorted(TFDS_TASKS))
def test_all_names_are_those_of_tfds(name, tmp_path):
    import tensorflow_datasets as real_tfds
    import tensorflow_datasets.text

    spec = TFDS_TASKS[name]
    dataset, _, config = spec.dataset.partition("/")
    builder = real_tfds.builder_cls(dataset)
    assert not config or config in [own.name for own in builder.BUILDER_CONFIGS]
    try:
        features = real_tfds.builder(spec.dataset, data_dir=tmp_path).info.features
    except ModuleNotFoundError:  # these two describe themselves with TensorFlow's types
        assert dataset in ("goemotions", "wikipedia_toxicity_subtypes")
        return
    assert {spec.text or spec.image or "text", spec.label} <= {*features} or (
        {"image", spec.label} <= {*features} and "text" not in features
    )
    if spec.named:
        label = features[spec.label]
        assert isinstance(label, real_tfds.features.ClassLabel)
        assert name in ("cifar10", "cifar100") or label._str2int is not None


def test_a_sample_of_train_is_read(write, monkeypatch, caplog):
    from tensorflow_datasets.core.data_sources import base

    rows = [(text, i % 2) for i, text in enumerate(texts(300))]
    path = write("large", {"text": str, "label": np.int32}, train=rows[:200], test=rows[200:])
    read = []
    getitems = base.BaseDataSource.__getitems__
    monkeypatch.setattr(
        base.BaseDataSource,
        "__getitems__",
        lambda source, keys: read.append(len(keys)) or getitems(source, keys),
    )

    def sampled(most):
        return tfds.load_tfds_task("tfds:large", str(path), PACKAGED, most)

    with caplog.at_level("INFO", logger="absl"):
        task = sampled(50)
    assert read == [50, 100]
    assert "train: a sample of 50 of its 200 rows is read" in caplog.text
    assert [len(split.labels) for split in task.splits.values()] == [45, 5, 100]
    whole = by_text(sampled(None))
    assert by_text(task).items() <= whole.items() and len(whole) == 300
    again, other = sampled(50), sampled(51)
    assert again.splits["train"].inputs == task.splits["train"].inputs
    assert other.splits["test"].inputs == task.splits["test"].inputs
