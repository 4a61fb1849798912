"""Image classification: digits that scikit-learn brings along, and the user's own IDX files."""

import gzip
import hashlib
import math
import pathlib
import zlib
from collections.abc import Sequence

import numpy as np
from absl import logging

from mnms_jax.tasks.columns import unusable
from mnms_jax.tasks.splits import split_rows, unique_rows
from mnms_jax.types import Split, Task, UserError

_SHARE = 0.1  # of the images, for validation, and for test where it has no files of its own
# What the files of LeCun's MNIST are called, and those of its successors.
_FILES = {"train": "train", "test": "t10k"}
_MOST_BYTES = 2**31  # of all images of a file


def load_digits_task() -> Task:
    """Returns 1,797 handwritten digits of 8 x 8 pixels (Alpaydin & Kaynak 1998)."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * (255 / 16)).astype(np.uint8)[..., None]
    names = tuple(map(str, range(10)))
    return _to_task("digits", Split(images, found.target.astype(np.int32)), None, names)


def load_idx_task(name: str, folder: pathlib.Path) -> Task:
    """Reads a task from IDX files, the format of MNIST (LeCun et al. 1998).

    Args:
      name: of the task.
      folder: with train-images-idx3-ubyte and train-labels-idx1-ubyte, compressed by gzip or not;
        and with t10k-images-idx3-ubyte and t10k-labels-idx1-ubyte, else a tenth is for testing.
        Repeats are removed, and what is in test too; a tenth of the rest is for validation.

    Raises:
      UserError: a file is missing or malformed, or there is too little to learn from.
    """
    train, test = (_read_split(folder, part) for part in ("train", "test"))
    if train is None:
        raise unusable(folder, "it holds no train-images-idx3-ubyte, with or without .gz")
    if test is not None and test.inputs.shape[1:] != train.inputs.shape[1:]:
        sizes = " and ".join(_size(split) for split in (train, test))
        raise unusable(folder, f"its images for training and for testing differ in size: {sizes}")
    found = np.unique(np.concatenate([split.labels for split in (train, test) if split]))
    index = {label: number for number, label in enumerate(found.tolist())}

    def renumber(split: Split) -> Split:
        return split._replace(labels=np.array([index[x] for x in split.labels.tolist()], np.int32))

    return _to_task(name, renumber(train), test and renumber(test), tuple(map(str, index)))


def _to_task(name: str, train: Split, test: Split | None, class_names: tuple[str, ...]) -> Task:
    """Drops repeats, and holds out validation, and test where there is none.

    Raises:
      UserError: too few images are left.
    """
    keys = _digests(train.inputs)
    labels = train.labels.tolist()
    rows = unique_rows(keys, labels, () if test is None else _digests(test.inputs))
    shares = {"validation": _SHARE} if test else {"validation": _SHARE, "test": _SHARE}
    parts = split_rows(
        [keys[row] for row in rows],
        [labels[row] for row in rows],
        {**shares, "train": 1 - sum(shares.values())},
        stratify=True,
    )
    splits: dict[str, Split] = {}
    for part in ("train", "validation", "test"):
        if part == "test" and test is not None:
            splits[part] = test
            continue
        own = np.array(rows, int)[parts[part]]
        splits[part] = Split(train.inputs[own], train.labels[own])
        if not len(own):
            raise UserError(
                f"task {name!r}: its {len(rows)} different images in {len(class_names)} classes "
                f"leave nothing for {part}; a class needs 6 images"
            )
    logging.info(
        "%s: %d classes of images of %s; %d of %d are kept to learn from, %d of them for "
        "validation; %d repeat or contradict others, or are in test too",
        *(name, len(class_names), _size(train), len(rows), len(keys)),
        *(len(splits["validation"].labels), len(keys) - len(rows)),
    )
    if len(set(splits["train"].labels.tolist())) < 2:
        raise UserError(f"task {name!r}: all its training images are of one class")
    return Task(name, splits, class_names, "image")


def _digests(images: np.ndarray) -> list[str]:
    return [hashlib.sha256(image.tobytes()).hexdigest() for image in images]


def _size(split: Split) -> str:
    return " x ".join(map(str, split.inputs.shape[1:3])) + " pixels"


def _read_split(folder: pathlib.Path, part: str) -> Split | None:
    """Returns a split as it is on disk; None if neither of its files is there."""
    stem = _FILES[part]
    paths = [_find(folder, f"{stem}-{what}-ubyte") for what in ("images-idx3", "labels-idx1")]
    if paths == [None, None]:
        return None
    for path, what in zip(paths, ("images-idx3", "labels-idx1"), strict=True):
        if path is None:
            raise unusable(folder, f"it holds no {stem}-{what}-ubyte, with or without .gz")
    images, labels = (
        read_idx(path, axes) for path, axes in zip(paths, (3, 1), strict=True) if path
    )
    if len(images) != len(labels):
        raise unusable(folder, f"it has {len(images)} images and {len(labels)} labels of {stem}")
    return Split(images[..., None], labels.astype(np.int32))


def _find(folder: pathlib.Path, name: str) -> pathlib.Path | None:
    paths = (folder / name, folder / f"{name}.gz")
    return next((path for path in paths if path.is_file()), None)


def read_idx(path: pathlib.Path, num_axes: int) -> np.ndarray:
    """Returns the bytes of an IDX file, uint8 with so many axes.

    The format: two zeros, 8 for unsigned bytes, the number of axes; the size of each axis as
    four bytes, the highest first; the content, the last axis counting fastest.

    Raises:
      UserError: the file can't be read or is malformed.
    """
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            header = file.read(4 + 4 * num_axes)
            if len(header) < 4 + 4 * num_axes or header[:4] != bytes([0, 0, 8, num_axes]):
                raise unusable(path, f"it is no IDX file of unsigned bytes with {num_axes} axes")
            sizes = np.frombuffer(header, ">u4", offset=4).tolist()
            if not 0 < math.prod(sizes) <= _MOST_BYTES:
                raise unusable(path, f"it has {sizes} elements; up to {_MOST_BYTES} can be read")
            content = file.read(math.prod(sizes) + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise unusable(path, f"it cannot be read: {error}") from error
    if len(content) != math.prod(sizes):
        raise unusable(path, f"its header says {math.prod(sizes)} bytes, which it hasn't")
    return np.frombuffer(content, np.uint8).reshape(sizes)


def common_size(tasks: Sequence[Task], limit: int) -> tuple[int, int]:
    """Returns the pixels of a side and the channels that all tasks' images are brought to."""
    shapes = [task.splits["train"].inputs.shape[1:] for task in tasks]
    side = max(max(height, width) for height, width, _ in shapes)
    return min(side, limit), max(channels for *_, channels in shapes)


def resize(images: np.ndarray, side: int, channels: int) -> np.ndarray:
    """Brings images to a size: larger ones by the mean of square fields, smaller ones enlarged.

    Either by a whole factor; what is missing then is zeros around.

    Args:
      images: uint8 [N, H, W, C].
      side: S.
      channels: C', 1 or 3; C is that, or 1 to be repeated.

    Returns:
      Uint8 [N, S, S, C'].
    """
    num_images, height, width, own = images.shape
    longest = max(height, width)
    if longest > side:
        factor = -(-longest // side)
        rows, columns = -(-height // factor), -(-width // factor)
        rest = ((0, 0), (0, rows * factor - height), (0, columns * factor - width), (0, 0))
        fields = np.pad(images, rest, mode="edge").reshape(
            num_images, rows, factor, columns, factor, own
        )
        images = np.round(fields.mean((2, 4), np.float32)).astype(np.uint8)
    else:
        factor = side // longest
        images = images.repeat(factor, 1).repeat(factor, 2)
    _, height, width, _ = images.shape
    top, left = (side - height) // 2, (side - width) // 2
    border = ((0, 0), (top, side - height - top), (left, side - width - left), (0, 0))
    return np.pad(images, border).repeat(channels // own, 3)
