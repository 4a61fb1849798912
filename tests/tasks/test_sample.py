"""Samples of what there is to learn from; of TFDS, see test_tfds_labels.py."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from mnms_jax.bench import make_bench
from mnms_jax.config import Config
from mnms_jax.tasks.columns import read_columns
from mnms_jax.tasks.registry import load_tasks
from mnms_jax.tasks.splits import sample, take
from mnms_jax.types import Split, UserError

NUM_ROWS = 1000
ROWS = [(f"text number {i}", "ab"[i % 2]) for i in range(NUM_ROWS)]


@pytest.fixture
def write(tmp_path):
    def write_as(suffix):
        path = tmp_path / f"mine{suffix}"
        if suffix == ".parquet":
            texts, labels = zip(*ROWS, strict=True)
            table = pa.table({"text": texts, "label": pa.array(labels).dictionary_encode()})
            pyarrow.parquet.write_table(table, path, row_group_size=64)
        elif suffix == ".jsonl":
            lines = [json.dumps({"text": text, "label": label}) for text, label in ROWS]
            path.write_text("\n".join(lines))
        else:
            separator = "\t" if suffix == ".tsv" else ","
            lines = [separator.join(row) for row in [("text", "label"), *ROWS]]
            path.write_text("\n".join(lines))
        return path

    return write_as


def test_each_item_is_as_likely_as_any_other():
    kept, total = sample(range(100_000), 10_000)
    assert total == 100_000 and kept == sorted(set(kept)) and len(kept) == 10_000
    counts = np.bincount(np.array(kept) // 10_000, minlength=10)
    np.testing.assert_allclose(counts, 1000, atol=120)  # four standard deviations


def test_small_ones_are_whole_and_the_same_again():
    assert sample("abc", 3) == (["a", "b", "c"], 3)
    assert sample("abc", None) == (["a", "b", "c"], 3)
    assert sample([], 3) == ([], 0)
    assert sample(range(100), 9) == sample(iter(range(100)), 9)
    # Python's generator gives the same numbers in every version.
    assert sample(range(20), 4) == ([0, 1, 7, 11], 20)


def test_no_more_are_held_than_asked_for():
    class Item:
        held = most = 0

        def __init__(self):
            Item.held += 1
            Item.most = max(Item.most, Item.held)

        def __del__(self):
            Item.held -= 1

    kept, total = sample((Item() for _ in range(500)), 10)
    assert (len(kept), total) == (10, 500) and Item.most <= 12


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_files_of_all_formats_give_the_same_rows(write, suffix, caplog):
    path = write(suffix)
    with caplog.at_level("INFO", logger="absl"):
        columns = read_columns(path, 100)
    assert f"a sample of 100 of its {NUM_ROWS} rows is read" in caplog.text
    found = list(zip(columns.values["text"], columns.values["label"], strict=True))
    expected, _ = sample(ROWS, 100)
    assert found == expected and len(columns.rows) == 100
    first = 2 if suffix in (".csv", ".tsv") else 1
    assert [ROWS[row - first] for row in columns.rows] == found


def test_rows_beyond_the_sample_must_be_well_formed_too(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "".join(f"{a},{b}\n" for a, b in ROWS) + "no label\n")
    with pytest.raises(UserError, match=f"row {NUM_ROWS + 2} has 1 fields where the header has 2"):
        read_columns(path, 10)
    path.write_bytes(b"text,label\n" + b"a text,b\n" * 9000 + b"caf\xe9,b\n")
    with pytest.raises(UserError, match=r"row 9002 is not UTF-8 text: .* b'.xe9'; save the file"):
        read_columns(path, 10)


def test_a_task_learns_from_no_more(write, caplog):
    path = write(".csv")
    (task,) = load_tasks([f"mine={path}"], max_train_examples=200)
    assert [len(split.labels) for split in task.splits.values()] == [160, 20, 20]
    bench = make_bench(Config(tasks=(f"mine={path}",), max_train_examples=200, seed=3))
    assert bench.tasks[0].splits["train"].inputs == task.splits["train"].inputs
    with pytest.raises(UserError, match="--max_train_examples=-1: must be at least 0"):
        Config(max_train_examples=-1)


@pytest.mark.parametrize("name", ["digits", "breast_cancer"])
def test_of_other_tasks_what_is_held_out_stays(name):
    (whole,), (part,) = load_tasks([name]), load_tasks([name], max_train_examples=100)
    assert len(part.splits["train"].labels) == 100
    rows, _ = sample(range(len(whole.splits["train"].labels)), 100)
    np.testing.assert_array_equal(
        part.splits["train"].labels, whole.splits["train"].labels[np.array(rows)]
    )
    for held_out in ("validation", "test"):
        np.testing.assert_array_equal(part.splits[held_out].labels, whole.splits[held_out].labels)


def test_rows_of_any_kind_are_taken():
    labels = np.arange(4, dtype=np.int32)
    for inputs in (tuple("abcd"), np.arange(8).reshape(4, 2), {"x": np.arange(4)}):
        found = take(Split(inputs, labels), [2, 0])
        assert found.labels.tolist() == [2, 0]
        values = found.inputs["x"] if isinstance(inputs, dict) else found.inputs
        expected = inputs["x"] if isinstance(inputs, dict) else inputs
        for value, row in zip(values, (2, 0), strict=True):
            np.testing.assert_array_equal(value, expected[row])
