"""Columns of the user's own files: CSV, TSV, JSON lines and Parquet."""

import bisect
import csv
import io
import itertools
import json
import pathlib
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

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

    def take(rows: Iterable[Any]) -> Iterator[list[Any]]:
        kept, total = sample(rows, most)
        if len(kept) < total:
            logging.info("%s: a sample of %d of its %d rows is read", path, len(kept), total)
        if kept:
            yield kept

    for columns in _read(path, take):
        if columns.rows:
            return columns
    raise unusable(path, "it has no rows")


def read_batches(path: pathlib.Path, size: int) -> Iterator[Columns]:
    """Yields up to `size` rows of a file at a time, see `read_columns`.

    All parts have the same columns. Without any row there is one part, so that its columns can be
    checked; of JSON lines none, which have no columns then.
    """

    def cut(rows: Iterable[Any]) -> Iterator[list[Any]]:
        left = iter(rows)
        while part := list(itertools.islice(left, size)):
            yield part

    return _read(path, cut)


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
    """Returns the error that a file has a fault, in one line whatever the file's names are."""
    line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in fault)
    return UserError(f"cannot use {path}: {line}")


def check_once(columns: Columns, name: str) -> None:
    """Raises a UserError if several columns have this name."""
    if columns.names.count(name) > 1:
        raise unusable(columns.path, f"several of its columns are called {name!r}; rename them")


# Rows that a file yields one by one -> parts of them, none empty, in their order.
_Divide: TypeAlias = Callable[[Iterable[Any]], Iterator[list[Any]]]
_Part: TypeAlias = tuple[list[str], Mapping[str, list[Any]], Sequence[int]]  # see Columns


def _read(path: pathlib.Path, divide: _Divide) -> Iterator[Columns]:
    if path.suffix not in SUFFIXES:
        raise unusable(path, f"its name must end in {SUFFIXES_LISTED}")
    readers = {".parquet": _read_parquet, ".jsonl": _read_json_lines}
    for names, values, rows in readers.get(path.suffix, _read_fields)(path, divide):
        yield Columns(path, names, values, rows, typed=path.suffix in readers)


def _read_fields(path: pathlib.Path, divide: _Divide) -> Iterator[_Part]:
    lines = (part for line in read_lines(path) for part in io.StringIO(line, newline=""))
    if path.suffix == ".tsv":
        reader = csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
    else:
        reader = csv.reader(lines, strict=True)
    header = [name.strip() for name in _next_fields(path, reader) or []]
    if not header:
        raise unusable(path, "its first line must name the columns")
    part = None
    for part in divide(_rows(path, reader, len(header))):
        columns = zip(*(fields for _, fields in part), strict=True)
        yield header, dict(zip(header, map(list, columns), strict=True)), [row for row, _ in part]
    if part is None:
        yield header, {name: [] for name in header}, []


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


def _read_json_lines(path: pathlib.Path, divide: _Divide) -> Iterator[_Part]:
    # Any line may have a column that none before it has.
    names = dict.fromkeys(name for _, found in _objects(path) for name in found)
    for part in divide(_objects(path)):
        values = {name: [found.get(name) for _, found in part] for name in names}
        yield list(names), values, [number for number, _ in part]


def _objects(path: pathlib.Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields the number of each line that is not empty, and its object."""
    for number, line in enumerate(read_lines(path), 1):
        if not line.strip():
            continue
        try:
            found = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise unusable(path, f"row {number} is no JSON: {error}") from error
        if not isinstance(found, dict):
            raise unusable(path, f"row {number} is no object in braces")
        yield number, found


def _read_parquet(path: pathlib.Path, divide: _Divide) -> Iterator[_Part]:
    import pyarrow  # late, for few files need it
    import pyarrow.parquet

    try:
        # As one file: a folder of that name isn't searched for more.
        with path.open("rb") as content:
            file = pyarrow.parquet.ParquetFile(content)
            for rows, table in _tables(path, file, divide):
                yield table.column_names, _ParquetColumns(path, table), [row + 1 for row in rows]
            if not file.metadata.num_rows:
                empty = file.schema_arrow.empty_table()
                yield empty.column_names, _ParquetColumns(path, empty), []
    except (OSError, pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise unusable(path, f"it cannot be read: {' '.join(str(error).split())}") from error


def _tables(path: pathlib.Path, file: Any, divide: _Divide) -> Iterator[tuple[Sequence[int], Any]]:
    """Yields parts of a Parquet file, its rows' numbers and the table; few others are held.

    Raises:
      UserError: a part is too many bytes, or rows aren't there.
    """
    import pyarrow

    if file.metadata.num_rows > _MOST_ROWS:
        raise unusable(path, f"it says that it has {file.metadata.num_rows} rows")
    batches, start = file.iter_batches(_BATCH_ROWS), 0
    batch: Any = ()
    for rows in divide(range(file.metadata.num_rows)):
        pieces: list[Any] = []
        place = 0
        while place < len(rows):
            if (own := bisect.bisect_left(rows, start + len(batch), place)) > place:
                places = pyarrow.array([row - start for row in rows[place:own]], pyarrow.int64())
                pieces.append(batch if len(places) == len(batch) else batch.take(places))
            if sum(piece.nbytes for piece in pieces) > _MOST_BYTES:
                raise unusable(path, f"it has more than {_MOST_BYTES} bytes once unpacked")
            place = own
            if place < len(rows):
                start += len(batch)
                if (batch := next(batches, None)) is None:
                    raise unusable(path, f"it has {start} rows, not as many as it says")
        yield rows, pyarrow.Table.from_batches(pieces)


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

    def __contains__(self, name: object) -> bool:  # without a look at the values
        return name in self._table.column_names

    def __iter__(self) -> Iterator[str]:
        return iter(self._table.column_names)

    def __len__(self) -> int:
        return len(self._table.column_names)


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
