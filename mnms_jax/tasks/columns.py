"""Columns of the user's own files: CSV, TSV, JSON lines and Parquet."""

import csv
import io
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mnms_jax.space import nearest
from mnms_jax.types import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SUFFIXES_LISTED = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


class Columns(NamedTuple):
    """A file's columns."""

    path: pathlib.Path
    names: Sequence[str]  # as the file has them: there may be repeated and empty ones
    values: Mapping[str, list[Any]]  # by name, N each, None where there is none
    rows: Sequence[int]  # N numbers that tell the rows in messages: first lines, if there are lines
    typed: bool  # False: all values are texts


def read_columns(path: pathlib.Path) -> Columns:
    """Reads a file by what its name ends in.

    CSV has quotation marks, TSV doesn't; in both the first line names the columns, and spaces
    around a value don't count. Each of the JSON lines is an object. All three are in UTF-8.

    Raises:
      UserError: the file is missing, malformed or without any row; the message tells which row.
        Of Parquet, values that Python can't hold are told when they are looked up.
    """
    if path.suffix not in SUFFIXES:
        raise unusable(path, f"its name must end in {SUFFIXES_LISTED}")
    readers = {".parquet": _read_parquet, ".jsonl": _read_json_lines}
    names, values, rows = readers.get(path.suffix, _read_lines)(path)
    if not rows:
        raise unusable(path, "it has no rows")
    return Columns(path, names, values, rows, typed=path.suffix in readers)


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
        if key not in known:
            raise UserError(f"task {entry!r}: {key!r} is unknown{nearest(key, known)}")
        if not value:
            raise UserError(f"task {entry!r}: {key!r} must be {key}=VALUE")
    return options


def unusable(path: pathlib.Path, fault: str) -> UserError:
    """Returns the error that a file has a fault."""
    return UserError(f"cannot use {path}: {fault}")


_Read = tuple[list[str], Mapping[str, list[Any]], Sequence[int]]  # see Columns


def _read_lines(path: pathlib.Path) -> _Read:
    rows: list[int] = []
    values: list[list[str]] = []
    lines = io.StringIO(_content(path), newline="")
    if path.suffix == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    row = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise unusable(path, "its first line must name the columns")
        while (row := reader.line_num + 1) and (fields := next(reader, None)) is not None:
            if not fields:
                continue  # an empty line
            if len(fields) != len(header):
                fault = f"{len(fields)} fields where the header has {len(header)}"
                raise unusable(path, f"row {row} has {fault}")
            rows.append(row)
            values.append([field.strip() for field in fields])
    except csv.Error as error:
        raise unusable(path, f"row {row} can't be read: {error}") from error
    columns = zip(*values, strict=True)
    return header, dict(zip(header, map(list, columns), strict=bool(rows))), rows


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
    return names, {name: [found.get(name) for found in objects] for name in names}, rows


def _read_parquet(path: pathlib.Path) -> _Read:
    import pyarrow  # late, for few files need it
    import pyarrow.parquet

    try:
        # As one file: a folder of that name isn't searched for more.
        with path.open("rb") as content:
            table = pyarrow.parquet.read_table(content)
    except (OSError, pyarrow.ArrowException) as error:
        raise unusable(path, f"it cannot be read: {' '.join(str(error).split())}") from error
    return table.column_names, _ParquetColumns(path, table), range(1, table.num_rows + 1)


class _ParquetColumns(Mapping):
    """A table's columns, made lists when they are looked up: many files hold more than is used."""

    def __init__(self, path: pathlib.Path, table: Any):
        self._path, self._table = path, table

    def __getitem__(self, name: str) -> list[Any]:
        index = self._table.column_names.index(name)
        try:
            return self._table.column(index).to_pylist()
        except (ValueError, OverflowError) as error:  # pyarrow's own are ValueErrors
            fault = f"its column {name!r} cannot be read: {' '.join(str(error).split())}"
            raise unusable(self._path, fault) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


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
