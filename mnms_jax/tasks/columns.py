"""Columns of the user's own files: CSV, TSV, JSON lines and Parquet."""

import csv
import io
import itertools
import json
import pathlib
import sys
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
    for columns in read_batches(path, None):
        return columns
    raise unusable(path, "it has no rows")


def read_batches(path: pathlib.Path, size: int | None) -> Iterator[Columns]:
    """Yields up to `size` rows of a file at a time, or all at once, see `read_columns`.

    JSON lines have the columns that were seen so far. A file without any row yields nothing.
    """
    if path.suffix not in SUFFIXES:
        raise unusable(path, f"its name must end in {SUFFIXES_LISTED}")
    readers = {".parquet": _read_parquet, ".jsonl": _read_json_lines}
    for names, values, rows in readers.get(path.suffix, _read_fields)(path, size):
        yield Columns(path, names, values, rows, typed=path.suffix in readers)


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


def _read_fields(path: pathlib.Path, size: int | None) -> Iterator[_Read]:
    lines = (part for line in read_lines(path) for part in io.StringIO(line, newline=""))
    if path.suffix == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    row = 1
    try:
        header = [name.strip() for name in next(reader, [])]
        if not header:
            raise unusable(path, "its first line must name the columns")
        rows: list[int] = []
        values: list[list[str]] = []
        while (row := reader.line_num + 1) and (fields := next(reader, None)) is not None:
            if not fields:
                continue  # an empty line
            if len(fields) != len(header):
                fault = f"{len(fields)} fields where the header has {len(header)}"
                raise unusable(path, f"row {row} has {fault}")
            rows.append(row)
            values.append([field.strip() for field in fields])
            if len(rows) == size:
                yield header, _by_name(header, values), rows
                rows, values = [], []
    except csv.Error as error:
        raise unusable(path, f"row {row} can't be read: {error}") from error
    if rows:
        yield header, _by_name(header, values), rows


def _by_name(header: Sequence[str], values: Sequence[list[str]]) -> dict[str, list[str]]:
    return dict(zip(header, map(list, zip(*values, strict=True)), strict=True))


def _read_json_lines(path: pathlib.Path, size: int | None) -> Iterator[_Read]:
    numbered = ((i, line) for i, line in enumerate(read_lines(path), 1) if line.strip())
    names: dict[str, None] = {}
    while batch := list(itertools.islice(numbered, size)):
        objects = [_read_object(path, number, line) for number, line in batch]
        names |= dict.fromkeys(name for found in objects for name in found)
        values = {name: [found.get(name) for found in objects] for name in names}
        yield list(names), values, [number for number, _ in batch]


def _read_object(path: pathlib.Path, row: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise unusable(path, f"row {row} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise unusable(path, f"row {row} is no object in braces")
    return found


def _read_parquet(path: pathlib.Path, size: int | None) -> Iterator[_Read]:
    import pyarrow  # late, for few files need it
    import pyarrow.parquet

    start = 1
    try:
        # As one file: a folder of that name isn't searched for more.
        with path.open("rb") as content:
            file = pyarrow.parquet.ParquetFile(content)
            batches = [file.read()] if size is None else file.iter_batches(size)
            for batch in batches:
                if batch.num_rows:
                    rows = range(start, start + batch.num_rows)
                    yield batch.schema.names, _ParquetColumns(path, batch), rows
                    start = rows.stop
    except (OSError, pyarrow.ArrowException) as error:
        raise unusable(path, f"it cannot be read: {' '.join(str(error).split())}") from error


class _ParquetColumns(Mapping):
    """A table's columns, made lists when they are looked up: many files hold more than is used."""

    def __init__(self, path: pathlib.Path, table: Any):
        self._path, self._table = path, table

    def __getitem__(self, name: str) -> list[Any]:
        index = self._table.schema.names.index(name)
        try:
            return self._table.column(index).to_pylist()
        except (ValueError, OverflowError) as error:  # pyarrow's own are ValueErrors
            fault = f"its column {name!r} cannot be read: {' '.join(str(error).split())}"
            raise unusable(self._path, fault) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.schema.names)

    def __len__(self) -> int:
        return len(self._table.schema.names)


def read_lines(path: pathlib.Path) -> Iterator[str]:
    """Yields the lines of a text in UTF-8, with their ends.

    Args:
      path: of the file; "-" is what the process is given as its standard input.

    Raises:
      UserError: the file can't be read, or a line is no such text.
    """
    number = 1
    try:
        with path.open("rb") if str(path) != "-" else sys.stdin.buffer as file:
            for number, line in enumerate(file, 1):
                yield line.decode("utf-8-sig" if number == 1 else "utf-8")
    except OSError as error:
        raise unusable(path, f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        found = f"{error.reason} {error.object[error.start : error.end]!r}"
        fault = f"row {number} is not UTF-8 text: {found}"
        raise unusable(path, f"{fault}; save the file as UTF-8") from error
