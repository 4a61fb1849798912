import csv
import json
import pathlib
import unicodedata
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from absl import logging

import mnms_jax
from mnms_jax.tasks import columns as columns_lib
from mnms_jax.tasks.columns import read_columns
from mnms_jax.tasks.files import FileTask, load_file_task, parse_file_task
from mnms_jax.tasks.text import find_words, normalize
from mnms_jax.training.fit import Request
from mnms_jax.types import Task, UserError

ROWS = [(f"good number {i}", "pos") for i in range(60)]
ROWS += [(f"bad number {i}", "neg") for i in range(30)]


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects what is logged."""
    found: list[str] = []
    monkeypatch.setattr(logging, "info", lambda text, *args: found.append(text % args))
    return found


def write(path: pathlib.Path, rows: Sequence[tuple], header: Sequence[str]) -> pathlib.Path:
    """Writes a file by its suffix."""
    if path.suffix == ".jsonl":
        objects = [json.dumps(dict(zip(header, row, strict=True))) for row in rows]
        path.write_text("\n".join(objects))
    elif path.suffix == ".parquet":
        columns = zip(*rows, strict=True)
        pa.parquet.write_table(pa.table(dict(zip(header, columns, strict=True))), path)
    elif path.suffix == ".tsv":
        path.write_text("".join("\t".join(map(str, row)) + "\n" for row in [header, *rows]))
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([header, *rows])
    return path


def load(path: pathlib.Path, **options) -> Task:
    return load_file_task(FileTask("mine", path, **options))


def refused(path: pathlib.Path, **options) -> str:
    with pytest.raises(UserError) as error:
        load(path, **options)
    message = str(error.value)
    assert "\n" not in message
    return message.removeprefix(f"cannot use {path}: ")


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_a_file_is_split_by_class_always_in_the_same_way(
    tmp_path: pathlib.Path, suffix: str
) -> None:
    task = load(write(tmp_path / f"mine{suffix}", ROWS, ["id", "Label", "Review"][1:][::-1]))
    assert task.name == "mine"
    assert task.class_names == ("neg", "pos")
    sizes = {part: np.bincount(split.labels).tolist() for part, split in task.splits.items()}
    assert sizes == {"train": [24, 48], "validation": [3, 6], "test": [3, 6]}
    found = [
        (text, task.class_names[label])
        for split in task.splits.values()
        for text, label in zip(split.inputs, split.labels, strict=True)
    ]
    assert sorted(found) == sorted(ROWS)
    # In random order: classes are mixed, as batches take rows in the order in which they are.
    labels = task.splits["train"].labels
    assert 10 < np.count_nonzero(np.diff(labels)) < 48
    again = load(write(tmp_path / "again.csv", ROWS[::-1], ["review", "label"]))
    assert all(again.splits[part].inputs == task.splits[part].inputs for part in task.splits)


def test_validation_and_test_may_have_files_of_their_own(tmp_path: pathlib.Path) -> None:
    train = write(tmp_path / "train.csv", [*ROWS, ("unseen text", "pos")], ["text", "label"])
    rows = [("Unseen text!", "pos"), ("one more", "new"), ("one more", "neg")]
    test = write(tmp_path / "test.jsonl", rows, ["sentence", "class"])
    task = load(train, test=test)
    assert task.class_names == ("neg", "new", "pos")
    assert task.splits["test"].inputs == ("Unseen text!", "one more", "one more")
    assert task.splits["test"].labels.tolist() == [2, 1, 0]
    learned = task.splits["train"].inputs + task.splits["validation"].inputs
    assert sorted(learned) == sorted(text for text, _ in ROWS)
    assert len(task.splits["validation"].inputs) == 9
    held = write(tmp_path / "held.csv", [*rows, ("good number 0", "pos")], ["text", "label"])
    both = load(train, test=test, validation=held)
    assert both.splits["validation"].inputs == ("good number 0",)  # the others are in test
    assert len(both.splits["train"].inputs) == len(ROWS) - 1
    with pytest.raises(UserError, match=f"cannot use {test}: all its texts are in {test} too"):
        load(train, test=test, validation=test)
    assert refused(train, test=train) == "none of its texts is left to learn from, see the log"


def test_classes_that_are_not_learned_are_told(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: told.append(text % args))
    train = write(tmp_path / "train.csv", ROWS, ["text", "label"])
    test = write(tmp_path / "test.csv", [("one more", "new")], ["text", "label"])
    load(train, test=test)
    assert told == [f"mine: nothing to learn ['new'] from in {train}"]


def test_rows_that_teach_nothing_are_left_out_and_counted(
    tmp_path: pathlib.Path, lines: list[str]
) -> None:
    rows = [*ROWS, *ROWS[:4], ("Good, number 0", "neg"), ("", "pos"), ("?!", "pos")]
    rows += [("no label", ""), ("nor here", "  ")]
    load(write(tmp_path / "mine.csv", rows, ["text", "label"]))
    path = tmp_path / "mine.csv"
    labelled, kept = lines
    assert labelled == (
        f"mine: texts are 'text' and labels 'label' of {path}; 97 of 99 rows have a label"
    )
    assert kept == (
        "mine: 2 classes; 89 labelled rows of 97 are kept to learn from; 2 have no word, 6 repeat "
        "or contradict others, or are in validation or test too"
    )


def test_repeats_are_found_however_they_are_encoded_and_ordered(tmp_path: pathlib.Path) -> None:
    rows = [(f"café {i}", "é") for i in range(30)] + [(f"thé {i}", "b") for i in range(30)]
    again = [tuple(unicodedata.normalize("NFD", x) for x in (f"{t}!", name)) for t, name in rows]
    tasks = [
        load(write(tmp_path / f"{i}.csv", both, ["text", "label"]))
        for i, both in enumerate(([*rows, *again], [*again, *rows][::-1]))
    ]
    assert tasks[0].class_names == ("b", "é")
    assert sum(len(split.inputs) for split in tasks[0].splits.values()) == len(rows)
    for part, split in tasks[0].splits.items():
        assert split.inputs == tasks[1].splits[part].inputs


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([3, 1, 10], ("1", "3", "10")),
        ([0.5, -2.0, 10.0], ("-2", "0.5", "10")),
        ([True, False, True], ("false", "true")),
        (["1", "1.0", "01"], ("01", "1")),
        (["b", "10", "9"], ("10", "9", "b")),
        (["ja", "no", "<script>"], ("<script>", "ja", "no")),
    ],
)
def test_labels_of_any_type(tmp_path: pathlib.Path, labels: list, names: tuple[str, ...]) -> None:
    rows = [(f"word{i} of {n}", label) for i in range(10) for n, label in enumerate(labels)]
    for suffix in (".jsonl", ".parquet", ".csv"):
        path = write(tmp_path / f"mine{suffix}", rows, ["text", "label"])
        assert load(path).class_names == names


def test_thousands_of_classes_with_few_texts_each(tmp_path: pathlib.Path) -> None:
    rows = [(f"text {c} {i}", f"class {c}") for c in range(3000) for i in range(2 + 6 * (c < 50))]
    task = load(write(tmp_path / "mine.csv", rows, ["text", "label"]))
    assert task.num_classes == 3000
    assert len(task.splits["validation"].labels) == len(task.splits["test"].labels) == 50
    assert len(set(task.splits["train"].labels.tolist())) == 3000


def test_columns_can_be_named(tmp_path: pathlib.Path) -> None:
    rows = [(label, text, "x") for text, label in ROWS]
    path = write(tmp_path / "mine.csv", rows, ["what", "said", "text"])
    assert load(path, text="said", label="what").class_names == ("neg", "pos")
    assert refused(path) == "which of its columns what, said, text is the label? Say ?label=COLUMN"
    assert refused(path, text="sade") == "it has no column 'sade'; did you mean 'said'?"
    same = refused(path, text="what", label="what")
    assert same == "text and label can't both be the column 'what'"


def test_what_a_flag_says_of_a_file(tmp_path: pathlib.Path) -> None:
    entry = "my-task=a/b.csv?label=y 2&test=c.tsv&text=é&validation=~/d.jsonl"
    spec = parse_file_task(entry)
    home = pathlib.Path("~").expanduser()
    paths = pathlib.Path("a/b.csv"), home / "d.jsonl", pathlib.Path("c.tsv")
    assert spec == FileTask("my-task", *paths, "é", "y 2")
    for entry, fault in (
        ("a/b=c.csv", "must be NAME=PATH"),
        ("=c.csv", "must be NAME=PATH"),
        ("mine=", "must be NAME=PATH"),
        (f"{'x' * 65}=c.csv", "must be NAME=PATH"),
        ("mine=c.csv?tekst=a", "'tekst' is unknown; did you mean 'test'?"),
        ("mine=c.csv?text", "'text' must be text=VALUE"),
        ("mine=c.csv?train=a", "'train' is unknown"),
        ("mine=~nobody-here/c.csv", "Could not determine home directory"),
    ):
        with pytest.raises(UserError) as error:
            parse_file_task(entry)
        assert str(error.value).startswith(f"task {entry!r}: {fault}")


def test_names_of_tasks_are_given_once(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path / "mine.csv", ROWS, ["text", "label"])
    (task,) = mnms_jax.load_tasks([f"mine={path}"])
    assert task.class_names == ("neg", "pos")
    for names, fault in (
        ([f"mine={path}", f"mine={path}?text=text"], "another task is called 'mine' too"),
        ([f"sst2={path}"], "another task is called 'sst2' too"),
        ([str(path)], "is unknown; call a file NAME=PATH"),
    ):
        with pytest.raises(UserError, match=fault):
            mnms_jax.load_tasks(names)


_HEADER = b"text,label\n"


@pytest.mark.parametrize(
    ("name", "content", "fault"),
    [
        ("none.csv", None, "it cannot be read: No such file or directory"),
        ("mine.txt", b"", "its name must end in .csv, .tsv, .jsonl or .parquet"),
        ("mine.csv", b"", "its first line must name the columns"),
        ("mine.csv", _HEADER, "it has no rows"),
        ("mine.jsonl", b"\n\n", "it has no rows"),
        ("mine.csv", _HEADER + b"a,b\nc\n", "row 3 has 1 fields where the header has 2"),
        ("mine.csv", _HEADER + b"a,b\ncaf\xe9,b\n", "row 3 is not UTF-8 text: "),
        ("mine.csv", "text,label\n".encode("utf-16"), "row 1 is not UTF-8 text: "),
        ("mine.csv", _HEADER + b"a,b\n" + b"x" * 200_000 + b",b\n", "row 3 can't be read: field "),
        ("mine.csv", _HEADER + b'a,b\n"c,b\nd,b\n', "row 3 can't be read: unexpected end"),
        ("mine.csv", _HEADER + b'"a\nb",c\nd\n', "row 4 has 1 fields where the header has 2"),
        ("mine.csv", _HEADER + b"a,\nb, \n", "none of its 2 rows has a label in 'label'"),
        ("mine.csv", b"text,label,text\na,b,c\n", "several of its columns are called 'text'"),
        ("mine.jsonl", b'{"text": "\\ud800", "label": 1}\n', "row 1 has half a character: "),
        ("mine.csv", _HEADER + b"a,b\nc,b\n", "its 2 different texts in 1 classes leave nothing"),
        ("mine.jsonl", b'{"text": "a"}\nno\n', "row 2 is no JSON: "),
        ("mine.jsonl", b"[" * 100_000, "row 1 is no JSON: "),
        ("mine.jsonl", b"[1]\n", "row 1 is no object in braces"),
        (
            "mine.jsonl",
            b'{"text": "a", "label": {"a": 1}}\n',
            "row 1 has {'a': 1} in 'label'; a text, a number, or true or false is needed",
        ),
        ("mine.jsonl", b'{"text": 7, "label": 1}\n', "row 1 has 7 in 'text'; a text is needed"),
        (
            "mine.jsonl",
            b'{"text": "' + b"x" * 200_000 + b'", "label": 1}\n',
            "row 1 has 200000 characters in 'text', more than 131072",
        ),
        ("mine.csv", _HEADER + b"".join(b"word %d,a\n" % i for i in range(20)), "all its texts"),
    ],
)
def test_faults_of_files(
    tmp_path: pathlib.Path, name: str, content: bytes | None, fault: str
) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    assert refused(path).startswith(fault)


def test_columns_that_are_not_used_do_no_harm(tmp_path: pathlib.Path) -> None:
    rows = [(str(i), text, label, "x", "y") for i, (text, label) in enumerate(ROWS)]
    path = write(tmp_path / "mine.csv", rows, ["", "text", "label", "a", "a"])
    assert load(path).num_classes == 2
    columns = {
        "text": [text for text, _ in ROWS],
        "label": [label for _, label in ROWS],
        "when": pa.array(range(1, len(ROWS) + 1), pa.timestamp("ns")),  # not to be had in Python
    }
    path = tmp_path / "mine.parquet"
    pa.parquet.write_table(pa.table(columns), path)
    assert load(path).num_classes == 2
    assert refused(path, label="when").startswith("its column 'when' cannot be read: ")


def test_a_handful_of_texts_is_enough_to_train_on(tmp_path: pathlib.Path) -> None:
    task = load(write(tmp_path / "mine.csv", [*ROWS[:12], *ROWS[60:72]], ["text", "label"]))
    assert [len(split.inputs) for split in task.splits.values()] == [20, 2, 2]
    family = mnms_jax.make_text_family("cpu", {})
    inputs = mnms_jax.TextInputs([task], mnms_jax.PRESETS["cpu"], {})
    trainer = mnms_jax.Trainer(family, inputs.child_data, num_classes=2)
    first = {decision.name: decision.choices[0] for decision in family.space.decisions}
    request = Request(0, "mine", 0, {**first, "convolution": True, "samples": 10_000})
    ((_, result),) = trainer.train([request])
    assert result.reward == 1.0  # the label is one of the words


def test_null_characters_and_byte_order_marks_are_read(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.csv"
    body = "".join(f"{text}\0 end,{label}\r\n" for text, label in ROWS)
    path.write_bytes(f"\ufefftext,label\r\n{body}".encode())
    counts = Counter(label for split in load(path).splits.values() for label in split.labels)
    assert counts == {0: 30, 1: 60}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("plain words, 2 of_them", ["plain", "words", "2", "of_them"]),
        ("¿Qué niño?", ["Qué", "niño"]),
        ("हिन्दी में", ["हिन्दी", "में"]),  # vowel signs belong to their words
        ("cafe\u0301 noir", ["cafe\u0301", "noir"]),
        ("日本語です", list("日本語です")),
        ("这是GPT4吗", ["这", "是", "GPT4", "吗"]),
        ("ที่นี่", ["ที่", "นี่"]),
        ("안녕 세상", ["안녕", "세상"]),  # Korean has spaces
        ("привет", ["привет"]),
        ("\u2764\ufe0f", []),
        ("क्\u200dषमा", ["क्\u200dषमा"]),
    ],
)
def test_words_in_any_script(text: str, words: list[str]) -> None:
    assert find_words(text) == words
    assert normalize(text) == " ".join(words).lower()


def test_punctuation_in_any_script() -> None:
    assert find_words("¿Qué? \u2764\ufe0f", marks=True) == ["¿", "Qué", "?", "\u2764"]
    assert find_words("是。", marks=True) == ["是", "。"]
    assert find_words("so: yes!", marks=True) == ["so", ":", "yes", "!"]


def test_a_parquet_file_that_unpacks_to_too_much_is_refused(tmp_path, monkeypatch):
    table = pa.table({"text": ["the same long text again" * 40] * 20_000, "label": [0, 1] * 10_000})
    path = tmp_path / "mine.parquet"
    pa.parquet.write_table(table, path)
    assert path.stat().st_size < 100_000
    monkeypatch.setattr(columns_lib, "_MOST_BYTES", 1 << 20)
    with pytest.raises(UserError, match="it has more than 1048576 bytes once unpacked"):
        read_columns(path)
    monkeypatch.undo()
    assert len(read_columns(path).rows) == 20_000


def test_names_of_a_damaged_parquet_file_are_told(tmp_path):
    path = write(tmp_path / "mine.parquet", [("good", "pos")], ["said", "mood"])
    path.write_bytes(path.read_bytes().replace(b"said", b"s\xecid"))
    with pytest.raises(UserError, match="it cannot be read: 'utf-8' codec"):
        load(path)


def test_a_name_of_two_lines_is_told_in_one(tmp_path):
    path = write(tmp_path / "mine.jsonl", ROWS, ["said\nso", "mood"])
    with pytest.raises(UserError, match=r"no column 'text'; known: said\\nso, mood$"):
        load(path, text="text")
