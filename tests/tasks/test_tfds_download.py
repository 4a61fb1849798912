"""Servers are local ones."""

import contextlib
import http.server
import io
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import pytest
import tfds_data
from tfds_data import NUM_ROWS, failure, load, pairs, refused_url

from mnms_jax.tasks import tfds_folders
from mnms_jax.tasks.tfds_specs import TFDS_TASKS
from mnms_jax.types import UserError

REPO = pathlib.Path(tfds_folders.__file__).parents[2]


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


@contextlib.contextmanager
def serve(folder):
    """Serves a folder at the address that is yielded."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def log_message(self, *args):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("url", [None, "https://nowhere.invalid/file.zip"])
@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_missing_data_without_network_fails_soon(tmp_path, name, url):
    dataset = TFDS_TASKS[name].dataset
    code = (
        "import sys, time; from mnms_jax.tasks import tfds; from mnms_jax.types import UserError\n"
        "from mnms_jax.tasks.tfds_specs import TFDS_TASKS\n"
        "name, url, path = sys.argv[1:]\n"
        "started = time.monotonic()\n"
        "TFDS_TASKS[name] = TFDS_TASKS[name]._replace(url=url)\n"
        "try:\n  tfds.load_tfds_task(name, path, ['newsgroups', 'reviews'])\n"
        "except UserError as error:\n  print(error); print('tensorflow_datasets' in sys.modules)\n"
        "print(time.monotonic() - started)\n"
    )
    url = url or refused_url()
    done = subprocess.run(
        [sys.executable, "-c", code, name, url, str(tmp_path)],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"the data set {dataset} is not prepared in {tmp_path / dataset}, ")
    assert f"it could not be downloaded: {url} is out of reach: " in lines[0]
    assert (
        f'tfds.builder("{dataset}", data_dir="tfds_data", file_format="array_record")' in lines[3]
    )
    assert ".download_and_prepare(" in lines[3]
    assert "copy the folder tfds_data" in lines[4]
    assert "--data_dir" in lines[4]
    assert lines[5] == "Tasks that work right now, without a network: newsgroups, reviews."
    assert lines[6] == "False"  # TFDS was not imported
    assert float(lines[7]) < 5


def test_probe_of_a_server_that_has_the_file(tmp_path):
    (tmp_path / "file.zip").write_bytes(b"data")
    with serve(tmp_path) as address:
        assert tfds_folders._why_unreachable(f"{address}/file.zip") is None
        assert "404" in tfds_folders._why_unreachable(f"{address}/other.zip")


def test_probe_of_a_silent_server_ends():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file.zip"
        started = time.monotonic()
        assert re.search("no answer|timed out", tfds_folders._why_unreachable(url, timeout=0.2))
        assert time.monotonic() - started < 2


def test_probe_ends_when_the_name_server_hangs(monkeypatch):
    release = threading.Event()

    def hang(*args, **kwargs):
        release.wait(30)
        raise socket.gaierror("gave up")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    reason = tfds_folders._why_unreachable("http://a.test/x", timeout=0.2)
    assert reason == "http://a.test/x is out of reach: no answer within 0.2 seconds"
    assert time.monotonic() - started < 2
    release.set()


@pytest.fixture
def sst2_site(tmp_path, monkeypatch):
    """A local server in the place of the one with SST-2; yields the folder that it serves."""
    from tensorflow_datasets.text import glue

    (config,) = (c for c in glue.Glue.BUILDER_CONFIGS if c.name == "sst2")
    site = tmp_path / "site"
    site.mkdir()
    with serve(site) as address:
        url = f"{address}/SST-2.zip"
        monkeypatch.setattr(config, "data_url", url)
        spec = TFDS_TASKS["sst2"]._replace(url=url)
        monkeypatch.setitem(TFDS_TASKS, "sst2", spec)
        yield site


def write_sst2_zip(site):
    names = {"train": "train", "validation": "dev", "test": "test"}
    with zipfile.ZipFile(site / "SST-2.zip", "w") as archive:
        for split, rows in tfds_data.sst2_rows(NUM_ROWS).items():
            columns = "index\tsentence" if split == "test" else "sentence\tlabel"
            lines = [f"0\t{text}" if split == "test" else f"{text}\t{y}" for text, y in rows]
            archive.writestr(f"SST-2/{names[split]}.tsv", "\n".join([columns, *lines]) + "\n")


def test_missing_data_are_downloaded(sst2_site, tfds_dir, tmp_path):
    write_sst2_zip(sst2_site)
    task, same = load("sst2", tmp_path / "new"), load("sst2", tfds_dir)
    for part in ("train", "validation", "test"):
        assert {(text.lower(), label) for text, label in pairs(task.splits[part])} == {
            (text.lower(), label) for text, label in pairs(same.splits[part])
        }
    (sst2_site / "SST-2.zip").unlink()
    assert load("sst2", tmp_path / "new").splits["test"].inputs == task.splits["test"].inputs


def test_missing_imdb_is_downloaded(tfds_dir, tmp_path, monkeypatch):
    import tensorflow_datasets as real_tfds

    site = tmp_path / "site"
    site.mkdir()
    with tarfile.open(site / "imdb.tar.gz", "w:gz") as archive:
        for split, rows in tfds_data.imdb_rows(NUM_ROWS).items():
            for i, (text, label) in enumerate(rows):
                content = text if isinstance(text, bytes) else text.encode()
                folder = (
                    f"{'test' if split == 'test' else 'train'}/{('neg', 'pos', 'unsup')[label]}"
                )
                member = tarfile.TarInfo(f"aclImdb/{folder}/{i}_1.txt")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    module = sys.modules[real_tfds.builder_cls("imdb_reviews").__module__]
    with serve(site) as address:
        url = f"{address}/imdb.tar.gz"
        monkeypatch.setattr(module, "_DOWNLOAD_URL", url)
        monkeypatch.setitem(TFDS_TASKS, "imdb", TFDS_TASKS["imdb"]._replace(url=url))
        task = load("imdb", tmp_path / "new")
    same = load("imdb", tfds_dir)
    assert task.class_names == same.class_names
    assert {text.strip() for text in task.splits["test"].inputs} == {
        text.strip() for text in same.splits["test"].inputs
    }
    assert len(task.splits["train"].inputs) == 90


def test_the_command_in_the_message_prepares_the_data(sst2_site, tmp_path, monkeypatch):
    command = failure("sst2", tmp_path / "new").splitlines()[3]
    program, flag, code = shlex.split(command)
    assert (program, flag) == ("python", "-c")
    write_sst2_zip(sst2_site)
    monkeypatch.chdir(tmp_path)
    with tfds_folders._archives_without_tensorflow():
        exec(code, {})
    assert len(load("sst2", tmp_path / "tfds_data").splits["train"].inputs) == 90


@pytest.mark.parametrize("content", [b"not a zip archive", None])
def test_failing_download(sst2_site, tmp_path, monkeypatch, content):
    from tensorflow_datasets.core.download import downloader

    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
    if content is None:  # found by the probe, then gone
        monkeypatch.setattr(tfds_folders, "_why_unreachable", lambda url: None)
    else:
        (sst2_site / "SST-2.zip").write_bytes(content)
    path = tmp_path / "new"
    with pytest.raises(UserError) as caught:
        load("sst2", path)
    message = str(caught.value)
    assert caught.value.__cause__ is not None
    assert type(caught.value.__cause__).__name__ in message.splitlines()[0]
    assert message.startswith(f"the data set glue/sst2 is not prepared in {path / 'glue/sst2'}")
    assert ".download_and_prepare(" in message
    assert "newsgroups, reviews" in message
    assert tfds_folders.find_prepared(TFDS_TASKS["sst2"], path) is None
