"""Records, rows of numbers and categories: from columns of files, and as features."""

import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from mnms_jax.children.mlp import RecordPreprocessing
from mnms_jax.tasks.splits import split_rows, take
from mnms_jax.types import Split, Task, UserError

# By name, N values each: float64, NaN where there is none, or texts, "" where there is none.
Records = Mapping[str, np.ndarray]

_SHARE = 0.1  # of the rows, for validation, and for test where it has none of its own
_MOST_CATEGORIES = 50  # that a feature each; all others are as one that was never seen
_MOST_DISTINCT = 0.5  # texts of which more are different tell nothing of other rows
_QUANTILES = 101
_LARGEST = 1e100  # numbers beyond would overflow
_MISSING = {"", "?", "-", "na", "n/a", "nan", "null", "none"}
_BUNDLED = {
    # Fisher (1936); Forina et al. (1988); Street, Wolberg & Mangasarian (1993).
    "iris": "load_iris",
    "wine": "load_wine",
    "breast_cancer": "load_breast_cancer",
}
BUNDLED_TASKS = tuple(_BUNDLED)


def load_bundled_task(name: str) -> Task:
    """Returns one of the data sets that scikit-learn brings along, see BUNDLED_TASKS."""
    import sklearn.datasets

    found = getattr(sklearn.datasets, _BUNDLED[name])()
    columns = {
        str(column): found.data[:, i].astype(np.float64)
        for i, column in enumerate(found.feature_names)
    }
    labels = found.target.astype(np.int32)
    names = tuple(map(str, found.target_names))
    return make_record_task(name, {"train": Split(columns, labels)}, names)


def to_column(values: Sequence[Any], is_number: bool | None = None) -> np.ndarray:
    """Returns a column's values as numbers, NaN where there is none, or as texts, "" there.

    Args:
      values: of the column. None, and texts such as "", "?" and "NA", are none; so are numbers
        beyond any use, infinity among them. True and false are texts, and the same in any case.
      is_number: whether it is a column of numbers; None: it is, if all values that are there are.

    Raises:
      ValueError: a value is no number, and should be.
    """
    texts = ["" if value is None else str(value).strip() for value in values]
    texts = ["" if text.lower() in _MISSING else text for text in texts]
    if is_number is not False:
        try:
            numbers = np.array([float(text) if text else math.nan for text in texts])
        except ValueError:
            if is_number:
                raise
        else:
            numbers[~(np.abs(numbers) < _LARGEST)] = math.nan
            if is_number or np.isfinite(numbers).any():
                return numbers
    return np.array(list(map(fold_truth, texts)), object)


def fold_truth(text: str) -> str:
    """Returns true and false in lower case, which formats differ in; other texts as they are."""
    return text.lower() if text.lower() in ("true", "false") else text


def is_feature(column: np.ndarray) -> bool:
    """Returns whether a column tells something of other rows: it has numbers, or few texts."""
    if column.dtype != object:
        return True
    return 1 < len({*column.tolist()} - {""}) <= max(_MOST_DISTINCT * len(column), 2)


def make_record_task(name: str, splits: Mapping[str, Split], class_names: tuple[str, ...]) -> Task:
    """Holds out what isn't there of validation and test, a tenth of each class; always the same.

    Rows that are equal in all columns are kept, all in the same part; of those to learn from, and
    of validation, rows are left out that are held out too.

    Args:
      name: of the task.
      splits: "train", and "validation" and "test" or not, of Records with the same columns.
      class_names: of the labels.

    Raises:
      UserError: there is too little to learn from.
    """
    found, held_out = dict(splits), set()
    for part in ("test", "validation", "train"):
        if part in found:
            keys = _row_keys(found[part].inputs)
            rows = [row for row, key in enumerate(keys) if key not in held_out]
            if len(rows) < len(keys):
                dropped = len(keys) - len(rows)
                logging.warning("%s: %d rows of %s are held out too", name, dropped, part)
                found[part] = take(found[part], rows)
            held_out |= set(keys)
    given, keys = found["train"], [keys[row] for row in rows]  # of train, the last one
    label_of: dict[str, int] = {}  # of rows that are equal, the first class
    for key, label in zip(keys, given.labels.tolist(), strict=True):
        label_of[key] = min(label, label_of.get(key, label))
    shares = {part: _SHARE for part in ("validation", "test") if part not in splits}
    shares["train"] = 1 - sum(shares.values())
    parts = split_rows(list(label_of), list(label_of.values()), shares, stratify=True)
    unique = list(label_of)
    part_of = {unique[number]: part for part, numbers in parts.items() for number in numbers}
    for part in shares:
        found[part] = take(given, [row for row, key in enumerate(keys) if part_of[key] == part])
    for part in ("train", "validation", "test"):
        if not len(found[part].labels):
            raise UserError(
                f"task {name!r}: its {len(label_of)} different rows in {len(class_names)} classes "
                f"leave nothing for {part}; a class needs 6 rows"
            )
    if len(set(found["train"].labels.tolist())) < 2:
        raise UserError(f"task {name!r}: all its training rows are of one class")
    is_number = [column.dtype != object for column in given.inputs.values()]
    logging.info(
        "%s: %d classes; %d numbers and %d categories; %d rows to learn from, %d for validation, "
        "%d for test",
        *(name, len(class_names), sum(is_number), len(is_number) - sum(is_number)),
        *(len(found[part].labels) for part in ("train", "validation", "test")),
    )
    ordered = {part: found[part] for part in ("train", "validation", "test")}
    return Task(name, ordered, class_names, "record")


def _row_keys(records: Records) -> list[str]:
    # A zero less than nothing is one too.
    columns = (x if x.dtype == object else x + 0.0 for x in records.values())
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [hashlib.sha256(repr(row).encode()).hexdigest() for row in rows]


class RecordEncoder(NamedTuple):
    """All that turns a task's records into features; fitted on its training records alone."""

    preprocessing: RecordPreprocessing
    numbers: tuple[str, ...]  # columns of numbers
    grid: np.ndarray  # float64 [numbers, Q], quantiles; mean and deviation if Q is 2
    categories: tuple[tuple[str, tuple[str, ...]], ...]  # columns, and their commonest texts

    @property
    def num_features(self) -> int:
        return 2 * len(self.numbers) + sum(len(known) for _, known in self.categories)


def fit_record_encoder(records: Records, preprocessing: RecordPreprocessing) -> RecordEncoder:
    """Returns the encoder of training records."""
    numbers = {name: column for name, column in records.items() if column.dtype != object}
    grid = np.zeros((len(numbers), 2 if preprocessing.scaling == "standard" else _QUANTILES))
    for row, column in zip(grid, numbers.values(), strict=True):
        there = column[np.isfinite(column)]
        if not len(there):
            there = np.zeros(1)
        if preprocessing.scaling == "standard":
            row[:] = there.mean(), max(there.std(), 1e-12)
        else:
            row[:] = np.quantile(there, np.linspace(0, 1, _QUANTILES))
    categories = []
    for name, column in records.items():
        if column.dtype == object:
            counts = Counter(text for text in column.tolist() if text)
            known = sorted(counts, key=lambda text: (-counts[text], text))
            categories.append((name, tuple(known[:_MOST_CATEGORIES])))
    return RecordEncoder(preprocessing, tuple(numbers), grid, tuple(categories))


def encode_records(encoder: RecordEncoder, records: Records) -> np.ndarray:
    """Returns the features, float32 [N, encoder.num_features].

    Of each number, its scaled value, zero where there is none, and whether there is one; then, of
    each category, whether it is one of the known texts.
    """
    features = []
    for name, grid in zip(encoder.numbers, encoder.grid, strict=True):
        column = np.asarray(records[name], np.float64)
        there = np.isfinite(column)
        filled = np.where(there, column, grid[len(grid) // 2])
        features += [np.where(there, _scale(filled, grid), 0.0), there]
    for name, known in encoder.categories:
        features += [records[name] == text for text in known]
    return np.stack(features, -1).astype(np.float32)


def _scale(column: np.ndarray, grid: np.ndarray) -> np.ndarray:
    if len(grid) == 2:
        return np.clip((column - grid[0]) / grid[1], -10, 10)
    import scipy.special

    place = np.linspace(0, 1, len(grid))
    # Both ways, so that numbers which are equal come to the middle of their ranks.
    rank = np.interp(column, grid, place) - np.interp(-column, -grid[::-1], -place[::-1])
    edge = 1 / (2 * len(grid))
    return scipy.special.ndtri(np.clip(rank / 2, edge, 1 - edge))
