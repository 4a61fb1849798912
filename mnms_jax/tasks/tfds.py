"""Text classification from TensorFlow Datasets (TFDS), read without TensorFlow.

Only the array_record format is read. Whether a data set is there is decided from its folder, before
the import of TFDS, whose own answers are slow without a network and misleading for a broken folder.
"""

import contextlib
import http.client
import importlib.util
import json
import os
import pathlib
import queue
import re
import shlex
import threading
import types
import urllib.request
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from mnms_jax.space import nearest
from mnms_jax.tasks.columns import parse_options
from mnms_jax.tasks.text import deduplicate, split_texts
from mnms_jax.types import Split, Task, UserError

_VALIDATION_SHARE = 0.1
_PROBE_SECONDS = 2.0
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_DATASET = re.compile(r"[\w-]+(/[\w.-]+)?")


class TfdsSpec(NamedTuple):
    """A data set's names in TFDS."""

    dataset: str  # "<name>" or "<name>/<config>"
    text: str = "text"  # the feature with the text
    label: str = "label"  # the feature with the class
    train: str = "train"  # the split to learn from; a part of it is held out for validation
    test: str = "test"  # the labelled split that becomes the test split
    url: str | None = None  # what TFDS downloads first; None: unknown, so nothing is downloaded


TFDS_TASKS: dict[str, TfdsSpec] = {
    # Wang et al. (2018), GLUE; Socher et al. (2013), SST. The official test labels are secret.
    "sst2": TfdsSpec(
        dataset="glue/sst2",
        text="sentence",
        test="validation",
        url="https://dl.fbaipublicfiles.com/glue/data/SST-2.zip",
    ),
    # Warstadt et al. (2018), Neural Network Acceptability Judgments; likewise in GLUE.
    "cola": TfdsSpec(
        dataset="glue/cola",
        text="sentence",
        test="validation",
        url="https://dl.fbaipublicfiles.com/glue/data/CoLA.zip",
    ),
    # Maas et al. (2011), Learning Word Vectors for Sentiment Analysis.
    "imdb": TfdsSpec(
        dataset="imdb_reviews/plain_text",
        url="http://ai.stanford.edu/~amaas/data/sentiment/aclImdb_v1.tar.gz",
    ),
    # Zhang et al. (2015), Character-level Convolutional Networks for Text Classification.
    "ag_news": TfdsSpec(
        dataset="ag_news_subset",
        text="description",
        url="https://drive.google.com/uc?export=download&id=0Bz8a_Dbh9QhbUDNpeUdjb0wxRms",
    ),
    "yelp_polarity": TfdsSpec(
        dataset="yelp_polarity_reviews/plain_text",
        url="https://s3.amazonaws.com/fast-ai-nlp/yelp_review_polarity_csv.tgz",
    ),
}
_PREFIX = "tfds:"


def is_tfds_task(entry: str) -> bool:
    """Returns whether a task is of TFDS: a key of TFDS_TASKS, or tfds:NAME."""
    return entry in TFDS_TASKS or entry.startswith(_PREFIX)


def parse_tfds_task(entry: str) -> tuple[str, TfdsSpec]:
    """Returns a task's name, and its names in TFDS.

    Args:
      entry: a key of TFDS_TASKS, or tfds:NAME or tfds:NAME/CONFIG for any data set, with
        ?KEY=VALUE&KEY=VALUE behind it or not. Keys are the features text and label, and the splits
        train and test, which are called so by default.

    Raises:
      UserError: it says something else.
    """
    if entry in TFDS_TASKS:
        return entry, TFDS_TASKS[entry]
    dataset, _, query = entry.removeprefix(_PREFIX).partition("?")
    if not (entry.startswith(_PREFIX) and _DATASET.fullmatch(dataset)):
        known = ", ".join(sorted(TFDS_TASKS))
        raise UserError(f"unknown TFDS task {entry!r}: choose from {known}, or tfds:NAME/CONFIG")
    options = parse_options(entry, query, ("text", "label", "train", "test"))
    return dataset.replace("/", "-"), TfdsSpec(dataset, **options)


def load_tfds_task(entry: str, data_dir: str | None, packaged: Sequence[str]) -> Task:
    """Loads a data set, downloading it first where it is missing and there is a network.

    Repeats are removed from train, and so are its texts that are in test too; then a tenth of
    train is held out as validation. The test split is left as published.

    Args:
      entry: see `parse_tfds_task`.
      data_dir: where TFDS keeps its data; None means $TFDS_DATA_DIR or ~/tensorflow_datasets.
      packaged: names of tasks that need no network, to be offered where this one is not to be had.

    Returns:
      The task, with the splits train, validation and test, of texts [N] and labels int32 [N].

    Raises:
      UserError: the name is unknown, or the data are missing and cannot be downloaded, or lack a
        feature, or the prepared folder is broken.
    """
    name, spec = parse_tfds_task(entry)
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(data_dir or default).expanduser().absolute()
    folder = _find_prepared(spec, root) or _download(spec, root, packaged)
    train, test, class_names = _read(spec, folder)
    task = _to_task(name, train, test, class_names)
    kept, held = (len(task.splits[part].inputs) for part in ("train", "validation"))
    logging.info(
        "%s: %d of %d %s rows of %s are train, %d are validation; test is its split %s (%d rows)",
        *(name, kept, len(train.inputs), spec.train, folder, held, spec.test, len(test.inputs)),
    )
    return task


def _find_prepared(spec: TfdsSpec, root: pathlib.Path) -> pathlib.Path | None:
    """Returns the newest complete version's folder, or None if no version is there at all."""
    versions = [path for path in (root / spec.dataset).glob("*") if _VERSION.fullmatch(path.name)]
    versions.sort(key=lambda path: [int(part) for part in path.name.split(".")], reverse=True)
    faults = {path: _fault(spec, path) for path in versions}
    complete = [path for path, fault in faults.items() if fault is None]
    if versions and not complete:
        raise _broken(versions[0], str(faults[versions[0]]))
    return complete[0] if complete else None


def _fault(spec: TfdsSpec, folder: pathlib.Path) -> str | None:
    """Says what keeps a version's folder from being read, or None if its files are all there."""
    needed = ["dataset_info.json", "features.json"]
    if spec in TFDS_TASKS.values():  # whose classes have names
        needed.append(f"{spec.label}.labels.txt")
    missing = [name for name in needed if not (folder / name).exists()]
    if missing:
        return f"{', '.join(missing)} missing"
    try:
        info = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
        shards = {split["name"]: len(split.get("shardLengths", [])) for split in info["splits"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"dataset_info.json cannot be read ({type(error).__name__}: {error})"
    if not any(folder.glob("*.array_record*")):
        others = sorted({path.suffix[1:].split("-")[0] for path in folder.glob("*-?????-of-?????")})
        held = f"only {', '.join(others)}" if others else "no records"
        return f"it holds {held}, and array_record is needed"
    for split in (spec.train, spec.test):
        if not shards.get(split):
            return f"it has no rows in the split {split!r}"
        found = len(list(folder.glob(f"*-{split}.array_record*")))
        if found < shards[split]:
            return f"it has {found} of the {shards[split]} record files of the split {split!r}"
    return None


def _broken(folder: pathlib.Path, fault: str) -> UserError:
    return UserError(
        f"the data set in {folder} is not usable: {fault}.\n"
        "Delete that folder and prepare it again, or pass another --data_dir."
    )


def _why_unreachable(url: str, timeout: float = _PROBE_SECONDS) -> str | None:
    """Returns why a file is out of reach, or None if its server has it; takes timeout seconds."""
    outcome: queue.SimpleQueue[str | None] = queue.SimpleQueue()

    def ask() -> None:
        try:
            request = urllib.request.Request(url, method="HEAD")
            with urllib.request.urlopen(request, timeout=timeout):
                outcome.put(None)
        except (OSError, ValueError, http.client.HTTPException) as error:
            outcome.put(f"{url} is out of reach: {error}")

    # A name server that does not answer ignores the timeout, so the asking is left behind.
    threading.Thread(target=ask, daemon=True).start()
    try:
        return outcome.get(timeout=timeout)
    except queue.Empty:
        return f"{url} is out of reach: no answer within {timeout:g} seconds"


def _how_to_prepare(
    spec: TfdsSpec, root: pathlib.Path, reason: str, packaged: Sequence[str]
) -> str:
    unfinished = sorted(path.name for path in (root / spec.dataset).glob("*incomplete*"))
    left = f" (only what was left by an interrupted try: {unfinished[0]})" if unfinished else ""
    code = (
        "import tensorflow_datasets as tfds, tensorflow_datasets.text.glue; "
        f'tfds.builder("{spec.dataset}", data_dir="tfds_data", file_format="array_record")'
        ".download_and_prepare("
        "download_config=tfds.download.DownloadConfig(try_download_gcs=False))"
    )
    return (
        f"the data set {spec.dataset} is not prepared in {root / spec.dataset}{left}, "
        f"and it could not be downloaded: {reason}.\n"
        "Prepare it on a machine with a network, in any folder:\n"
        "  pip install tensorflow tensorflow-datasets array_record importlib_resources\n"
        f"  python -c {shlex.quote(code)}\n"
        "Then copy the folder tfds_data over and pass --data_dir=<its path here>.\n"
        f"Tasks that work right now, without a network: {', '.join(packaged)}."
    )


def _download(spec: TfdsSpec, root: pathlib.Path, packaged: Sequence[str]) -> pathlib.Path:
    """Downloads and prepares a data set, and returns its folder."""
    reason = _why_unreachable(spec.url) if spec.url is not None else "it isn't known where from"
    cause: Exception | None = None
    if reason is None:
        logging.info("downloading %s into %s", spec.dataset, root)
        try:
            return _prepare(spec, root)
        except Exception as error:  # of the network, the disk, the checksums, the archive, ...
            reason, cause = f"{type(error).__name__}: {error}", error
    raise UserError(_how_to_prepare(spec, root, reason, packaged)) from cause


def _prepare(spec: TfdsSpec, root: pathlib.Path) -> pathlib.Path:
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text.glue  # TFDS knows no GLUE before this

    builder = tfds.builder(spec.dataset, data_dir=root, file_format="array_record")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with _archives_without_tensorflow():
        builder.download_and_prepare(download_config=config)
    return pathlib.Path(builder.data_dir)


@contextlib.contextmanager
def _archives_without_tensorflow() -> Iterator[None]:
    """Lets TFDS unpack archives by Python's own `open`, where there is no TensorFlow.

    Its extractor takes nothing from TensorFlow but these two functions.
    """
    if importlib.util.find_spec("tensorflow") is not None:
        yield
        return
    from tensorflow_datasets.core.download import extractor

    original = extractor.tf
    extractor.tf = types.SimpleNamespace(
        compat=types.SimpleNamespace(as_text=str),
        io=types.SimpleNamespace(gfile=types.SimpleNamespace(GFile=open)),
    )
    try:
        yield
    finally:
        extractor.tf = original


def _read(spec: TfdsSpec, folder: pathlib.Path) -> tuple[Split, Split, tuple[str, ...]]:
    """Returns train and test as they are on disk, and the class names."""
    # The folder is opened as such: tfds.data_source would insist on one version of the data set.
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder, file_format="array_record")
        features = builder.info.features
        sources = builder.as_data_source(split=[spec.train, spec.test])
        train, test = (source.__getitems__(list(range(len(source)))) for source in sources)
    except Exception as error:  # TFDS and array_record raise many kinds for damaged files
        raise _broken(folder, f"{type(error).__name__}: {error}") from error
    for name in (spec.text, spec.label):
        if name not in features:
            raise UserError(
                f"the data set in {folder} has no feature {name!r}{nearest(name, features)}"
            )
    if not isinstance(features[spec.text], tfds.features.Text):
        raise UserError(
            f"{spec.text!r} of the data set in {folder} is {features[spec.text]}, no text"
        )
    labels = [[_plain(row[spec.label]) for row in rows] for rows in (train, test)]
    found = {*labels[0], *labels[1]}
    names = getattr(features[spec.label], "names", None)
    # A record file that was cut short gives None for all features.
    if None in found or (names and not found <= set(range(len(names)))):
        raise _broken(folder, "some rows have no label; are its record files complete?")
    if names is None:
        index = {value: number for number, value in enumerate(sorted(found))}
        names = [str(value) for value in index]
        labels = [[index[label] for label in own] for own in labels]
    texts = [
        tuple(row[spec.text].decode("utf-8", errors="replace") for row in rows)
        for rows in (train, test)
    ]
    train, test = (
        Split(own, np.array(ids, np.int32)) for own, ids in zip(texts, labels, strict=True)
    )
    return train, test, tuple(names)


def _plain(label: Any) -> Any:
    """Returns a label as Python's own: TFDS has NumPy's, and bytes for texts."""
    label = label.item() if isinstance(label, np.generic) else label
    return label.decode("utf-8", errors="replace") if isinstance(label, bytes) else label


def _to_task(name: str, train: Split, test: Split, class_names: tuple[str, ...]) -> Task:
    """Cleans train and holds validation out."""
    texts, labels = deduplicate(train.inputs, train.labels.tolist(), [test])
    shares = {"validation": _VALIDATION_SHARE, "train": 1.0 - _VALIDATION_SHARE}
    parts = split_texts(texts, labels, shares)
    return Task(
        name,
        {"train": parts["train"], "validation": parts["validation"], "test": test},
        class_names,
    )
