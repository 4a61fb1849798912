"""The data are made by TFDS itself in the real feature specs."""

import collections
import json
import re
import shutil

import numpy as np
import pytest
import tfds_data
from tfds_data import NUM_ROWS, PACKAGED, failure, load, pairs, refused_url

from mnms_jax.tasks import tfds
from mnms_jax.tasks.text import normalize
from mnms_jax.tasks.tfds_specs import TFDS_TASKS
from mnms_jax.types import UserError

ROWS = {
    "sst2": (tfds_data.sst2_rows(NUM_ROWS)["train"], tfds_data.sst2_rows(NUM_ROWS)["validation"]),
    "imdb": (tfds_data.imdb_rows(NUM_ROWS)["train"], tfds_data.imdb_rows(NUM_ROWS)["test"]),
}


@pytest.fixture
def sst2_copy(tfds_dir, tmp_path):
    """A folder of one version of glue/sst2 that may be spoiled."""
    folder = tmp_path / "glue" / "sst2" / "2.0.0"
    shutil.copytree(tfds_dir / "glue" / "sst2" / "2.0.0", folder)
    return folder


@pytest.fixture
def no_network(monkeypatch):
    for name, spec in list(TFDS_TASKS.items()):
        monkeypatch.setitem(TFDS_TASKS, name, spec._replace(url=refused_url()))


def decoded(text):
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text


@pytest.mark.parametrize(
    ("name", "class_names"), [("sst2", ("negative", "positive")), ("imdb", ("neg", "pos"))]
)
def test_shapes_and_class_names(tfds_dir, name, class_names):
    task = load(name, tfds_dir)
    assert task.name == name
    assert task.class_names == class_names
    assert list(task.splits) == ["train", "validation", "test"]
    sizes = {part: len(split.inputs) for part, split in task.splits.items()}
    assert sizes == {"train": 90, "validation": 10, "test": len(ROWS[name][1])}
    for split in task.splits.values():
        assert split.labels.shape == (len(split.inputs),)
        assert split.labels.dtype == np.int32
        assert set(split.labels.tolist()) == {0, 1}
        assert all(type(text) is str for text in split.inputs)


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_train_and_validation_are_the_distinct_rows_of_train_not_in_test(tfds_dir, name):
    task = load(name, tfds_dir)
    found = pairs(task.splits["train"]) + pairs(task.splits["validation"])
    clean = ROWS[name][0][:NUM_ROWS]  # the writer puts the rows to be dropped behind these
    assert len(ROWS[name][0]) > NUM_ROWS
    assert collections.Counter((text.lower(), label) for text, label in found) == (
        collections.Counter((text.lower(), label) for text, label in clean)
    )


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_test_split_is_as_published(tfds_dir, name):
    expected = collections.Counter((decoded(text), label) for text, label in ROWS[name][1])
    assert pairs(load(name, tfds_dir).splits["test"]) == expected


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_splits_do_not_overlap(tfds_dir, name):
    splits = load(name, tfds_dir).splits
    keys = {part: {normalize(text) for text in split.inputs} for part, split in splits.items()}
    assert len(set.union(*keys.values())) == sum(len(split.inputs) for split in splits.values())


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_loading_twice_gives_the_same(tfds_dir, name):
    first, second = load(name, tfds_dir), load(name, tfds_dir)
    for part in ("train", "validation", "test"):
        assert first.splits[part].inputs == second.splits[part].inputs
        np.testing.assert_array_equal(first.splits[part].labels, second.splits[part].labels)


def test_bytes_that_are_not_utf8_are_replaced(tfds_dir):
    texts = load("imdb", tfds_dir).splits["test"].inputs
    assert [text[:5] for text in texts if "\ufffd" in text] == ["caf\ufffd "]


def test_the_use_of_the_splits_is_logged(tfds_dir, caplog):
    with caplog.at_level("INFO", logger="absl"):
        load("sst2", tfds_dir)
    assert f"90 of {len(ROWS['sst2'][0])} train rows" in caplog.text
    assert "10 are validation; test is its split validation (25 rows)" in caplog.text


def test_default_folder_is_that_of_tfds(tfds_dir, monkeypatch, no_network, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tfds_dir))
    assert tfds.load_tfds_task("sst2", None, PACKAGED).num_classes == 2
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/tensorflow_datasets/glue/sst2")):
        tfds.load_tfds_task("sst2", None, PACKAGED)


def test_newest_complete_version_is_read(tmp_path):
    tfds_data.write_sst2(tmp_path, num_rows=40, version="2.0.0")
    tfds_data.write_sst2(tmp_path, num_rows=60, version="10.0.0")
    assert len(load("sst2", tmp_path).splits["train"].inputs) == 54
    (tmp_path / "glue/sst2/10.0.0/dataset_info.json").unlink()
    assert len(load("sst2", tmp_path).splits["train"].inputs) == 36


def test_sentiment_words_can_be_learnt(tfds_dir):
    splits = load("sst2", tfds_dir).splits
    votes = collections.Counter()
    for text, label in zip(splits["train"].inputs, splits["train"].labels, strict=True):
        votes.update({word: 2 * int(label) - 1 for word in text.lower().split()})
    guesses = [sum(votes[word] for word in text.split()) > 0 for text in splits["test"].inputs]
    assert np.mean(guesses == splits["test"].labels) > 0.9


def test_unknown_name_is_answered_with_the_known_ones(tmp_path):
    assert "'sst3'" in failure("sst3", tmp_path)
    known = f"{', '.join(sorted(TFDS_TASKS))}, or tfds:NAME/CONFIG"
    assert known in failure("sst3", tmp_path)


def test_any_data_set_can_be_named(tfds_dir):
    task = load("tfds:glue/sst2?text=sentence&test=validation", tfds_dir)
    named = load("sst2", tfds_dir)
    assert task.name == "glue-sst2"
    assert task.class_names == named.class_names
    for part, split in named.splits.items():
        assert task.splits[part].inputs == split.inputs
        np.testing.assert_array_equal(task.splits[part].labels, split.labels)


def test_labels_without_names_are_named_by_their_values(tfds_dir):
    # The running number of a row: as many classes as rows.
    task = load("tfds:glue/sst2?text=sentence&label=idx&test=validation", tfds_dir)
    numbers = sorted({int(name) for name in task.class_names})
    assert task.class_names == tuple(map(str, numbers))
    assert numbers[0] == 0


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ("tfds:glue/sst2?test=validation", "has no feature 'text'; known: "),
        ("tfds:glue/sst2?text=sentense&test=validation", "did you mean 'sentence'?"),
        ("tfds:glue/sst2?text=idx&test=validation", "'idx' of the data set in "),
        ("tfds:glue/sst2?text=sentence", "some rows have no label"),
        ("tfds:glue/sst2?text=sentence&test=tst", "it has no rows in the split 'tst'"),
        ("tfds:glue/sst2?txt=sentence", "'txt' is unknown; did you mean 'text'?"),
        ("tfds:../secret", "unknown TFDS task 'tfds:../secret'"),
        ("tfds:glue/sst2?text=sentence&test=test", "its split 'test'; name another one"),
        ("tfds:glue/sst2?text=sentence&image=idx", "name a text or an image, not both"),
        ("tfds:glue/sst2?image=idx", "'idx' of the data set in "),
        ("tfds:mnist", "it could not be downloaded: it isn't known where from."),
    ],
)
def test_faults_of_any_data_set(tfds_dir, entry, fault):
    assert fault in failure(entry, tfds_dir)


def spoil_info(text):
    return lambda folder: (folder / "dataset_info.json").write_text(text)


def remove(pattern):
    def spoil(folder):
        found = list(folder.glob(pattern))
        assert found
        for path in found:
            path.unlink()

    return spoil


def truncate_train(keep):
    def spoil(folder):
        (path,) = folder.glob("*-train.*")
        path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])

    return spoil


def ask_for_two_shards(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["100", "23"]
    (folder / "dataset_info.json").write_text(json.dumps(info))


def forget_validation(folder):
    info = json.loads((folder / "dataset_info.json").read_text())
    info["splits"] = [split for split in info["splits"] if split["name"] != "validation"]
    (folder / "dataset_info.json").write_text(json.dumps(info))


@pytest.mark.parametrize(
    ("spoil", "fault"),
    [
        (remove("dataset_info.json"), ": dataset_info.json missing."),
        (remove("*"), "dataset_info.json, features.json, label.labels.txt missing"),
        (spoil_info('{"splits": ['), "dataset_info.json cannot be read (JSONDecodeError"),
        (spoil_info("[1]"), "dataset_info.json cannot be read"),
        (spoil_info("{}"), "dataset_info.json cannot be read"),
        (spoil_info('{"splits": ["train"]}'), "dataset_info.json cannot be read"),
        (remove("*.array_record*"), "it holds no records, and array_record is needed"),
        (remove("*-train.*"), "it has 0 of the 1 record files of the split 'train'"),
        (remove("*-validation.*"), "it has 0 of the 1 record files of the split 'validation'"),
        (ask_for_two_shards, "it has 1 of the 2 record files of the split 'train'"),
        (forget_validation, "it has no rows in the split 'validation'"),
        (truncate_train(0), "RuntimeError"),
        (truncate_train(0.5), "some rows have no label"),
        (remove("features.json"), ": features.json missing."),
        (remove("label.labels.txt"), ": label.labels.txt missing."),
    ],
)
def test_half_prepared_folder_is_named_with_its_fault(
    sst2_copy, tmp_path, no_network, spoil, fault
):
    spoil(sst2_copy)
    message = failure("sst2", tmp_path)
    assert message.startswith(f"the data set in {sst2_copy} is not usable: ")
    assert fault in message
    assert "Delete that folder" in message
    assert "out of reach" not in message


def test_missing_split_of_the_unlabelled_rows_does_no_harm(sst2_copy, tmp_path):
    remove("*-test.*")(sst2_copy)
    assert len(load("sst2", tmp_path).splits["test"].inputs) == 25


def test_tfrecord_only(sst2_copy, tmp_path, no_network):
    for path in sst2_copy.glob("*.array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    info = (sst2_copy / "dataset_info.json").read_text()
    spoil_info(info.replace("array_record", "tfrecord"))(sst2_copy)
    assert "it holds only tfrecord, and array_record is needed" in failure("sst2", tmp_path)


def test_unlabelled_test_split_is_refused(tfds_dir, monkeypatch):
    spec = TFDS_TASKS["sst2"]._replace(test="test")
    monkeypatch.setitem(TFDS_TASKS, "sst2", spec)
    assert "some rows have no label" in failure("sst2", tfds_dir)


def test_interrupted_preparation_is_named(sst2_copy, tmp_path, no_network):
    sst2_copy.rename(sst2_copy.with_name("incomplete.AB12CD_2.0.0"))
    message = failure("sst2", tmp_path)
    assert "is not prepared in" in message
    assert "(only what was left by an interrupted try: incomplete.AB12CD_2.0.0)" in message
