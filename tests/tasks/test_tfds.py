"""The data are made by TFDS itself in the real feature specs; servers are local ones."""

import collections
import contextlib
import http.server
import io
import json
import pathlib
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
import time
import zipfile

import numpy as np
import pytest
import tfds_data

from mnms_jax.tasks import tfds
from mnms_jax.tasks.text import normalize
from mnms_jax.types import UserError

NUM_ROWS = 100
PACKAGED = ("newsgroups", "reviews")
REPO = pathlib.Path(tfds.__file__).parents[2]
ROWS = {
    "sst2": (tfds_data.sst2_rows(NUM_ROWS)["train"], tfds_data.sst2_rows(NUM_ROWS)["validation"]),
    "imdb": (tfds_data.imdb_rows(NUM_ROWS)["train"], tfds_data.imdb_rows(NUM_ROWS)["test"]),
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    tfds_data.write_sst2(path, num_rows=NUM_ROWS)
    tfds_data.write_imdb(path, num_rows=NUM_ROWS)
    return path


@pytest.fixture
def sst2_copy(data_dir, tmp_path):
    """A folder of one version of glue/sst2 that may be spoiled."""
    folder = tmp_path / "glue" / "sst2" / "2.0.0"
    shutil.copytree(data_dir / "glue" / "sst2" / "2.0.0", folder)
    return folder


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")


def refused_url():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/file.zip"


@pytest.fixture
def no_network(monkeypatch):
    for name, spec in list(tfds.TFDS_TASKS.items()):
        monkeypatch.setitem(tfds.TFDS_TASKS, name, spec._replace(url=refused_url()))


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


def load(name, path):
    return tfds.load_tfds_task(name, str(path), PACKAGED)


def failure(name, path):
    with pytest.raises(UserError) as caught:
        load(name, path)
    return str(caught.value)


def pairs(split):
    return collections.Counter(zip(split.texts, split.labels.tolist(), strict=True))


def decoded(text):
    return text.decode("utf-8", errors="replace") if isinstance(text, bytes) else text


@pytest.mark.parametrize(
    ("name", "class_names"), [("sst2", ("negative", "positive")), ("imdb", ("neg", "pos"))]
)
def test_shapes_and_class_names(data_dir, name, class_names):
    task = load(name, data_dir)
    assert task.name == name
    assert task.class_names == class_names
    assert list(task.splits) == ["train", "validation", "test"]
    sizes = {part: len(split.texts) for part, split in task.splits.items()}
    assert sizes == {"train": 90, "validation": 10, "test": len(ROWS[name][1])}
    for split in task.splits.values():
        assert split.labels.shape == (len(split.texts),)
        assert split.labels.dtype == np.int32
        assert set(split.labels.tolist()) == {0, 1}
        assert all(type(text) is str for text in split.texts)


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_train_and_validation_are_the_distinct_rows_of_train_not_in_test(data_dir, name):
    task = load(name, data_dir)
    found = pairs(task.splits["train"]) + pairs(task.splits["validation"])
    clean = ROWS[name][0][:NUM_ROWS]  # the writer puts the rows to be dropped behind these
    assert len(ROWS[name][0]) > NUM_ROWS
    assert collections.Counter((text.lower(), label) for text, label in found) == (
        collections.Counter((text.lower(), label) for text, label in clean)
    )


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_test_split_is_as_published(data_dir, name):
    expected = collections.Counter((decoded(text), label) for text, label in ROWS[name][1])
    assert pairs(load(name, data_dir).splits["test"]) == expected


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_splits_do_not_overlap(data_dir, name):
    splits = load(name, data_dir).splits
    keys = {part: {normalize(text) for text in split.texts} for part, split in splits.items()}
    assert len(set.union(*keys.values())) == sum(len(split.texts) for split in splits.values())


@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_loading_twice_gives_the_same(data_dir, name):
    first, second = load(name, data_dir), load(name, data_dir)
    for part in ("train", "validation", "test"):
        assert first.splits[part].texts == second.splits[part].texts
        np.testing.assert_array_equal(first.splits[part].labels, second.splits[part].labels)


def test_bytes_that_are_not_utf8_are_replaced(data_dir):
    texts = load("imdb", data_dir).splits["test"].texts
    assert [text[:5] for text in texts if "\ufffd" in text] == ["caf\ufffd "]


def test_the_use_of_the_splits_is_logged(data_dir, caplog):
    with caplog.at_level("INFO", logger="absl"):
        load("sst2", data_dir)
    assert f"90 of {len(ROWS['sst2'][0])} train rows" in caplog.text
    assert "10 are validation; test is its split validation (25 rows)" in caplog.text


def test_default_folder_is_that_of_tfds(data_dir, monkeypatch, no_network, tmp_path):
    monkeypatch.setenv("TFDS_DATA_DIR", str(data_dir))
    assert tfds.load_tfds_task("sst2", None, PACKAGED).num_classes == 2
    monkeypatch.delenv("TFDS_DATA_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=re.escape(f"{tmp_path}/tensorflow_datasets/glue/sst2")):
        tfds.load_tfds_task("sst2", None, PACKAGED)


def test_newest_complete_version_is_read(tmp_path):
    tfds_data.write_sst2(tmp_path, num_rows=40, version="2.0.0")
    tfds_data.write_sst2(tmp_path, num_rows=60, version="10.0.0")
    assert len(load("sst2", tmp_path).splits["train"].texts) == 54
    (tmp_path / "glue/sst2/10.0.0/dataset_info.json").unlink()
    assert len(load("sst2", tmp_path).splits["train"].texts) == 36


def test_sentiment_words_can_be_learnt(data_dir):
    splits = load("sst2", data_dir).splits
    votes = collections.Counter()
    for text, label in zip(splits["train"].texts, splits["train"].labels, strict=True):
        votes.update({word: 2 * int(label) - 1 for word in text.lower().split()})
    guesses = [sum(votes[word] for word in text.split()) > 0 for text in splits["test"].texts]
    assert np.mean(guesses == splits["test"].labels) > 0.9


def test_unknown_name_is_answered_with_the_known_ones(tmp_path):
    assert "'sst3'" in failure("sst3", tmp_path)
    known = "ag_news, cola, imdb, sst2, yelp_polarity, or tfds:NAME/CONFIG"
    assert known in failure("sst3", tmp_path)


def test_any_data_set_can_be_named(data_dir):
    task = load("tfds:glue/sst2?text=sentence&test=validation", data_dir)
    named = load("sst2", data_dir)
    assert task.name == "glue-sst2"
    assert task.class_names == named.class_names
    for part, split in named.splits.items():
        assert task.splits[part].texts == split.texts
        np.testing.assert_array_equal(task.splits[part].labels, split.labels)


def test_labels_without_names_are_named_by_their_values(data_dir):
    # The running number of a row: as many classes as rows.
    task = load("tfds:glue/sst2?text=sentence&label=idx&test=validation", data_dir)
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
        ("tfds:glue/sst2?txt=sentence", "'txt' must be KEY=VALUE; did you mean 'text'?"),
        ("tfds:../secret", "unknown TFDS task 'tfds:../secret'"),
        ("tfds:mnist", "it could not be downloaded: it isn't known where from."),
    ],
)
def test_faults_of_any_data_set(data_dir, entry, fault):
    assert fault in failure(entry, data_dir)


@pytest.mark.parametrize("url", [None, "https://nowhere.invalid/file.zip"])
@pytest.mark.parametrize("name", ["sst2", "imdb"])
def test_missing_data_without_network_fails_soon(tmp_path, name, url):
    dataset = tfds.TFDS_TASKS[name].dataset
    code = (
        "import sys, time; from mnms_jax.tasks import tfds; from mnms_jax.types import UserError\n"
        "name, url, path = sys.argv[1:]\n"
        "started = time.monotonic()\n"
        "tfds.TFDS_TASKS[name] = tfds.TFDS_TASKS[name]._replace(url=url)\n"
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
        assert tfds._why_unreachable(f"{address}/file.zip") is None
        assert "404" in tfds._why_unreachable(f"{address}/other.zip")


def test_probe_of_a_silent_server_ends():
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/file.zip"
        started = time.monotonic()
        assert re.search("no answer|timed out", tfds._why_unreachable(url, timeout=0.2))
        assert time.monotonic() - started < 2


def test_probe_ends_when_the_name_server_hangs(monkeypatch):
    release = threading.Event()

    def hang(*args, **kwargs):
        release.wait(30)
        raise socket.gaierror("gave up")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    started = time.monotonic()
    reason = tfds._why_unreachable("http://a.test/x", timeout=0.2)
    assert reason == "http://a.test/x is out of reach: no answer within 0.2 seconds"
    assert time.monotonic() - started < 2
    release.set()


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
    assert len(load("sst2", tmp_path).splits["test"].texts) == 25


def test_tfrecord_only(sst2_copy, tmp_path, no_network):
    for path in sst2_copy.glob("*.array_record*"):
        path.rename(path.with_name(path.name.replace("array_record", "tfrecord")))
    info = (sst2_copy / "dataset_info.json").read_text()
    spoil_info(info.replace("array_record", "tfrecord"))(sst2_copy)
    assert "it holds only tfrecord, and array_record is needed" in failure("sst2", tmp_path)


def test_unlabelled_test_split_is_refused(data_dir, monkeypatch):
    spec = tfds.TFDS_TASKS["sst2"]._replace(test="test")
    monkeypatch.setitem(tfds.TFDS_TASKS, "sst2", spec)
    assert "some rows have no label" in failure("sst2", data_dir)


def test_interrupted_preparation_is_named(sst2_copy, tmp_path, no_network):
    sst2_copy.rename(sst2_copy.with_name("incomplete.AB12CD_2.0.0"))
    message = failure("sst2", tmp_path)
    assert "is not prepared in" in message
    assert "(only what was left by an interrupted try: incomplete.AB12CD_2.0.0)" in message


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
        spec = tfds.TFDS_TASKS["sst2"]._replace(url=url)
        monkeypatch.setitem(tfds.TFDS_TASKS, "sst2", spec)
        yield site


def write_sst2_zip(site):
    names = {"train": "train", "validation": "dev", "test": "test"}
    with zipfile.ZipFile(site / "SST-2.zip", "w") as archive:
        for split, rows in tfds_data.sst2_rows(NUM_ROWS).items():
            columns = "index\tsentence" if split == "test" else "sentence\tlabel"
            lines = [f"0\t{text}" if split == "test" else f"{text}\t{y}" for text, y in rows]
            archive.writestr(f"SST-2/{names[split]}.tsv", "\n".join([columns, *lines]) + "\n")


def test_missing_data_are_downloaded(sst2_site, data_dir, tmp_path):
    write_sst2_zip(sst2_site)
    task, same = load("sst2", tmp_path / "new"), load("sst2", data_dir)
    for part in ("train", "validation", "test"):
        assert {(text.lower(), label) for text, label in pairs(task.splits[part])} == {
            (text.lower(), label) for text, label in pairs(same.splits[part])
        }
    (sst2_site / "SST-2.zip").unlink()
    assert load("sst2", tmp_path / "new").splits["test"].texts == task.splits["test"].texts


def test_missing_imdb_is_downloaded(data_dir, tmp_path, monkeypatch):
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
        monkeypatch.setitem(tfds.TFDS_TASKS, "imdb", tfds.TFDS_TASKS["imdb"]._replace(url=url))
        task = load("imdb", tmp_path / "new")
    same = load("imdb", data_dir)
    assert task.class_names == same.class_names
    assert {text.strip() for text in task.splits["test"].texts} == {
        text.strip() for text in same.splits["test"].texts
    }
    assert len(task.splits["train"].texts) == 90


def test_the_command_in_the_message_prepares_the_data(sst2_site, tmp_path, monkeypatch):
    command = failure("sst2", tmp_path / "new").splitlines()[3]
    program, flag, code = shlex.split(command)
    assert (program, flag) == ("python", "-c")
    write_sst2_zip(sst2_site)
    monkeypatch.chdir(tmp_path)
    with tfds._archives_without_tensorflow():
        exec(code, {})
    assert len(load("sst2", tmp_path / "tfds_data").splits["train"].texts) == 90


@pytest.mark.parametrize("content", [b"not a zip archive", None])
def test_failing_download(sst2_site, tmp_path, monkeypatch, content):
    from tensorflow_datasets.core.download import downloader

    monkeypatch.setattr(downloader, "MAX_RETRIES", 0)
    if content is None:  # found by the probe, then gone
        monkeypatch.setattr(tfds, "_why_unreachable", lambda url: None)
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
    assert tfds._find_prepared(tfds.TFDS_TASKS["sst2"], path) is None
