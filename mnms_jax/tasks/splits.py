"""Which rows of a data set are kept, and which part each is in."""

import hashlib
from collections.abc import Collection, Hashable, Mapping, Sequence

import numpy as np


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
