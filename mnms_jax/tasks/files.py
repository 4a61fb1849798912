"""Text classification from the user's own files."""

import math
import pathlib
import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mnms_jax.space import nearest
from mnms_jax.tasks.columns import Columns, parse_options, read_columns, unusable
from mnms_jax.tasks.text import deduplicate, normalize, split_texts
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
_NAME = re.compile(r"[\w-]{1,64}")
_INTEGER = re.compile(r"[+-]?(0|[1-9][0-9]{0,14})(\.0*)?")
_NUMBER = re.compile(r"[+-]?[0-9]{1,15}(\.[0-9]*)?")


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
            f"task {entry!r}: must be NAME=PATH, the name of up to 64 letters, digits, hyphens "
            "and underscores"
        )
    options = parse_options(entry, query, FileTask._fields[2:])
    try:
        files = {
            key: pathlib.Path(options[key]).expanduser()
            for key in ("validation", "test")
            if key in options
        }
        train = pathlib.Path(path).expanduser()
    except RuntimeError as error:  # the home of a user that isn't there
        raise UserError(f"task {entry!r}: {error}") from error
    return FileTask(name, train, **files, text=options.get("text"), label=options.get("label"))


def load_file_task(spec: FileTask) -> Task:
    """Reads a task from files.

    Rows without a label are left out. Of those to learn from, so are texts without a word, repeats,
    texts with contradictory labels, and what validation and test have too; of validation, what test
    has too. The log says how many. What has no file of its own is a tenth of each class, always the
    same one.

    Args:
      spec: of the task; files as `read_columns` takes them. Labels are texts, numbers, or true and
        false, by whose values classes are named: 1, 1.0 and "1" are the same. Classes are in the
        order of numbers if all are such, else of texts.

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
    unseen = sorted({*names} - {*parts["train"].labels})
    if unseen:
        logging.warning("%s: nothing to learn %s from in %s", spec.name, unseen, spec.train)
    splits = {
        part: Split(tuple(rows.texts), np.array([index[x] for x in rows.labels], np.int32))
        for part, rows in parts.items()
    }
    found = splits.pop("train")
    if {*splits} == {"validation", "test"}:
        splits["validation"] = _without(splits["validation"], splits["test"], spec)
    # In an order of their own, so that which of several repeats stays depends on the texts alone.
    pairs = sorted(zip(found.inputs, found.labels.tolist(), strict=True))
    texts, labels = deduplicate(
        [text for text, _ in pairs], [label for _, label in pairs], list(splits.values())
    )
    wordless = sum(not normalize(text) for text in found.inputs)
    logging.info(
        "%s: %d classes; %d labelled rows of %d are kept to learn from; %d have no word, %d repeat "
        "or contradict others, or are in validation or test too",
        *(spec.name, len(names), len(texts), len(found.inputs), wordless),
        len(found.inputs) - wordless - len(texts),
    )
    if not texts:
        raise unusable(spec.train, "none of its texts is left to learn from, see the log")
    shares = {part: _SHARE for part in ("validation", "test") if part not in splits}
    shares["train"] = 1 - sum(shares.values())
    splits |= split_texts(texts, labels, shares, stratify=True)
    for part in shares:
        if not splits[part].inputs:
            raise unusable(
                spec.train,
                f"its {len(texts)} different texts in {len(names)} classes leave nothing for "
                f"{part}; a class needs 6 texts, or name files as ?validation=PATH&test=PATH",
            )
    if len(set(splits["train"].labels.tolist())) < 2:
        raise unusable(spec.train, f"all its texts are of one class, {names[labels[0]]!r}")
    return Task(spec.name, {part: splits[part] for part in ("train", "validation", "test")}, names)


def _without(validation: Split, test: Split, spec: FileTask) -> Split:
    """Returns validation without what test has too.

    Raises:
      UserError: nothing is left.
    """
    tested = {normalize(text) for text in test.inputs}
    rows = [row for row, text in enumerate(validation.inputs) if normalize(text) not in tested]
    dropped = len(validation.inputs) - len(rows)
    if dropped:
        logging.warning("%s: %d texts of validation are in test too", spec.name, dropped)
    if not rows:
        assert spec.validation is not None
        raise unusable(spec.validation, f"all its texts are in {spec.test} too")
    return Split(tuple(validation.inputs[row] for row in rows), validation.labels[rows])


def _read_rows(spec: FileTask, path: pathlib.Path) -> _Rows:
    columns = read_columns(path)
    text_name = _find_column(columns, "text", spec.text, _TEXT_NAMES)
    label_name = _find_column(columns, "label", spec.label, _LABEL_NAMES)
    if text_name == label_name:
        raise unusable(path, f"text and label can't both be the column {text_name!r}")
    values = columns.values[text_name], columns.values[label_name]
    texts, labels = [], []
    for row, found, label in zip(columns.rows, *values, strict=True):
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
        name = _class_name(label)
        try:
            f"{text}{name}".encode()
        except UnicodeEncodeError as error:
            raise unusable(path, f"row {row} has half a character: {error.reason}") from error
        if name:
            texts.append(unicodedata.normalize("NFC", text))
            labels.append(name)
    if not labels:
        raise unusable(path, f"none of its {len(columns.rows)} rows has a label in {label_name!r}")
    logging.info(
        "%s: texts are %r and labels %r of %s; %d of %d rows have a label",
        *(spec.name, text_name, label_name, path, len(labels), len(columns.rows)),
    )
    return _Rows(texts, labels)


def _class_name(label: str | float) -> str:
    """Returns what a label is called: the same for a value, whatever the file makes of it."""
    name = unicodedata.normalize("NFC", str(label).strip())
    if name.lower() in ("true", "false"):
        return name.lower()
    return str(int(float(name))) if _INTEGER.fullmatch(name) else name


def _find_column(columns: Columns, what: str, name: str | None, guesses: Sequence[str]) -> str:
    if name is None:
        by_lower = {column.lower(): column for column in reversed(columns.names)}
        name = next((by_lower[guess] for guess in guesses if guess in by_lower), None)
    if name is None:
        known = ", ".join(columns.names)
        fault = f"which of its columns {known} is the {what}? Say ?{what}=COLUMN"
        raise unusable(columns.path, fault)
    if name not in columns.names:
        raise unusable(columns.path, f"it has no column {name!r}{nearest(name, columns.names)}")
    if columns.names.count(name) > 1:
        raise unusable(columns.path, f"several of its columns are called {name!r}; rename them")
    return name


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
    names = sorted(set(labels))
    if all(_NUMBER.fullmatch(name) for name in names):
        names.sort(key=float)
    return tuple(names)
