"""Classification of texts and images from TensorFlow Datasets (TFDS), read without TensorFlow."""

import io
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging

from mnms_jax.children import image
from mnms_jax.space import nearest
from mnms_jax.tasks.images import make_image_task, resize, shrink
from mnms_jax.tasks.splits import sample
from mnms_jax.tasks.text import deduplicate, exclude, split_texts
from mnms_jax.tasks.tfds_folders import broken, download, find_prepared
from mnms_jax.tasks.tfds_specs import TfdsSpec, parse_tfds_task
from mnms_jax.types import Split, Task, UserError

_SHARE = 0.1  # of train, for what is to be a part of it
_MOST_PIXELS = max(image.PRESETS.values())  # of a side, that any space makes use of
_CHUNK = 1024  # examples that are held as they are on disk


class _Rows(NamedTuple):
    """Examples of a split."""

    inputs: list[Any]  # texts, or images uint8 [H, W, C]
    labels: list[Any]  # as Python's own


def load_tfds_task(
    entry: str, data_dir: str | None, packaged: Sequence[str], most: int | None = None
) -> Task:
    """Loads a data set, downloading it first where it is missing and there is a network.

    Repeats are removed from train, and so is what is in validation or test too. What is to be a
    part of train is then a tenth of it. A test split is left as published, but for rows without a
    single class.

    Args:
      entry: see `parse_tfds_task`. The features decide of which kind the task is.
      data_dir: where TFDS keeps its data; None means $TFDS_DATA_DIR or ~/tensorflow_datasets.
      packaged: names of tasks that need no network, to be offered where this one is not to be had.
      most: of train, a sample of so many rows is read, see `sample`; None: all.

    Returns:
      The task, with the splits train, validation and test, and labels int32 [N]. Images of
      different sizes are brought to one, see `resize`, and larger ones than any search space takes
      made smaller.

    Raises:
      UserError: the name is unknown, or the data are missing and cannot be downloaded, or lack a
        feature, or the prepared folder is broken.
    """
    name, spec = parse_tfds_task(entry)
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    root = pathlib.Path(data_dir or default).expanduser().absolute()
    folder = find_prepared(spec, root) or download(spec, root, packaged)
    splits, class_names = _read(spec, folder, most)
    is_text = isinstance(splits["train"].inputs, tuple)
    task = (_make_text_task if is_text else make_image_task)(name, splits, class_names)
    sizes = {part: len(split.labels) for part, split in task.splits.items()}
    logging.info(
        "%s: %d of %d %s rows of %s are train, %d are validation; test is its split %s (%d rows)",
        *(name, sizes["train"], len(splits["train"].labels), spec.train, folder),
        *(sizes["validation"], spec.test, sizes["test"]),
    )
    return task


def _read(
    spec: TfdsSpec, folder: pathlib.Path, most: int | None
) -> tuple[dict[str, Split], tuple[str, ...]]:
    """Returns the splits as they are on disk, and the class names."""
    # The folder is opened as such: tfds.data_source would insist on one version of the data set.
    try:
        import tensorflow_datasets as tfds

        builder = tfds.builder_from_directory(folder, file_format="array_record")
        features = builder.info.features
    except Exception as error:  # TFDS raises many kinds for damaged files
        raise broken(folder, f"{type(error).__name__}: {error}") from error
    name = _find_input(spec, folder, features)
    label_names = _find_labels(spec, folder, features)
    names = {"train": spec.train, "validation": spec.validation, "test": spec.test}
    rows = {
        part: _read_split(builder, split, name, label_names, most if part == "train" else None)
        for part, split in names.items()
        if part == "train" or split != spec.train
    }
    if spec.label == "*":
        rows = {part: _with_one_flag(own, f"{folder}, {part}") for part, own in rows.items()}
        class_names = tuple(label_names)
    else:
        labels, class_names = _number(spec, folder, features[spec.label], rows)
        rows = {part: own._replace(labels=labels[part]) for part, own in rows.items()}
    if isinstance(features[name], tfds.features.Image):
        inputs: Mapping[str, Any] = _stack({part: own.inputs for part, own in rows.items()})
    else:
        inputs = {part: tuple(own.inputs) for part, own in rows.items()}
    splits = {
        part: Split(inputs[part], np.array(own.labels, np.int32)) for part, own in rows.items()
    }
    return splits, class_names


def _find_input(spec: TfdsSpec, folder: pathlib.Path, features: Mapping[str, Any]) -> str:
    """Returns the feature with the text or the image."""
    import tensorflow_datasets as tfds

    guess = "image" if "image" in features and "text" not in features else "text"
    name = _find(folder, spec.image or spec.text or guess, features)
    feature = features[name]
    is_image = isinstance(feature, tfds.features.Image) and feature.np_dtype == np.uint8
    if not (is_image or isinstance(feature, tfds.features.Text)):
        rule = "neither a text nor an image of bytes"
        raise UserError(f"{name!r} of the data set in {folder} is {feature}, {rule}")
    return name


def _find_labels(
    spec: TfdsSpec, folder: pathlib.Path, features: Mapping[str, Any]
) -> tuple[str, ...]:
    """Returns the feature with the label, or all flags."""
    if spec.label != "*":
        feature = features[_find(folder, spec.label, features)]
        if feature.shape != ():
            raise UserError(
                f"{spec.label!r} of the data set in {folder} is {feature}, not one label a row"
            )
        return (spec.label,)
    # TFDS keeps features in no order.
    flags = sorted(key for key, feature in features.items() if feature.np_dtype == np.bool_)
    if len(flags) < 2:
        raise UserError(
            f"?label=* is for two flags or more, of which the data set in {folder} has "
            f"{len(flags)}; name one of its features {', '.join(sorted(features))}"
        )
    return tuple(flags)


def _find(folder: pathlib.Path, name: str, features: Mapping[str, Any]) -> str:
    if name not in features:
        hint = nearest(name, features)
        raise UserError(f"the data set in {folder} has no feature {name!r}{hint}")
    return name


def _read_split(
    builder: Any, split: str, name: str, label_names: Sequence[str], most: int | None
) -> _Rows:
    """Reads a split, or a sample of it."""
    folder, feature = pathlib.Path(builder.data_dir), builder.info.features[name]
    inputs, labels = [], []
    try:
        for row in _records(builder, split, most):
            found = [_plain(row[label_name]) for label_name in label_names]
            if None in found:  # of all features, in a record file that was cut short
                raise broken(folder, "some rows have no label; are its record files complete?")
            labels.append(found if len(found) > 1 else found[0])
            inputs.append(_decode(row[name], feature))
    except UserError:
        raise
    except Exception as error:  # TFDS, array_record and Pillow raise many kinds for damaged files
        raise broken(folder, f"{type(error).__name__}: {error}") from error
    return _Rows(inputs, labels)


def _records(builder: Any, split: str, most: int | None) -> Iterator[Mapping[str, Any]]:
    """Yields examples, whose images are as they are on disk."""
    import tensorflow_datasets as tfds

    decoders = {
        name: tfds.decode.SkipDecoding()
        for name, feature in builder.info.features.items()
        if isinstance(feature, tfds.features.Image)
    }
    source = builder.as_data_source(split=split, decoders=decoders)
    rows, total = sample(range(len(source)), most)
    if len(rows) < total:
        logging.info("%s: a sample of %d of its %d rows is read", split, len(rows), total)
    for start in range(0, len(rows), _CHUNK):
        yield from source.__getitems__(rows[start : start + _CHUNK])


def _decode(content: bytes, feature: Any) -> str | np.ndarray:
    """Returns a text, or an image, uint8 [H, W, C], of at most _MOST_PIXELS a side; C is 1 or 3."""
    if not feature.shape:
        return content.decode("utf-8", errors="replace")
    import PIL.Image

    channels = 1 if feature.shape[-1] == 1 else 3
    with PIL.Image.open(io.BytesIO(content)) as picture:
        pixels = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return shrink(pixels.reshape(1, *pixels.shape[:2], channels), _MOST_PIXELS)[0]


def _stack(parts: Mapping[str, Sequence[np.ndarray]]) -> dict[str, np.ndarray]:
    """Returns images as one array for each part, uint8 [N, H, W, C]; all are of one size then."""
    shapes = {picture.shape for own in parts.values() for picture in own}
    if len(shapes) == 1:
        return {part: np.stack(own) for part, own in parts.items()}
    side = max(max(height, width) for height, width, _ in shapes)
    return {
        part: np.concatenate([resize(x[None], side, x.shape[-1]) for x in own])
        for part, own in parts.items()
    }


def _with_one_flag(rows: _Rows, where: str) -> _Rows:
    """Returns the rows of which one flag is true, labelled with its number."""
    kept = [row for row, flags in enumerate(rows.labels) if sum(flags) == 1]
    logging.info("%s: %d of %d rows have a single class", where, len(kept), len(rows.labels))
    return _Rows([rows.inputs[row] for row in kept], [rows.labels[row].index(1) for row in kept])


def _number(
    spec: TfdsSpec, folder: pathlib.Path, feature: Any, rows: Mapping[str, _Rows]
) -> tuple[dict[str, list[int]], tuple[str, ...]]:
    """Returns the number of each row's class by part, and the class names."""
    found = {label for own in rows.values() for label in own.labels}
    names = getattr(feature, "names", None)
    if names is not None:
        for part, own in rows.items():
            if not {*own.labels} <= set(range(len(names))):
                fault = f"some rows have no label in its split {getattr(spec, part)!r}"
                raise UserError(f"cannot use the data set in {folder}: {fault}; name another one")
        return {part: own.labels for part, own in rows.items()}, tuple(names)
    if np.issubdtype(feature.np_dtype, np.floating) and 0 <= min(found) <= max(found) <= 1:
        labels = {part: [int(label >= 0.5) for label in own.labels] for part, own in rows.items()}
        return labels, ("other", spec.label)
    index = {value: number for number, value in enumerate(sorted(found))}
    labels = {part: [index[label] for label in own.labels] for part, own in rows.items()}
    return labels, tuple(map(str, index))


def _plain(label: Any) -> Any:
    """Returns a label as Python's own: TFDS has NumPy's, and bytes for texts."""
    label = label.item() if isinstance(label, np.generic) else label
    return label.decode("utf-8", errors="replace") if isinstance(label, bytes) else label


def _make_text_task(name: str, splits: Mapping[str, Split], class_names: tuple[str, ...]) -> Task:
    """Cleans train, and holds out what isn't there."""
    found = dict(splits)
    train = found.pop("train")
    if {*found} == {"validation", "test"}:
        found["validation"] = exclude(found["validation"], found["test"])
    texts, labels = deduplicate(train.inputs, train.labels.tolist(), list(found.values()))
    shares = {part: _SHARE for part in ("validation", "test") if part not in found}
    found |= split_texts(texts, labels, {**shares, "train": 1.0 - sum(shares.values())})
    for part, split in found.items():
        if not split.inputs:
            raise UserError(
                f"task {name!r}: its {len(texts)} different texts leave nothing for {part}"
            )
    return Task(name, {part: found[part] for part in ("train", "validation", "test")}, class_names)
