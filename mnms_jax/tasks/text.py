"""Text to numbers: normalising, splitting, tokenising and vocabularies."""

import hashlib
import re
from collections.abc import Sequence

import numpy as np

from mnms_jax.types import Split

_WORD = re.compile(r"\w+")


def normalise(text: str) -> str:
    """Returns the lower-case words of a text: two texts with the same words are repeats."""
    return " ".join(_WORD.findall(text.lower()))


def deduplicate(texts: Sequence[str], labels: Sequence[int]) -> tuple[list[str], list[int]]:
    """Keeps the first of each group of repeats, and none where their labels disagree.

    Texts without a single word are dropped too.
    """
    groups: dict[str, tuple[str, set[int]]] = {}
    for text, label in zip(texts, labels, strict=True):
        groups.setdefault(normalise(text), (text, set()))[1].add(label)
    kept = [(text, *found) for key, (text, found) in groups.items() if key and len(found) == 1]
    return [text for text, _ in kept], [label for _, label in kept]


def split_rows(
    texts: Sequence[str], labels: Sequence[int], fractions: dict[str, float], seed: int = 0
) -> dict[str, Split]:
    """Splits rows at random into named parts, equally on every machine and in every version.

    Rows are ordered by a SHA-256 of the seed and the text, so that the split depends on neither
    the order of the rows nor a random number generator.

    Args:
      texts: N texts, no two the same.
      labels: N labels.
      fractions: name of each part and its share of the rows; the last one takes the remainder.
      seed: another seed gives another split.

    Returns:
      The parts by name.
    """
    digests = [hashlib.sha256(f"{seed}:{text}".encode()).digest() for text in texts]
    order = sorted(range(len(texts)), key=lambda row: digests[row])
    sizes = [round(len(texts) * share) for share in fractions.values()][:-1]
    parts = np.split(np.array(order, dtype=np.int64), np.cumsum(sizes))
    labels_array = np.asarray(labels, dtype=np.int32)
    return {
        name: Split(tuple(texts[row] for row in part), labels_array[part])
        for name, part in zip(fractions, parts, strict=True)
    }
