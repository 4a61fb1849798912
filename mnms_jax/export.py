"""The best children of a search: to predict with, and as folders.

All kinds have `predict` and `predict_proba` for what their task's inputs are, and the same in
plain JAX: `child.apply_fn(child.variables, child.encode(inputs))` are logits.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.artifact import load_artifact, save_artifact
from mnms_jax.children.cells import CellArchitecture, CellHyperparameters, make_cell_model
from mnms_jax.children.image import (
    ImageArchitecture,
    ImageHyperparameters,
    PixelStatistics,
    make_image_model,
)
from mnms_jax.children.mlp import (
    RecordArchitecture,
    RecordHyperparameters,
    RecordPreprocessing,
    make_record_model,
)
from mnms_jax.children.text import (
    TextArchitecture,
    TextBatch,
    TextHyperparameters,
    TextPreprocessing,
    make_text_model,
)
from mnms_jax.space import nearest
from mnms_jax.tasks.images import resize
from mnms_jax.tasks.inputs import pad_rows
from mnms_jax.tasks.record_inputs import pad_features
from mnms_jax.tasks.records import RecordEncoder, encode_records, to_column
from mnms_jax.tasks.sentences import sentence_features
from mnms_jax.tasks.text import TextEncoder, encode, make_batch
from mnms_jax.training.program import EVALUATION_BATCH_SIZE, predict
from mnms_jax.types import AnyArray, Array, ChildModel, Choice, Params, UserError

# Variables, batch of N rows -> logits [N, number of classes]. Pure: it can be jitted,
# differentiated and mapped.
ApplyFn: TypeAlias = Callable[[Params, Any], Array]

_predict = jax.jit(predict, static_argnums=0)
_INDICES = ("normalization", "inputs", "operations")  # hyperparameters, among others floats


class TextChild(NamedTuple):
    """A trained text child."""

    task: str
    class_names: tuple[str, ...]
    decisions: dict[str, Choice]
    architecture: TextArchitecture
    hyperparameters: TextHyperparameters
    encoder: TextEncoder
    table: np.ndarray | None  # float32 [V, E], pre-trained embeddings
    variables: Params
    text_column: str | None = None  # of the files that it was trained on, if that was said

    @property
    def model(self) -> ChildModel:
        num_outputs = self.variables["params"]["wide"]["bias"].size
        return make_text_model(self.architecture, num_outputs)

    @property
    def constants(self) -> AnyArray | None:
        return None if self.architecture.pooled else self.table

    @property
    def apply_fn(self) -> ApplyFn:
        return _apply_fn(self)

    def encode(self, texts: Sequence[str]) -> TextBatch:
        """Returns the batch of N texts.

        Raises:
          UserError: the child has a sentence encoder that cannot be had.
        """
        architecture = self.architecture
        rows = encode(self.encoder, texts, subwords=architecture.subwords)
        encoded = architecture.encoded
        features = sentence_features(architecture.embedding, texts) if encoded else None
        return make_batch(rows, architecture, self.table, features=features)

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the classes' probabilities for N texts, float32 [N, number of classes]."""
        if not texts:
            return np.zeros((0, len(self.class_names)), np.float32)
        return probabilities(self, self.encode(texts))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Returns the likeliest class's name for each text."""
        return _likeliest(self, self.predict_proba(texts))


class ImageChild(NamedTuple):
    """A trained image child."""

    task: str
    class_names: tuple[str, ...]
    decisions: dict[str, Choice]
    architecture: ImageArchitecture | CellArchitecture
    hyperparameters: ImageHyperparameters | CellHyperparameters
    side: int  # pixels that images are brought to, see `resize`
    channels: int
    statistics: PixelStatistics
    variables: Params

    @property
    def model(self) -> ChildModel:
        num_outputs = self.variables["params"]["network"]["bias"].size
        in_cells = isinstance(self.architecture, CellArchitecture)
        make_model = make_cell_model if in_cells else make_image_model
        return make_model(self.architecture, num_outputs)

    @property
    def constants(self) -> PixelStatistics:
        return self.statistics

    @property
    def apply_fn(self) -> ApplyFn:
        return _apply_fn(self)

    def encode(self, images: AnyArray) -> np.ndarray:
        """Returns images, uint8 [N, H, W, C], as uint8 [N, side, side, channels].

        Raises:
          UserError: the images are of another shape.
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[3] not in (1, self.channels):
            shape = f"[N, H, W, 1 or {self.channels}]"
            raise UserError(f"images of shape {list(images.shape)}: must be {shape}")
        return resize(images, self.side, self.channels)

    def predict_proba(self, images: AnyArray) -> np.ndarray:
        """Returns the classes' probabilities for images, see `encode`, as float32 [N, M]."""
        return probabilities(self, self.encode(images))

    def predict(self, images: AnyArray) -> list[str]:
        """Returns the likeliest class's name for each image."""
        return _likeliest(self, self.predict_proba(images))


class RecordChild(NamedTuple):
    """A trained record child."""

    task: str
    class_names: tuple[str, ...]
    decisions: dict[str, Choice]
    architecture: RecordArchitecture
    hyperparameters: RecordHyperparameters
    encoder: RecordEncoder
    num_features: int  # to which they are padded
    variables: Params

    @property
    def model(self) -> ChildModel:
        num_outputs = self.variables["params"]["network"]["bias"].size
        return make_record_model(self.architecture, num_outputs)

    @property
    def constants(self) -> AnyArray:
        return np.float32(self.encoder.num_features)

    @property
    def apply_fn(self) -> ApplyFn:
        return _apply_fn(self)

    def encode(self, records: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """Returns the features of N records, float32 [N, num_features].

        Args:
          records: by the name of a column, N values. Others than the child knows aren't looked at.

        Raises:
          UserError: a column is missing, or isn't of numbers, or as long as the others.
        """
        columns = {}
        for name in (*self.encoder.numbers, *(name for name, _ in self.encoder.categories)):
            if name not in records:
                raise UserError(f"column {name!r} is missing{nearest(name, records)}")
            try:
                columns[name] = to_column(records[name], name in self.encoder.numbers)
            except ValueError as error:
                raise UserError(f"column {name!r} must be of numbers: {error}") from error
        if len({len(column) for column in columns.values()}) > 1:
            raise UserError("the columns must be equally long")
        return pad_features(encode_records(self.encoder, columns), self.num_features)

    def predict_proba(self, records: Mapping[str, Sequence[Any]]) -> np.ndarray:
        """Returns the probabilities for N records, see `encode`: float32 [N, number of classes]."""
        return probabilities(self, self.encode(records))

    def predict(self, records: Mapping[str, Sequence[Any]]) -> list[str]:
        """Returns the likeliest class's name for each record."""
        return _likeliest(self, self.predict_proba(records))


Child: TypeAlias = TextChild | ImageChild | RecordChild


def _likeliest(child: Child, probabilities: np.ndarray) -> list[str]:
    return [child.class_names[i] for i in probabilities.argmax(-1)]


def _apply_fn(child: Child) -> ApplyFn:
    model, fixed = child.model, (child.constants, child.hyperparameters, jnp.uint32(0), False)

    def apply(variables: Params, batch: Any) -> Array:
        # NumPy's arrays lack what the models call.
        variables, batch, known = jax.tree.map(jnp.asarray, (variables, batch, fixed))
        # Outputs beyond the task's classes are there because other tasks had more.
        return model.apply(variables, batch, *known)[0][:, : len(child.class_names)]

    return apply


def probabilities(child: Child, batch: Any) -> np.ndarray:
    """Returns the classes' probabilities for a batch of N rows, float32 [N, number of classes].

    One compiled program serves any N.
    """
    model, num_classes = child.model, len(child.class_names)
    known = jax.device_put((child.variables, child.constants, child.hyperparameters))
    found = [np.zeros((0, num_classes), np.float32)]
    num_rows = len(jax.tree.leaves(batch)[0])
    for start in range(0, num_rows, EVALUATION_BATCH_SIZE):
        chunk = jax.tree.map(
            lambda x, start=start: pad_rows(
                x[start : start + EVALUATION_BATCH_SIZE], EVALUATION_BATCH_SIZE
            ),
            batch,
        )
        logits = _predict(model, known[0], chunk, *known[1:])[:, :num_classes]
        found.append(np.asarray(jax.nn.softmax(logits))[: num_rows - start])
    return np.concatenate(found)


def save_child(path: pathlib.Path, child: Child) -> None:
    """Writes a child into a folder, in place of the one that was there."""
    arrays = {"variables": child.variables}
    description: dict[str, Any] = {
        "task": child.task,
        "class_names": child.class_names,
        "decisions": child.decisions,
        "architecture": child.architecture._asdict(),
        "hyperparameters": {k: v.tolist() for k, v in child.hyperparameters._asdict().items()},
    }
    if isinstance(child, TextChild):
        encoder = child.encoder
        arrays |= {"hashes": encoder.hashes, "idf": encoder.idf}
        if child.table is not None:
            arrays["table"] = child.table
        description |= {
            "kind": "text",
            "preprocessing": encoder.preprocessing._asdict(),
            "length": encoder.length,
            "num_ngrams": encoder.num_ngrams,
            "vocabulary": encoder.vocabulary,
            "text_column": child.text_column,
        }
    elif isinstance(child, ImageChild):
        arrays["statistics"] = child.statistics._asdict()
        description |= {"kind": "image", "side": child.side, "channels": child.channels}
    else:
        if child.encoder.grid.size:  # which Orbax needs
            arrays["grid"] = child.encoder.grid
        description |= {
            "kind": "record",
            "preprocessing": child.encoder.preprocessing._asdict(),
            "numbers": child.encoder.numbers,
            "categories": child.encoder.categories,
            "num_features": child.num_features,
        }
    save_artifact(path, "child", description, arrays)


def load_child(path: str | pathlib.Path) -> Child:
    """Returns the child that `save_child` wrote into a folder, e.g. WORKDIR/best/TASK.

    Raises:
      UserError: the folder holds no child.
    """
    data, arrays = load_artifact(pathlib.Path(path), "child")
    architecture: dict[str, Any] = data["architecture"]
    hyperparameters: dict[str, Any] = {
        name: np.asarray(value, np.int32 if name.endswith(_INDICES) else np.float32)
        for name, value in data["hyperparameters"].items()
    }
    known = (data["task"], tuple(data["class_names"]), data["decisions"])
    kind = data.get("kind", "text")
    if kind == "image":
        model: tuple[Any, Any] = (
            (CellArchitecture(**architecture), CellHyperparameters(**hyperparameters))
            if "cells" in architecture
            else (ImageArchitecture(**architecture), ImageHyperparameters(**hyperparameters))
        )
        return ImageChild(
            *known,
            *model,
            data["side"],
            data["channels"],
            PixelStatistics(**arrays["statistics"]),
            arrays["variables"],
        )
    if kind == "record":
        return RecordChild(
            *known,
            RecordArchitecture(**architecture),
            RecordHyperparameters(**hyperparameters),
            RecordEncoder(
                RecordPreprocessing(**data["preprocessing"]),
                tuple(data["numbers"]),
                np.asarray(arrays.get("grid", np.zeros((0, 2)))),
                tuple((name, tuple(texts)) for name, texts in data["categories"]),
            ),
            data["num_features"],
            arrays["variables"],
        )
    architecture["conv_widths"] = tuple(architecture["conv_widths"])
    encoder = TextEncoder(
        TextPreprocessing(**data["preprocessing"]),
        data["length"],
        data["num_ngrams"],
        tuple(data["vocabulary"]),
        np.asarray(arrays["hashes"]),
        np.asarray(arrays["idf"]),
    )
    return TextChild(
        *known,
        TextArchitecture(**architecture),
        TextHyperparameters(**hyperparameters),
        encoder,
        arrays.get("table"),
        arrays["variables"],
        data.get("text_column"),  # which older ones don't say
    )
