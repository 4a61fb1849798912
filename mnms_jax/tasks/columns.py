"""Columns of the user's own files: CSV, TSV, JSON lines and Parquet."""

import csv
import io
import json
import pathlib
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

from mnms_jax.space import nearest
from mnms_jax.types import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SUFFIXES_LISTED = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


class Columns(NamedTuple):
    """A file's columns by name, of N values each, None where there is none."""

    path: pathlib.Path
    values: dict[str, list[Any]]
    rows: Sequence[int]  # N numbers that tell the rows in messages: lines, if the file has any
    typed: bool  # False: all values are texts


def read_columns(path: pathlib.Path) -> Columns:
    """Reads a file by what its name ends in.

    CSV has quotation marks, TSV doesn't; in both the first line names the columns, and spaces
    around a value don't count. Each of the JSON lines is an object. All three are in UTF-8.

    Raises:
      UserError: the file is missing, malformed or without any row; the message tells which row.
    """
    if path.suffix not in SUFFIXES:
        raise unusable(path, f"its name must end in {SUFFIXES_LISTED}")
    if path.suffix == ".parquet":
        names, values, rows = _read_parquet(path)
    elif path.suffix == ".jsonl":
        names, values, rows = _read_json_lines(path)
    else:
        names, values, rows = _read_lines(path)
    for name in names:
        if names.count(name) > 1 or not name:
            raise unusable(path, f"each column needs a name of its own, not {name!r}")
    if not rows:
        raise unusable(path, "it has no rows")
    typed = path.suffix in (".jsonl", ".parquet")
    return Columns(path, dict(zip(names, values, strict=True)), rows, typed)


def parse_options(entry: str, query: str, known: Collection[str]) -> dict[str, str]:
    """Returns what KEY=VALUE&KEY=VALUE says.

    Args:
      entry: of which it is a part, for messages.
      query: may be empty.
      known: the keys.

    Raises:
      UserError: it says something else.
    """
    options = dict(pair.partition("=")[::2] for pair in query.split("&")) if query else {}
    for key, value in options.items():
        if key not in known or not value:
            raise UserError(f"task {entry!r}: {key!r} must be KEY=VALUE{nearest(key, known)}")
    return options


def unusable(path: pathlib.Path, fault: str) -> UserError:
    """Returns the error that a file has a fault."""
    return UserError(f"cannot use {path}: {fault}")


_Read = tuple[list[str], list[list[Any]], Sequence[int]]  # names, values, rows


def _read_lines(path: pathlib.Path) -> _Read:
    rows: list[int] = []
    values: list[list[str]] = []
    lines = io.StringIO(_content(path), newline="")
    if path.suffix == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise unusable(path, "its first line must name the columns")
        for fields in reader:
            if not fields:
                continue  # an empty line
            if len(fields) != len(header):
                fault = f"{len(fields)} fields where the header has {len(header)}"
                raise unusable(path, f"row {reader.line_num} has {fault}")
            rows.append(reader.line_num)
            values.append([field.strip() for field in fields])
    except csv.Error as error:
        raise unusable(path, f"row {reader.line_num} can't be read: {error}") from error
    return header, [list(column) for column in zip(*values, strict=True)], rows


def _read_json_lines(path: pathlib.Path) -> _Read:
    rows: list[int] = []
    objects: list[dict[str, Any]] = []
    for number, line in enumerate(_content(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise unusable(path, f"row {number} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise unusable(path, f"row {number} is no object in braces")
        rows.append(number)
        objects.append(found)
    names = list(dict.fromkeys(name for found in objects for name in found))
    return names, [[found.get(name) for found in objects] for name in names], rows


def _read_parquet(path: pathlib.Path) -> _Read:
    import pyarrow  # late, for few files need it
    import pyarrow.parquet

    try:
        # As one file: a folder of that name isn't searched for more.
        with path.open("rb") as content:
            table = pyarrow.parquet.read_table(content)
    except (OSError, pyarrow.ArrowException) as error:
        raise unusable(path, f"it cannot be read: {' '.join(str(error).split())}") from error
    columns = [column.to_pylist() for column in table.columns]
    return table.column_names, columns, range(1, table.num_rows + 1)


def _content(path: pathlib.Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise unusable(path, f"it cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = content.count(b"\n", 0, error.start) + 1
        fault = f"row {row} is not UTF-8 text: {error.reason} {content[error.start : error.end]!r}"
        raise unusable(path, f"{fault}; save the file as UTF-8") from error
