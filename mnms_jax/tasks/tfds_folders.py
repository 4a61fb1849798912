"""Where the data sets of TensorFlow Datasets (TFDS) lie, and how they come there.

Whether a data set is there is decided from its folder, before the import of TFDS, whose own answers
are slow without a network and misleading for a broken folder. Only the array_record format counts,
which is read without TensorFlow.
"""

import contextlib
import http.client
import importlib.util
import json
import pathlib
import queue
import re
import shlex
import threading
import types
import urllib.request
from collections.abc import Iterator, Sequence

from absl import logging

from mnms_jax.space import nearest
from mnms_jax.tasks.tfds_specs import TfdsSpec
from mnms_jax.types import UserError

_PROBE_SECONDS = 2.0
_VERSION = re.compile(r"\d+\.\d+\.\d+")


def find_prepared(spec: TfdsSpec, root: pathlib.Path) -> pathlib.Path | None:
    """Returns the newest complete version's folder, or None if no version is there at all."""
    versions = [path for path in (root / spec.dataset).glob("*") if _VERSION.fullmatch(path.name)]
    versions.sort(key=lambda path: [int(part) for part in path.name.split(".")], reverse=True)
    faults = {path: _fault(spec, path) for path in versions}
    complete = [path for path, fault in faults.items() if fault is None]
    if versions and not complete:
        raise broken(versions[0], str(faults[versions[0]]))
    return complete[0] if complete else None


def _fault(spec: TfdsSpec, folder: pathlib.Path) -> str | None:
    """Says what keeps a version's folder from being read, or None if its files are all there."""
    needed = ["dataset_info.json", "features.json"]
    if spec.named:
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
    for split in (spec.train, spec.validation, spec.test):
        if not shards.get(split):
            held_out = "" if spec.url else f"; ?test={spec.train} holds out a tenth of that one"
            return f"it has no rows in the split {split!r}{nearest(split, shards)}{held_out}"
        found = len(list(folder.glob(f"*-{split}.array_record*")))
        if found < shards[split]:
            return f"it has {found} of the {shards[split]} record files of the split {split!r}"
    return None


def broken(folder: pathlib.Path, fault: str) -> UserError:
    """Returns the error that a prepared folder has a fault."""
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
        "import tensorflow_datasets as tfds, tensorflow_datasets.text; "
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


def download(spec: TfdsSpec, root: pathlib.Path, packaged: Sequence[str]) -> pathlib.Path:
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
    import tensorflow_datasets.text  # TFDS doesn't know all texts before this

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
