"""Which rows of a data set are kept, and which part each is in."""

import hashlib
import random
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from mnms_jax.types import Split

_T = TypeVar("_T")


def sample(items: Iterable[_T], most: int | None) -> tuple[list[_T], int]:
    """Returns at most so many items, in their order, and how many there were.

    Each set of them is as likely as any other, and the same on every call, on every machine: the
    seed is constant. No more than these are held at any time (Vitter 1985, "Random Sampling with a
    Reservoir", algorithm R).

    Args:
      items: of any number.
      most: at least 1; None: all.
    """
    if most is None:
        kept = list(items)
        return kept, len(kept)
    rng = random.Random(0)
    reservoir: list[tuple[int, _T]] = []
    total = 0
    for total, item in enumerate(items, 1):
        if total <= most:
            reservoir.append((total, item))
        elif (place := int(rng.random() * total)) < most:
            reservoir[place] = (total, item)
    reservoir.sort(key=lambda pair: pair[0])
    return [item for _, item in reservoir], total


def unique_rows(
    keys: Sequence[Hashable], labels: Sequence[int], held_out: Collection[Hashable] = ()
) -> list[int]:
    """Returns the first row of each key, but for keys with several labels or that are held out."""
    first: dict[Hashable, int] = {}
    contradicted = set()
    for row, (key, label) in enumerate(zip(keys, labels, strict=True)):
        if labels[first.setdefault(key, row)] != label:
            contradicted.add(key)
    excluded = contradicted.union(held_out)
    return [row for key, row in first.items() if key not in excluded]


def split_rows(
    keys: Sequence[str],
    labels: Sequence[int],
    fractions: Mapping[str, float],
    seed: int = 0,
    *,
    stratify: bool = False,
) -> dict[str, list[int]]:
    """Splits rows at random into named parts, equally on every machine and in every version.

    Rows are ordered by a SHA-256 of the seed and the key, so that the split depends on neither
    the order of the rows nor a random number generator.

    Args:
      keys: N keys, no two the same.
      labels: N labels.
      fractions: name of each part and its share of the rows; the last one takes the remainder.
      seed: another seed gives another split.
      stratify: whether each class is split by itself, so that all parts have the same shares of
        classes; what is rounded off goes to the last part.

    Returns:
      The rows of each part by its name.
    """
    digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
    order = sorted(range(len(keys)), key=lambda row: digests[row])
    groups: dict[int, list[int]] = {}  # places in that order
    for place, row in enumerate(order):
        groups.setdefault(labels[row] if stratify else 0, []).append(place)
    parts: dict[str, list[int]] = {name: [] for name in fractions}
    for places in groups.values():
        sizes = [round(len(places) * share) for share in fractions.values()][:-1]
        pieces = np.split(np.array(places), np.cumsum(sizes))
        for name, piece in zip(fractions, pieces, strict=True):
            parts[name] += piece.tolist()
    return {name: [order[place] for place in sorted(part)] for name, part in parts.items()}


def take(split: Split, rows: Sequence[int]) -> Split:
    """Returns some rows of a split, of whatever kind."""
    inputs, index = split.inputs, np.array(rows, int)
    if isinstance(inputs, Mapping):
        taken: Any = {name: column[index] for name, column in inputs.items()}
    elif isinstance(inputs, tuple):
        taken = tuple(inputs[row] for row in rows)
    else:
        taken = inputs[index]
    return Split(taken, split.labels[index])
