"""Image classification: digits that scikit-learn brings along, and the user's own IDX files."""

import gzip
import hashlib
import math
import pathlib
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from absl import logging

from mnms_jax.tasks.columns import unusable
from mnms_jax.tasks.splits import split_rows, take, unique_rows
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
    train = Split(images, found.target.astype(np.int32))
    return make_image_task("digits", {"train": train}, names)


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

    splits = {"train": train} if test is None else {"train": train, "test": test}
    splits = {part: renumber(split) for part, split in splits.items()}
    return make_image_task(name, splits, tuple(map(str, index)))


def make_image_task(name: str, splits: Mapping[str, Split], class_names: tuple[str, ...]) -> Task:
    """Drops repeats, and holds out a tenth of each class for what isn't there; always the same.

    Args:
      name: of the task.
      splits: "train", and "validation" and "test" or not, of images of one size. What is in test
        stays out of the other two, and what is in validation out of train.
      class_names: of the labels.

    Raises:
      UserError: too few images are left.
    """
    held_out: set[str] = set()
    found = dict(splits)
    for part in ("test", "validation", "train"):
        if part in found:
            keys = _digests(found[part].inputs)
            labels = found[part].labels.tolist()
            if part == "train":
                rows = unique_rows(keys, labels, held_out)
            else:
                rows = [row for row, key in enumerate(keys) if key not in held_out]
                found[part] = take(found[part], rows)
            held_out |= set(keys)
    shares = {part: _SHARE for part in ("validation", "test") if part not in splits}
    parts = split_rows(
        [keys[row] for row in rows],
        [labels[row] for row in rows],
        {**shares, "train": 1 - sum(shares.values())},
        stratify=True,
    )
    for part, own in parts.items():
        found[part] = take(splits["train"], [rows[place] for place in own])
    for part in ("train", "validation", "test"):
        if not len(found[part].labels):
            raise UserError(
                f"task {name!r}: its {len(rows)} different images in {len(class_names)} classes "
                f"leave nothing for {part}; a class needs 6 images"
            )
    logging.info(
        "%s: %d classes of images of %s; %d of %d are kept to learn from, %d are for validation "
        "and %d for test; %d repeat or contradict others, or are held out too",
        *(name, len(class_names), _size(found["train"]), len(rows), len(keys)),
        *(len(found["validation"].labels), len(found["test"].labels), len(keys) - len(rows)),
    )
    if len(set(found["train"].labels.tolist())) < 2:
        raise UserError(f"task {name!r}: all its training images are of one class")
    ordered = {part: found[part] for part in ("train", "validation", "test")}
    return Task(name, ordered, class_names, "image")


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
    """Brings images to a size: see `shrink`; smaller ones are enlarged by a whole factor.

    What is missing then is zeros around.

    Args:
      images: uint8 [N, H, W, C].
      side: S.
      channels: C', 1 or 3; C is that, or 1 to be repeated.

    Returns:
      Uint8 [N, S, S, C'].
    """
    images = shrink(images, side)
    _, height, width, own = images.shape
    factor = side // max(height, width)
    images = images.repeat(factor, 1).repeat(factor, 2)
    _, height, width, _ = images.shape
    top, left = (side - height) // 2, (side - width) // 2
    border = ((0, 0), (top, side - height - top), (left, side - width - left), (0, 0))
    return np.pad(images, border).repeat(channels // own, 3)


def shrink(images: np.ndarray, side: int) -> np.ndarray:
    """Makes images smaller whose longer side has more than so many pixels; others stay.

    A pixel is the mean of the square field that it covers, of which parts of pixels are parts.

    Args:
      images: uint8 [N, H, W, C].
      side: S, pixels of the longer side of what is returned.
    """
    num_images, height, width, channels = images.shape
    longest = max(height, width)
    if longest <= side:
        return images
    vertical, horizontal = (_fields(pixels, side, longest) for pixels in (height, width))
    shrunk = np.empty((num_images, len(vertical), len(horizontal), channels), np.uint8)
    for image, target in zip(images, shrunk, strict=True):  # one by one: as floats they'd be large
        rows = vertical @ image.reshape(height, -1)
        means = horizontal @ rows.reshape(len(vertical), width, channels)
        target[:] = np.round(means)
    return shrunk


def _fields(pixels: int, side: int, longest: int) -> np.ndarray:
    """Returns the share of each pixel in each field of longest / side pixels, float32 [F, pixels].

    The last field may end beyond the edge, and is of what is within.
    """
    edges = np.arange(-(-pixels * side // longest) + 1) * longest  # in parts of pixels, `side` each
    starts = np.arange(pixels) * side
    overlap = np.minimum(edges[1:, None], starts + side) - np.maximum(edges[:-1, None], starts)
    overlap = np.maximum(overlap, 0)
    return (overlap / overlap.sum(1, keepdims=True)).astype(np.float32)
