"""Predictions of a saved child for files of any length, a part at a time."""

import contextlib
import csv
import itertools
import json
import pathlib
import sys
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeAlias

import numpy as np
from absl import logging

from mnms_jax.export import Child, ImageChild, TextChild, probabilities
from mnms_jax.space import nearest
from mnms_jax.store import UNFINISHED
from mnms_jax.tasks.columns import (
    SUFFIXES,
    SUFFIXES_LISTED,
    check_once,
    read_batches,
    read_lines,
    unusable,
)
from mnms_jax.tasks.files import read_texts
from mnms_jax.tasks.images import read_idx
from mnms_jax.tasks.text import UNKNOWN, tokenize
from mnms_jax.types import UserError

_ROWS = 4096  # that are in memory at once

# What rows are called in the output, and their inputs as the child takes them.
_Part: TypeAlias = tuple[Sequence[str | int], Any]
# What rows are called, their classes, and all classes' probabilities.
_WritePart: TypeAlias = Callable[[Sequence[str | int], Sequence[str], np.ndarray], None]


def find_child(path: pathlib.Path, task: str = "") -> pathlib.Path:
    """Returns the folder of a search's best child on a task.

    Args:
      path: of the search, or a child's own folder.
      task: its name; empty: the only one.

    Raises:
      UserError: there is no such child.
    """
    if (path / "child.json").exists():
        return path
    known = sorted(child.parent.name for child in path.glob("best/*/child.json"))
    if not known and (path / "config.json").exists():
        raise UserError(f"--workdir {path}: {UNFINISHED}")
    if not known:
        raise UserError(f"--workdir {path} holds no best children: no search has ended there")
    if not task and len(known) > 1:
        raise UserError(f"--task: name one of {', '.join(known)}")
    if task and task not in known:
        raise UserError(f"--task={task}: {path} has no best child of it{nearest(task, known)}")
    return path / "best" / (task or known[0])


def predict_file(child: Child, source: str, target: str = "-") -> None:
    """Writes a class and all classes' probabilities for each row of a file.

    Args:
      child: predicts.
      source: for texts, a file of columns, or of any other name a text a line, "-" being the
        standard input; for records, a file of columns; for images, .npy or IDX. The column of the
        texts is what ?text=COLUMN behind the file says; else what it said of the file that the
        child was trained on; where the file has none of that name, it is guessed.
      target: a file of JSON lines if its name ends in .jsonl, else CSV; "-" is the standard output.

    Raises:
      UserError: a file can't be used.
    """
    path, _, column = source.partition("?text=")
    parts = _read(child, pathlib.Path(path).expanduser(), column or None)
    first = next(parts, None)  # before anything is written
    counts = np.zeros(3, int)  # of texts, those without a word, those without a known one
    with _open(target, path) as file:
        write = (_json_writer if target.endswith(".jsonl") else _csv_writer)(file, child)
        for names, inputs in itertools.chain([] if first is None else [first], parts):
            found = probabilities(child, inputs)
            write(names, [child.class_names[i] for i in found.argmax(-1)], found)
            if isinstance(child, TextChild):
                counts += [len(names), *_count_unseen(child, [str(name) for name in names])]
    if counts[1:].any():
        logging.warning(
            "of %d texts %d are without a word, and %d more without one that the child knows: what "
            "is predicted of these means nothing",
            *counts,
        )


def _count_unseen(child: TextChild, texts: Sequence[str]) -> tuple[int, int]:
    """Returns how many texts have no word, and how many have some of which the child knows none."""
    encoder = child.encoder
    known = {*encoder.vocabulary[UNKNOWN + 1 :]}
    words = [tokenize(text, encoder.preprocessing)[: encoder.length] for text in texts]
    wordless = sum(not own for own in words)
    if child.architecture.subwords or child.architecture.encoded:  # these know any word
        return wordless, 0
    return wordless, sum(known.isdisjoint(own) for own in words) - wordless


def _read(child: Child, path: pathlib.Path, column: str | None) -> Iterator[_Part]:
    """Yields the rows' names and a batch for the child."""
    if isinstance(child, TextChild):
        for texts in _read_texts(path, column, child.text_column):
            yield texts, child.encode(texts)
    elif isinstance(child, ImageChild):
        images = _read_images(path)
        for start in range(0, len(images), _ROWS):
            with _faults_in(path):
                batch = child.encode(images[start : start + _ROWS])
            yield range(start + 1, start + len(batch) + 1), batch
    elif path.suffix not in SUFFIXES:
        raise unusable(path, f"records have columns; name a file that ends in {SUFFIXES_LISTED}")
    else:
        start = 1
        needed = [*child.encoder.numbers, *(name for name, _ in child.encoder.categories)]
        for columns in read_batches(path, _ROWS):
            for name in needed:
                check_once(columns, name)
            with _faults_in(path):
                batch = child.encode(columns.values)
            yield range(start, start + len(batch)), batch
            start += len(batch)


def _read_texts(
    path: pathlib.Path, column: str | None, trained_on: str | None
) -> Iterator[list[str]]:
    if path.suffix.lower() in SUFFIXES:  # others than lower-case ones are refused there
        for columns in read_batches(path, _ROWS):
            known = trained_on if trained_on in columns.names else None
            yield read_texts(columns, column or known)
        return
    lines = (unicodedata.normalize("NFC", line.rstrip("\r\n")) for line in read_lines(path))
    while texts := list(itertools.islice(lines, _ROWS)):
        yield texts


def _read_images(path: pathlib.Path) -> np.ndarray:
    """Returns images, uint8 [N, H, W, C]; those of .npy aren't read until they are used."""
    if path.suffix != ".npy":
        return read_idx(path, 3)[..., None]
    try:
        images = np.lib.format.open_memmap(path, mode="r")
    except (OSError, ValueError, EOFError) as error:
        raise unusable(path, f"it cannot be read: {error}") from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        fault = f"it has {images.dtype} of shape {list(images.shape)}"
        raise unusable(path, f"{fault}; images are uint8 [N, H, W] or [N, H, W, C]")
    if 0 in images.shape[1:]:
        raise unusable(path, f"its images are empty: it has shape {list(images.shape)}")
    return images if images.ndim == 4 else images[..., None]


@contextlib.contextmanager
def _faults_in(path: pathlib.Path) -> Iterator[None]:
    """Names the file in what a child finds wrong with its rows."""
    try:
        yield
    except UserError as error:
        raise unusable(path, str(error)) from error


@contextlib.contextmanager
def _open(target: str, source: str) -> Iterator[IO[str]]:
    if target == "-":
        yield sys.stdout
        return
    path = pathlib.Path(target).expanduser()
    if path.exists() and source != "-" and path.samefile(pathlib.Path(source).expanduser()):
        raise UserError(f"--output={target}: it is the input too; name another file")
    try:
        file = path.open("w", encoding="utf-8", newline="")
    except OSError as error:
        raise UserError(f"--output={target} can't be written: {error.strerror}") from error
    with file:
        yield file


def _csv_writer(file: IO[str], child: Child) -> _WritePart:
    writer = csv.writer(file, lineterminator="\n")
    classes = [f"p_{name}" for name in child.class_names]
    writer.writerow([_row_name(child), "label", *classes])

    def write(names: Sequence[str | int], labels: Sequence[str], found: np.ndarray) -> None:
        for name, label, row in zip(names, labels, found.tolist(), strict=True):
            writer.writerow([name, label, *(f"{share:.6f}" for share in row)])

    return write


def _json_writer(file: IO[str], child: Child) -> _WritePart:
    def write(names: Sequence[str | int], labels: Sequence[str], found: np.ndarray) -> None:
        for name, label, row in zip(names, labels, found.tolist(), strict=True):
            shares = {c: round(share, 6) for c, share in zip(child.class_names, row, strict=True)}
            line = {_row_name(child): name, "label": label, "probabilities": shares}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")

    return write


def _row_name(child: Child) -> str:
    return "text" if isinstance(child, TextChild) else "row"
