"""Classification from the user's own files: of texts, or of rows of numbers and categories."""

import decimal
import math
import pathlib
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mnms_jax.space import nearest
from mnms_jax.tasks.columns import Columns, check_once, parse_options, read_columns, unusable
from mnms_jax.tasks.records import fold_truth, is_feature, make_record_task, to_column
from mnms_jax.tasks.text import deduplicate, exclude, normalize, split_texts
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
    # The column with the text; None: guessed by its name; "none", if no column is called so: there
    # is none, as the file is one of records.
    text: str | None = None
    label: str | None = None  # likewise


class _Rows(NamedTuple):
    """Labelled texts of a file."""

    texts: list[str]
    labels: list[str]


def parse_file_task(entry: str) -> FileTask:
    """Returns the task that NAME=PATH says, with ?KEY=VALUE&KEY=VALUE behind it or not.

    Keys are validation and test, paths of other files, and text and label, names of columns;
    text=none says that a file is one of records.

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


def load_file_task(spec: FileTask, most: int | None = None) -> Task:
    """Reads a task from files.

    Rows without a label are left out. Of those to learn from, so are texts without a word, repeats,
    texts with contradictory labels, and what validation and test have too; of validation, what test
    has too. The log says how many. What has no file of its own is a tenth of each class, always the
    same one.

    Args:
      spec: of the task; files as `read_columns` takes them. Labels are texts, numbers, or true and
        false, by whose values classes are named: 1, 1.0 and "1" are the same. Classes are in the
        order of numbers if all are such, else of texts.
      most: of the first file, a sample of so many rows is kept, see `sample`; None: all.

    Raises:
      UserError: a file or a column is missing or malformed, or there is too little to learn from.
    """
    files = {
        part: read_columns(path, most if part == "train" else None)
        for part in ("train", "validation", "test")
        if (path := getattr(spec, part)) is not None
    }
    train = files["train"]
    if not _has_text(spec, train):
        return _load_records(spec, files)
    parts = {part: _read_rows(spec, columns) for part, columns in files.items()}
    names = _class_names([label for rows in parts.values() for label in rows.labels])
    index = {name: number for number, name in enumerate(names)}
    _warn_of_unseen(spec, names, parts["train"].labels)
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
    kept = exclude(validation, test)
    dropped = len(validation.inputs) - len(kept.inputs)
    if dropped:
        logging.warning("%s: %d texts of validation are in test too", spec.name, dropped)
    if not kept.inputs:
        assert spec.validation is not None
        raise unusable(spec.validation, f"all its texts are in {spec.test} too")
    return kept


def _has_text(spec: FileTask, columns: Columns) -> bool:
    """Returns whether a column is named as the text, or called as texts are.

    Numbers are none, but under "text".
    """
    if spec.text is not None:
        return spec.text != "none" or "none" in columns.names
    name = _guess(columns, _TEXT_NAMES)
    if name is None or name.lower() == _TEXT_NAMES[0]:
        return name is not None
    return to_column(columns.values[name]).dtype == object


def _warn_of_unseen(spec: FileTask, names: Sequence[str], labels: Sequence[str]) -> None:
    unseen = sorted({*names} - {*labels})
    if unseen:
        logging.warning("%s: nothing to learn %s from in %s", spec.name, unseen, spec.train)


def _load_records(spec: FileTask, files: Mapping[str, Columns]) -> Task:
    """Returns the task of files without a text, whose columns are numbers and categories."""
    label_name = _find_column(files["train"], "label", spec.label, _LABEL_NAMES)
    train = files["train"]
    others = [name for name in dict.fromkeys(train.names) if name not in (label_name, "")]
    labels = {
        part: _labels(columns, _same_column(columns, label_name)) for part, columns in files.items()
    }
    rows = {part: [i for i, label in enumerate(own) if label] for part, own in labels.items()}
    known = {}
    for name in others:
        try:
            values = train.values[name]
        except UserError as error:  # of a type that Python lacks
            logging.warning("%s: %r isn't learned from: %s", spec.name, name, error)
            continue
        known[name] = to_column([values[i] for i in rows["train"]])
    features = [name for name in known if is_feature(known[name])]
    if not features:
        fault = f"which of its columns {', '.join(others)} is the text? Say ?text=COLUMN"
        raise unusable(train.path, f"{fault}; none has numbers, or categories to learn from")
    for name in known:
        if name not in features:
            logging.warning(
                "%s: %r isn't learned from, its texts are all alike or all different; if it is "
                "the text to classify, say ?text=%s",
                *(spec.name, name, name),
            )
    classes = _class_names([label for own in labels.values() for label in own if label])
    _warn_of_unseen(spec, classes, labels["train"])
    index = {name: number for number, name in enumerate(classes)}
    splits = {}
    for part, columns in files.items():
        records = {
            name: _feature(columns, name, rows[part], known[name].dtype != object)
            for name in features
        }
        ids = [index[labels[part][i]] for i in rows[part]]
        splits[part] = Split(records, np.array(ids, np.int32))
        logging.info(
            "%s: %r is the label, %s are learned from; %d of %d rows of %s have a label",
            *(spec.name, label_name, ", ".join(features)),
            *(len(ids), len(columns.rows), columns.path),
        )
    return make_record_task(spec.name, splits, classes)


def _same_column(columns: Columns, name: str) -> str:
    return _find_column(columns, "column", name, ())


def _feature(columns: Columns, name: str, rows: Sequence[int], is_number: bool) -> np.ndarray:
    """Returns a column of some rows, as numbers or as texts."""
    values = columns.values[_same_column(columns, name)]
    try:
        found = to_column([values[i] for i in rows], is_number)
    except ValueError as error:
        fault = f"not all of its {name!r} are numbers, as in train: {error}"
        raise unusable(columns.path, fault) from error
    for i in rows[:1]:
        _check_characters(columns.path, columns.rows[i], name)
    if not is_number:
        for i, text in zip(rows, found.tolist(), strict=True):
            _check_characters(columns.path, columns.rows[i], text)
    return found


def read_texts(columns: Columns, name: str | None = None) -> list[str]:
    """Returns the texts of a file's rows, "" where a row has none.

    Args:
      columns: of the file.
      name: of the column; None: guessed.

    Raises:
      UserError: there is no such column, or it holds something else.
    """
    path, texts = columns.path, []
    name = _find_column(columns, "text", name, _TEXT_NAMES)
    for row, value in zip(columns.rows, columns.values[name], strict=True):
        text = "" if value is None else value
        if not isinstance(text, str):
            raise unusable(path, f"row {row} has {text!r} in {name!r}; a text is needed")
        if len(text) > _MOST_CHARACTERS:
            fault = f"row {row} has {len(text)} characters in {name!r}"
            raise unusable(path, f"{fault}, more than {_MOST_CHARACTERS}")
        _check_characters(path, row, text)
        texts.append(unicodedata.normalize("NFC", text))
    return texts


def _read_rows(spec: FileTask, columns: Columns) -> _Rows:
    path = columns.path
    text_name = _find_column(columns, "text", spec.text, _TEXT_NAMES)
    label_name = _find_column(columns, "label", spec.label, _LABEL_NAMES)
    if text_name == label_name:
        raise unusable(path, f"text and label can't both be the column {text_name!r}")
    found = zip(read_texts(columns, text_name), _labels(columns, label_name), strict=True)
    pairs = [(text, label) for text, label in found if label]
    logging.info(
        "%s: texts are %r and labels %r of %s; %d of %d rows have a label",
        *(spec.name, text_name, label_name, path, len(pairs), len(columns.rows)),
    )
    return _Rows([text for text, _ in pairs], [label for _, label in pairs])


def _labels(columns: Columns, name: str) -> list[str]:
    """Returns the names of the rows' classes, "" where a row has none.

    Raises:
      UserError: a label is neither a text nor a number, or there is none at all.
    """
    path, labels = columns.path, []
    for row, label in zip(columns.rows, columns.values[name], strict=True):
        if label is None or (isinstance(label, float) and math.isnan(label)):
            labels.append("")
            continue
        if not isinstance(label, str | int | float | decimal.Decimal):
            fault = f"row {row} has {label!r} in {name!r}"
            raise unusable(path, f"{fault}; a text, a number, or true or false is needed")
        labels.append(_class_name(label))
        _check_characters(path, row, labels[-1])
    if not any(labels):
        raise unusable(path, f"none of its {len(columns.rows)} rows has a label in {name!r}")
    return labels


def _check_characters(path: pathlib.Path, row: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise unusable(path, f"row {row} has half a character: {error.reason}") from error


def _class_name(label: str | float | decimal.Decimal) -> str:
    """Returns what a label is called: the same for a value, whatever the file makes of it."""
    name = fold_truth(unicodedata.normalize("NFC", str(label).strip()))
    return str(int(float(name))) if _INTEGER.fullmatch(name) else name


def _find_column(columns: Columns, what: str, name: str | None, guesses: Sequence[str]) -> str:
    name = name or _guess(columns, guesses)
    if name is None:
        known = ", ".join(columns.names)
        fault = f"which of its columns {known} is the {what}? Say ?{what}=COLUMN"
        raise unusable(columns.path, fault)
    if name not in columns.names:
        raise unusable(columns.path, f"it has no column {name!r}{nearest(name, columns.names)}")
    check_once(columns, name)
    return name


def _guess(columns: Columns, names: Sequence[str]) -> str | None:
    """Returns the first column that is called by one of these names, the first that is there."""
    by_lower = {column.lower(): column for column in reversed(columns.names)}
    return next((by_lower[name] for name in names if name in by_lower), None)


def _class_names(labels: Sequence[str]) -> tuple[str, ...]:
    names = sorted(set(labels))
    if all(_NUMBER.fullmatch(name) for name in names):
        names.sort(key=float)
    return tuple(names)
