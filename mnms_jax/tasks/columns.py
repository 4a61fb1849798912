"""Columns of the user's own files: CSV, TSV, JSON lines and Parquet."""

import bisect
import contextlib
import csv
import json
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from absl import logging

from mnms_jax.space import nearest
from mnms_jax.tasks.splits import sample
from mnms_jax.types import UserError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
SUFFIXES_LISTED = f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"

# Few bytes of Parquet can unpack to many.
_MOST_BYTES, _MOST_ROWS, _BATCH_ROWS = 4 << 30, 1 << 28, 8192


class Columns(NamedTuple):
    """A file's columns."""

    path: pathlib.Path
    names: Sequence[str]  # as the file has them: there may be repeated and empty ones
    values: Mapping[str, list[Any]]  # by name, N each, None where there is none
    rows: Sequence[int]  # N numbers that tell the rows in messages: first lines, if there are lines
    typed: bool  # False: all values are texts


def read_columns(path: pathlib.Path, most: int | None = None) -> Columns:
    """Reads a file by what its name ends in.

    CSV has quotation marks, TSV doesn't; in both the first line names the columns, and spaces
    around a value don't count. Each of the JSON lines is an object. All three are in UTF-8.

    Args:
      path: the file.
      most: a sample of so many rows is kept, see `sample`; None: all.

    Raises:
      UserError: the file is missing, malformed or without any row; the message tells which row.
        Of Parquet, values that Python can't hold are told when they are looked up.
    """
    if path.suffix not in SUFFIXES:
        raise unusable(path, f"its name must end in {SUFFIXES_LISTED}")
    readers = {".parquet": _read_parquet, ".jsonl": _read_json_lines}
    names, values, rows, total = readers.get(path.suffix, _read_lines)(path, most)
    if not rows:
        raise unusable(path, "it has no rows")
    if len(rows) < total:
        logging.info("%s: a sample of %d of its %d rows is read", path, len(rows), total)
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


_Read = tuple[list[str], Mapping[str, list[Any]], Sequence[int], int]  # see Columns; all rows


def _read_lines(path: pathlib.Path, most: int | None) -> _Read:
    with _open(path) as lines:
        if path.suffix == ".tsv":
            reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        else:
            reader = csv.reader(lines, strict=True)
        header = [name.strip() for name in _next_fields(path, reader) or []]
        if not header:
            raise unusable(path, "its first line must name the columns")
        found, total = sample(_rows(path, reader, len(header)), most)
    columns = zip(*(fields for _, fields in found), strict=True)
    values = dict(zip(header, map(list, columns), strict=bool(found)))
    return header, values, [row for row, _ in found], total


def _next_fields(path: pathlib.Path, reader: Any) -> list[str] | None:
    """Returns the fields of the next row, or None at the end."""
    row = reader.line_num + 1
    try:
        return next(reader, None)
    except csv.Error as error:
        raise unusable(path, f"row {row} can't be read: {error}") from error


def _rows(path: pathlib.Path, reader: Any, width: int) -> Iterator[tuple[int, list[str]]]:
    """Yields the first line and the fields of each row that is not empty."""
    while (row := reader.line_num + 1) and (fields := _next_fields(path, reader)) is not None:
        if fields and len(fields) != width:
            fault = f"{len(fields)} fields where the header has {width}"
            raise unusable(path, f"row {row} has {fault}")
        if fields:
            yield row, [field.strip() for field in fields]


def _read_json_lines(path: pathlib.Path, most: int | None) -> _Read:
    with _open(path, newline="\n") as lines:
        found, total = sample(_objects(path, lines), most)
    names = list(dict.fromkeys(name for _, own in found for name in own))
    values = {name: [own.get(name) for _, own in found] for name in names}
    return names, values, [row for row, _ in found], total


def _objects(path: pathlib.Path, lines: TextIO) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number of each line that is not empty, and its object."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise unusable(path, f"row {number} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise unusable(path, f"row {number} is no object in braces")
        yield number, found


def _read_parquet(path: pathlib.Path, most: int | None) -> _Read:
    import pyarrow  # late, for few files need it
    import pyarrow.parquet

    try:
        # As one file: a folder of that name isn't searched for more.
        with path.open("rb") as content:
            file = pyarrow.parquet.ParquetFile(content)
            if file.metadata.num_rows > _MOST_ROWS:
                raise unusable(path, f"it says that it has {file.metadata.num_rows} rows")
            rows, total = sample(range(file.metadata.num_rows), most)
            table = _take(path, file, rows)
    except (OSError, pyarrow.ArrowException) as error:
        raise unusable(path, f"it cannot be read: {' '.join(str(error).split())}") from error
    return table.column_names, _ParquetColumns(path, table), [row + 1 for row in rows], total


def _take(path: pathlib.Path, file: Any, rows: list[int]) -> Any:
    """Returns some rows of a Parquet file, in ascending order; few others are held meanwhile.

    Raises:
      UserError: they are too many bytes, or not there.
    """
    import pyarrow

    batches, start, place, size = [], 0, 0, 0
    for batch in file.iter_batches(_BATCH_ROWS):
        own = bisect.bisect_left(rows, start + len(batch), place)
        if own - place < len(batch):
            places = [row - start for row in rows[place:own]]
            kept = batch.take(pyarrow.array(places, pyarrow.int64()))
        else:
            kept = batch
        size += kept.nbytes
        if size > _MOST_BYTES:
            raise unusable(path, f"it has more than {_MOST_BYTES} bytes once unpacked")
        batches.append(kept)
        start, place = start + len(batch), own
    if place < len(rows):
        raise unusable(path, f"it has {start} rows, not as many as it says")
    return pyarrow.Table.from_batches(batches, file.schema_arrow)


class _ParquetColumns(Mapping):
    """A table's columns, made lists when they are looked up: many files hold more than is used."""

    def __init__(self, path: pathlib.Path, table: Any):
        self._path, self._table = path, table

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._table.column_names:
            raise KeyError(name)
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


@contextlib.contextmanager
def _open(path: pathlib.Path, newline: str = "") -> Iterator[TextIO]:
    """Opens a file of UTF-8, with a mark of its byte order or without."""
    try:
        with path.open(encoding="utf-8-sig", newline=newline) as lines:
            yield lines
    except OSError as error:
        raise unusable(path, f"it cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:  # whose place is that in a part of the file
        with path.open("rb") as content:
            for row, line in enumerate(content, 1):
                try:
                    line.decode()
                except UnicodeDecodeError as found:
                    fault = f"row {row} is not UTF-8 text: {found.reason}"
                    bad = line[found.start : found.end]
                    raise unusable(path, f"{fault} {bad!r}; save the file as UTF-8") from error
        raise
