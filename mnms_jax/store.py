"""What a search leaves on disk: configuration, trial log and checkpoints, safe against crashes."""

import fcntl
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from mnms_jax.types import Choice, UserError


class TrialRecord(NamedTuple):
    """One line of trials.jsonl."""

    task: str
    trial: int  # number on its task, from 0
    decisions: dict[str, Choice]  # the active ones, by name
    reward: float | None  # None when failed
    failed: str | None  # the reason
    seconds: float  # of training
    samples: int  # training examples seen; 0 when answered from the log
    bucket: str  # the compiled program; "log" when answered from the log
    round: int
    rungs: Sequence[float] = ()  # accuracies on the way, at the rungs of early stopping
    stopped: bool = False  # at the last of these rungs
    metrics: Mapping[str, float] = {}  # on validation, and sizes; empty in logs of older versions

    @property
    def is_whole(self) -> bool:
        """Whether it is a training of its own to the end: no repeat, and not stopped early."""
        return self.bucket != "log" and not self.stopped


# What JSON makes of a TrialRecord's fields.
_NUMBER = int | float
_KINDS = (
    *(str, int, dict, _NUMBER | None, str | None, _NUMBER, int, str, int),
    *(list | tuple, bool, dict),
)


class TrialLog:
    """An append-only file with a JSON object a line.

    A torn last line, as a crash leaves it, is not read, and cut off before anything is appended.

    Raises:
      UserError: another line isn't a trial, or one that stands before it.
    """

    def __init__(self, path: pathlib.Path):
        self._path = path
        self.records: list[TrialRecord] = []
        content = path.read_bytes() if path.exists() else b""
        self._size = content.rfind(b"\n") + 1
        seen = set()
        for number, line in enumerate(content[: self._size].split(b"\n")[:-1], 1):
            try:
                record = _parse(line)
            except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
                raise UserError(
                    f"{path}, line {number}: not a trial; mend the line, or remove it and all after"
                ) from None
            if (record.task, record.trial) in seen:
                raise UserError(
                    f"{path}, line {number}: trial {record.trial} of {record.task} stands before "
                    "it already; remove the line"
                )
            seen.add((record.task, record.trial))
            self.records.append(record)

    @property
    def content(self) -> bytes:
        """The whole lines of the file."""
        return self._path.read_bytes()[: self._size] if self._size else b""

    def append(self, record: TrialRecord) -> None:
        """Writes a trial to the disk, and returns once it is there.

        Raises:
          UserError: the file lacks what was in it before.
        """
        line = (json.dumps(record._asdict(), ensure_ascii=False) + "\n").encode()
        with self._path.open("ab") as file:
            if file.tell() < self._size:
                raise UserError(
                    f"{self._path} was cut or removed while the search was running; restore it, "
                    "or take another --workdir"
                )
            file.truncate(self._size)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if not self._size:
            _sync_folder(self._path.parent)
        self._size += len(line)
        self.records.append(record)


def _parse(line: bytes) -> TrialRecord:
    """Returns the trial of a line.

    Raises:
      ValueError, TypeError, AttributeError, OverflowError, RecursionError: it holds none.
    """
    record = TrialRecord(**json.loads(line))
    record = record._replace(rungs=tuple(record.rungs))
    numbers = [record.seconds, *record.rungs, *record.metrics.values()]
    if record.reward is not None:
        numbers.append(record.reward)
    if not (
        all(map(isinstance, record, _KINDS))
        and all(isinstance(choice, Choice) for choice in record.decisions.values())
        and all(isinstance(number, _NUMBER) and math.isfinite(number) for number in numbers)
        and (record.reward is None) == (record.failed is not None)
    ):
        raise ValueError(line)
    return record


def _sync_folder(path: pathlib.Path) -> None:
    """Writes a folder's list of files to the disk, on which a new file isn't found otherwise."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class Checkpoints:
    """The last few states of a search, numbered by round."""

    def __init__(self, path: pathlib.Path, max_to_keep: int = 3):
        path.mkdir(exist_ok=True)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=max_to_keep,
            create=False,
            cleanup_tmp_directories=True,
            async_options=patient(),
            multiprocessing_options=this_process(),
        )
        self._path = path
        self._manager = ocp.CheckpointManager(path.absolute(), options=options)

    def save(self, step: int, state: Any) -> None:
        """Writes a pytree of arrays, in the background; a crash meanwhile leaves the one before.

        The first process alone writes.

        Raises:
          UserError: this one, or the one before, can't be written.
        """
        if jax.process_index() > 0:
            return
        arrays = jax.tree.map(_to_host, state)
        # Orbax doesn't notice all damage: a flipped bit of an array would be another number.
        saved = {"state": arrays, "sha256": np.frombuffer(arrays_digest(arrays), np.uint8)}
        with writing(self._path):
            self._manager.save(step, args=ocp.args.StandardSave(saved))

    def restore(self, like: Any) -> Any | None:
        """Returns the newest state that can be read, or None; `like` gives shapes and types."""
        digest = np.zeros(hashlib.sha256().digest_size, np.uint8)
        wanted = {"state": jax.tree.map(_to_host, like), "sha256": digest}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = self._manager.restore(step, args=ocp.args.StandardRestore(wanted))
                if arrays_digest(found["state"]) != found["sha256"].tobytes():
                    raise ValueError("its arrays are damaged")
            except Exception as error:  # orbax and tensorstore have no common error
                logging.warning(
                    "checkpoint %d can't be read, going on from the one before: %s", step, error
                )
            else:
                return jax.tree.map(_from_host, like, found["state"])
        return None

    def clear(self) -> None:
        """Removes all checkpoints; the first process alone does."""
        if jax.process_index() > 0:
            return
        for step in self._manager.all_steps():
            self._manager.delete(step)

    def close(self) -> None:
        """Waits until all is written.

        Raises:
          UserError: it can't be.
        """
        with writing(self._path):
            self._manager.close()


def this_process() -> ocp.options.MultiprocessingOptions:
    """Returns options by which Orbax waits for no other process: each writes what is its own."""
    own = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=own, active_processes={own})


def patient() -> ocp.AsyncOptions:
    """Returns options by which Orbax gives nothing up when the wall clock jumps."""
    return ocp.AsyncOptions(timeout_secs=10**9, create_directories_asynchronously=False)


@contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Turns what Orbax raises while it writes into a folder into a UserError."""
    try:
        yield
    except Exception as error:  # orbax and tensorstore have no common error
        reason = str(error).rpartition(": ")[2].partition(" [")[0]
        raise UserError(
            f"a checkpoint can't be written to {path} ({reason}); mend that, and the same command "
            "goes on from here"
        ) from error


def arrays_digest(arrays: Any) -> bytes:
    """Returns the SHA-256 of a pytree of NumPy arrays."""
    digest = hashlib.sha256()
    for array in jax.tree.leaves(arrays):
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.digest()


def _is_key(array: Any) -> bool:
    return jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key)


def _to_host(array: Any) -> np.ndarray:
    return np.asarray(jax.random.key_data(array) if _is_key(array) else array)


def _from_host(like: Any, array: np.ndarray) -> jax.Array:
    if _is_key(like):
        return jax.random.wrap_key_data(jnp.asarray(array), impl=jax.random.key_impl(like))
    return jnp.asarray(array)


class Workdir(NamedTuple):
    """An open folder of one search."""

    path: pathlib.Path
    log: TrialLog
    checkpoints: Checkpoints


@contextmanager
def open_workdir(
    path: pathlib.Path, config: Mapping[str, Any], resumable: Sequence[str] = ()
) -> Iterator[Workdir]:
    """Opens a search's folder for this process alone, and creates it when it is new.

    The arguments and errors are those of `claim_folder`.
    """
    with claim_folder(path, config, resumable):
        log = TrialLog(path / "trials.jsonl")
        if log.records:
            logging.info("%s has %d trials, which are gone on from", path, len(log.records))
        checkpoints = Checkpoints(path / "checkpoints")
        try:
            yield Workdir(path, log, checkpoints)
        finally:
            checkpoints.close()


@contextmanager
def claim_folder(
    path: pathlib.Path, config: Mapping[str, Any], resumable: Sequence[str] = ()
) -> Iterator[None]:
    """Keeps a folder for this process alone, and creates it when it is new.

    Args:
      path: the folder.
      config: plain JSON data that defines what is searched, kept in config.json.
      resumable: keys of the config that may change when the search is resumed.

    Raises:
      UserError: another process has it open, it belongs to another search, or it can't be written.
    """
    with writable("--workdir", path):
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--workdir {path} is in use by another process; wait for it, or take another"
            ) from None
        _check_config(path / "config.json", config, resumable)
        yield


@contextmanager
def writable(flag: str, path: pathlib.Path) -> Iterator[None]:
    """Turns what the system has against writing to a path into a UserError that names its flag."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{flag} {path} can't be written: {error.strerror}") from error


def write_json(path: pathlib.Path, data: Any) -> None:
    """Writes a JSON file whole or not at all."""
    write_whole(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def write_whole(path: pathlib.Path, text: str) -> None:
    """Writes a file whole or not at all, in place of the one that was there."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the object that a JSON file holds, an empty one if there is no file.

    Raises:
      UserError: it holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise UserError(
            f"{path} is no JSON file of a search; restore it, or take another --workdir"
        )
    return content


# What to do about a folder of a search that lacks what is written at its end.
UNFINISHED = "its search hasn't ended; run its command once more, which goes on where it stopped"


def read_config(path: pathlib.Path) -> dict[str, Any]:
    """Returns the config.json of a search's folder.

    Raises:
      UserError: there is none, or it is damaged.
    """
    config = read_json(path / "config.json")
    if not config:
        raise UserError(f"--workdir {path} holds no search: it has no config.json")
    return config


# What searches that are older than a flag did.
_BEFORE = {"reward": "accuracy", "max_train_examples": 0, "rounds_in_flight": 1, "tell": "ordered"}


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Returns the keys in which two searches' configs differ; both may be older than a flag."""
    first, second = ({**_BEFORE, **config} for config in (one, other))
    return [key for key in sorted({*first, *second}) if first.get(key) != second.get(key)]


def _check_config(path: pathlib.Path, config: Mapping[str, Any], resumable: Sequence[str]) -> None:
    config = json.loads(json.dumps(config))
    if path.exists():
        stored = read_json(path)
        different = [
            f"{key}: {stored.get(key, _BEFORE.get(key))!r} there, {config.get(key)!r} now"
            for key in differences(stored, config)
            if key not in resumable
        ]
        if different:
            raise UserError(
                f"--workdir {path.parent} belongs to another search ({'; '.join(different)}); "
                "take another folder, or the same flags"
            )
    write_json(path, config)
