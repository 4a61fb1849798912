"""Text classification from the user's own files."""

import math
import pathlib
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mnms_jax.space import nearest
from mnms_jax.tasks.columns import Columns, parse_options, read_columns, unusable
from mnms_jax.tasks.text import deduplicate, normalize, split_rows
from mnms_jax.types import Split, Task, UserError

# Names of columns, in lower case; of those that a file has, the first one counts.
_TEXT_NAMES = (
    *("text", "sentence", "review", "content", "message", "comment", "tweet", "question"),
    *("document", "body", "title"),
)
_LABEL_NAMES = (
    *("label", "class", "category", "target", "sentiment", "intent", "topic", "stars", "rating"),
    "y",
)
_SHARE = 0.1  # of the rows, for validation and for test where they have no file of their own
_MOST_CHARACTERS = 1 << 17  # of a text, as in Python's reader of CSV
_NAME = re.compile(r"[\w-]+")
_NUMBER = re.compile(r"[+-]?\d{1,15}(\.\d*)?")


class FileTask(NamedTuple):
    """Where a task's rows are."""

    name: str
    train: pathlib.Path
    validation: pathlib.Path | None = None
    test: pathlib.Path | None = None
    text: str | None = None  # the column with the text; None: guessed by its name
    label: str | None = None  # likewise


class _Rows(NamedTuple):
    """Labelled texts of a file."""

    texts: list[str]
    labels: list[str]
    num_unlabelled: int  # rows left out


def parse_file_task(entry: str) -> FileTask:
    """Returns the task that NAME=PATH says, with ?KEY=VALUE&KEY=VALUE behind it or not.

    Keys are validation and test, paths of other files, and text and label, names of columns.

    Raises:
      UserError: it says something else.
    """
    name, _, rest = entry.partition("=")
    path, _, query = rest.partition("?")
    if not (_NAME.fullmatch(name) and path):
        raise UserError(
            f"task {entry!r}: must be NAME=PATH, the name of letters, digits, hyphens and "
            "underscores"
        )
    options = parse_options(entry, query, FileTask._fields[2:])
    files = {
        key: pathlib.Path(options[key]).expanduser()
        for key in ("validation", "test")
        if key in options
    }
    train = pathlib.Path(path).expanduser()
    return FileTask(name, train, **files, text=options.get("text"), label=options.get("label"))


def load_file_task(spec: FileTask) -> Task:
    """Reads a task from files.

    Rows without a label are left out. Of those to learn from, so are texts without a word, repeats,
    texts with contradictory labels, and what validation and test have too; the log says how many.
    What has no file of its own is a tenth of each class, always the same one.

    Args:
      spec: of the task; files as `read_columns` takes them. Labels may be of any type: classes are
        in the order of numbers if all are such, else of texts.

    Raises:
      UserError: a file or a column is missing or malformed, or there is too little to learn from.
    """
    parts = {
        part: _read_rows(spec, path)
        for part in ("train", "validation", "test")
        if (path := getattr(spec, part)) is not None
    }
    names = _class_names([label for rows in parts.values() for label in rows.labels])
    index = {name: number for number, name in enumerate(names)}
    ids = {part: [index[label] for label in rows.labels] for part, rows in parts.items()}
    splits = {
        part: Split(tuple(rows.texts), np.array(ids[part], np.int32))
        for part, rows in parts.items()
        if part != "train"
    }
    found = parts["train"]
    texts, labels = deduplicate(found.texts, ids["train"], list(splits.values()))
    wordless = sum(not normalize(text) for text in found.texts)
    logging.info(
        "%s: %d classes; %d of %d rows of %s are kept: %d have no label, %d no word, %d repeat or "
        "contradict others",
        *(spec.name, len(names), len(texts), len(found.texts) + found.num_unlabelled, spec.train),
        *(found.num_unlabelled, wordless, len(found.texts) - wordless - len(texts)),
    )
    shares = {part: _SHARE for part in ("validation", "test") if part not in splits}
    shares["train"] = 1 - sum(shares.values())
    splits |= split_rows(texts, labels, shares, stratify=True)
    for part in ("train", "validation", "test"):
        if not splits[part].texts:
            raise unusable(
                spec.train,
                f"its {len(texts)} different texts in {len(names)} classes leave nothing for "
                f"{part}; a class needs 6 texts, or name files as ?validation=PATH&test=PATH",
            )
    if len(set(splits["train"].labels.tolist())) < 2:
        raise unusable(spec.train, f"all its texts are of one class, {names[labels[0]]!r}")
    return Task(spec.name, {part: splits[part] for part in ("train", "validation", "test")}, names)


def _read_rows(spec: FileTask, path: pathlib.Path) -> _Rows:
    columns = read_columns(path)
    text_name = _find_column(columns, "text", spec.text, _TEXT_NAMES)
    label_name = _find_column(columns, "label", spec.label, _LABEL_NAMES)
    if text_name == label_name:
        raise unusable(path, f"text and label can't both be the column {text_name!r}")
    texts, labels = [], []
    of_row = zip(columns.rows, columns.values[text_name], columns.values[label_name], strict=True)
    for row, found, label in of_row:
        text = "" if found is None else found
        if not isinstance(text, str):
            raise unusable(path, f"row {row} has {text!r} in {text_name!r}; a text is needed")
        if len(text) > _MOST_CHARACTERS:
            fault = f"row {row} has {len(text)} characters in {text_name!r}"
            raise unusable(path, f"{fault}, more than {_MOST_CHARACTERS}")
        if label is None or (isinstance(label, float) and math.isnan(label)):
            continue
        if not isinstance(label, str | int | float):
            fault = f"row {row} has {label!r} in {label_name!r}"
            raise unusable(path, f"{fault}; a text, a number, or true or false is needed")
        if name := str(label).strip():
            texts.append(text)
            labels.append(name)
    return _Rows(texts, labels, len(columns.rows) - len(labels))


def _find_column(columns: Columns, what: str, name: str | None, guesses: Sequence[str]) -> str:
    if name is not None:
        if name not in columns.values:
            known = nearest(name, columns.values)
            raise unusable(columns.path, f"it has no column {name!r}{known}")
        return name
    by_lower = {column.lower(): column for column in reversed(columns.values)}
    for guess in guesses:
        if guess in by_lower:
            return by_lower[guess]
    raise unusable(
        columns.path,
        f"which of its columns {', '.join(columns.values)} is the {what}? Say ?{what}=COLUMN",
    )


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
    names = sorted(set(labels))
    if all(_NUMBER.fullmatch(name) for name in names):
        names.sort(key=float)
    return tuple(names)
