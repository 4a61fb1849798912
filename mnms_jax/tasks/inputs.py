"""The arrays that text children read: encoded once for each task and preprocessing, then kept."""

import functools
import hashlib
import itertools
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnms_jax.children.ragged import group_lengths
from mnms_jax.children.text import TextArchitecture, TextPreprocessing, TextSizes
from mnms_jax.tasks.embeddings import WordVectors, vectors_for
from mnms_jax.tasks.sentences import ENCODERS, kept_features
from mnms_jax.tasks.text import (
    PADDING,
    TextEncoder,
    TextRows,
    common_length,
    common_ngrams,
    encode,
    fit_encoder,
    make_batch,
    text_lengths,
)
from mnms_jax.training.program import BATCH_SIZE
from mnms_jax.types import Array, ChildData, ChildSpec, Task

_T = TypeVar("_T")

_CUT = 0.1  # share of a task's texts that may be cut without a word

# Groups of texts in a batch, each with a length of its own: more groups mean less padding, but more
# kernels to compile.
_NUM_GROUPS = 4


class TextInputs:
    """Prepares several tasks' data for children.

    Rows, words and classes are padded to what the largest task needs, so that all tasks share
    compiled programs.

    Args:
      tasks: the tasks.
      sizes: bounds on vocabulary, length and n-grams.
      vectors: pre-trained embeddings by name.
      encoders: names of sentence encoders that children may have.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        sizes: TextSizes,
        vectors: Mapping[str, WordVectors],
        encoders: Sequence[str] = (),
    ):
        self.tasks = tuple(tasks)
        self.sizes = sizes
        self.num_classes = max(task.num_classes for task in tasks)
        self._vectors = vectors
        self._encoders = encoders
        lengths = [text_lengths(task.splits["train"]) for task in tasks]
        self._length = common_length(lengths, sizes.length)
        for task, own in zip(tasks, lengths, strict=True):
            if (cut := np.mean(own > self._length)) > _CUT:
                logging.info(
                    "%s: %.0f %% of its texts are longer than %d words, the most that this space "
                    "takes, and are cut there",
                    *(task.name, 100 * cut, self._length),
                )
        self._num_rows = common_num_rows(tasks)
        self._kept: dict[Hashable, Any] = {}
        self._lock = threading.RLock()

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """For the content of each task and each embedding, 16 hexadecimal digits."""
        digests = {}
        for task in self.tasks:
            content = hashlib.sha256()
            for name, split in task.splits.items():
                content.update(f"{name} {len(split.inputs)}".encode())
                content.update("\0".join(split.inputs).encode())
                content.update(split.labels.tobytes())
            digests[task.name] = content.hexdigest()[:16]
        for name, table in self._vectors.items():
            content = hashlib.sha256("\0".join(table.words).encode())
            content.update(np.asarray(table.vectors).tobytes())
            digests[name] = content.hexdigest()[:16]
        return digests | {name: ENCODERS[name].digest[:16] for name in self._encoders}

    def child_data(self, task_id: int, spec: ChildSpec) -> ChildData:
        """Returns a task's data as the child takes it, on the default device."""
        architecture, preprocessing = spec.architecture, spec.preprocessing
        assert isinstance(architecture, TextArchitecture)
        assert isinstance(preprocessing, TextPreprocessing)
        # Nothing but these parts of an architecture changes its data.
        shapes = (architecture.embedding, architecture.pooled, architecture.sequence)
        key = ("data", task_id, preprocessing, *shapes, architecture.rows)
        return self._keep(key, lambda: self._child_data(task_id, architecture, preprocessing))

    def encoder(self, task_id: int, preprocessing: TextPreprocessing) -> TextEncoder:
        """Returns the encoder of a task's texts."""
        encoder = self._fit_encoder(task_id, preprocessing)
        return encoder._replace(num_ngrams=self._keep("num_ngrams", self._common_ngrams))

    def _common_ngrams(self) -> int:
        most = TextPreprocessing(lowercase=False, strip=False)
        encoders = [self._fit_encoder(task_id, most) for task_id in range(len(self.tasks))]
        return common_ngrams(encoders, [task.splits["train"] for task in self.tasks])

    def _fit_encoder(self, task_id: int, preprocessing: TextPreprocessing) -> TextEncoder:
        texts = self.tasks[task_id].splits["train"].inputs
        return self._keep(
            ("encoder", task_id, preprocessing),
            lambda: fit_encoder(texts, preprocessing, self.sizes, self._length),
        )

    def table(
        self, task_id: int, preprocessing: TextPreprocessing, architecture: TextArchitecture
    ) -> np.ndarray | None:
        """Returns the pre-trained table of an architecture, float32 [V, E], if it has one."""
        if not architecture.pretrained:
            return None

        def build() -> np.ndarray:
            vocabulary = self.encoder(task_id, preprocessing).vocabulary
            vectors = vectors_for(self._vectors[architecture.embedding], vocabulary)
            vectors[:2] = 0  # padding and unknown
            rows, columns = np.subtract((architecture.rows, architecture.size), vectors.shape)
            return np.pad(vectors, ((0, rows), (0, columns)))

        return self._keep(("table", task_id, preprocessing, architecture.embedding), build)

    def _child_data(
        self, task_id: int, architecture: TextArchitecture, preprocessing: TextPreprocessing
    ) -> ChildData:
        sequence = architecture.sequence
        rows, labels = self._sorted_rows(task_id, preprocessing, sequence)
        table = self.table(task_id, preprocessing, architecture)
        lengths = self._keep(("lengths", sequence), lambda: self._group_lengths(sequence))
        features = None
        if architecture.encoded:
            features = self._features(task_id, preprocessing, architecture.embedding)
        splits = self.tasks[task_id].splits
        data = ChildData(
            inputs=make_batch(rows, architecture, table, lengths, features),
            labels=labels,
            num_train=np.int32(len(splits["train"].labels)),
            first_evaluation=np.int32(self._num_rows["train"]),
            num_evaluation=np.int32(len(splits["validation"].labels)),
            num_classes=np.int32(self.tasks[task_id].num_classes),
            constants=None if architecture.pooled else table,
        )
        return jax.tree.map(jnp.asarray, data)

    def _group_lengths(self, sequence: str) -> tuple[int, ...]:
        """Returns bounds on the lengths of the groups of any batch, of all tasks."""
        rows = [
            split
            for task_id in range(len(self.tasks))
            for flags in itertools.product((False, True), repeat=2)
            for split in self._rows(task_id, TextPreprocessing(*flags), sequence).values()
        ]
        longest = getattr(rows[0], sequence).shape[1]
        return group_lengths([_lengths(r, sequence) for r in rows], _NUM_GROUPS, longest)

    def _sorted_rows(
        self, task_id: int, preprocessing: TextPreprocessing, sequence: str
    ) -> tuple[TextRows, Array]:
        """Returns rows by length, padded, and labels, on the device; architectures share them."""

        def build() -> tuple[TextRows, Array]:
            parts = []
            for split, rows in self._rows(task_id, preprocessing, sequence).items():
                labelled = (rows, self.tasks[task_id].splits[split].labels)
                order, size = _order(rows, sequence), self._num_rows[split]
                parts.append(jax.tree.map(lambda x, o=order, n=size: pad_rows(x[o], n), labelled))
            return jax.tree.map(lambda *parts: jnp.asarray(np.concatenate(parts)), *parts)

        return self._keep(("sorted", task_id, preprocessing, sequence), build)

    def _features(self, task_id: int, preprocessing: TextPreprocessing, name: str) -> np.ndarray:
        """Returns what an encoder gives for the texts as they are, in the order of their rows."""
        parts = []
        for split, rows in self._rows(task_id, preprocessing, "tokens").items():
            features = kept_features(name, self.tasks[task_id].splits[split].inputs)
            parts.append(pad_rows(features[_order(rows, "tokens")], self._num_rows[split]))
        return np.concatenate(parts)

    def _rows(
        self, task_id: int, preprocessing: TextPreprocessing, sequence: str
    ) -> dict[str, TextRows]:
        """Returns the encoded texts by split."""
        subwords = sequence == "subwords"

        def build() -> dict[str, TextRows]:
            encoder = self.encoder(task_id, preprocessing)
            splits = self.tasks[task_id].splits
            return {
                split: encode(encoder, splits[split].inputs, subwords=subwords)
                for split in self._num_rows
            }

        return self._keep(("rows", task_id, preprocessing, subwords), build)

    def _keep(self, key: Hashable, build: Callable[[], _T]) -> _T:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = build()
            return self._kept[key]


def common_num_rows(tasks: Sequence[Task]) -> dict[str, int]:
    """Returns the number of rows that each split is padded to, the same for all tasks."""
    return {
        # Whole batches are looked at, whatever there is to learn from.
        "train": max(BATCH_SIZE, *(len(task.splits["train"].labels) for task in tasks)),
        "validation": max(len(task.splits["validation"].labels) for task in tasks),
    }


def make_child_data(
    task: Task,
    num_rows: Mapping[str, int],
    arrays: Mapping[str, np.ndarray],
    constants: Any,
) -> ChildData:
    """Returns a task's data for children that take one array, on the default device.

    Args:
      task: the task.
      num_rows: of "train" and "validation", the most that any task has, to which rows are padded;
        a batch to train on, 128, at least.
      arrays: of both, a row for each example.
      constants: see ChildData.
    """
    parts = [
        (pad_rows(arrays[name], n), pad_rows(task.splits[name].labels, n))
        for name, n in num_rows.items()
    ]
    inputs, labels = map(np.concatenate, zip(*parts, strict=True))
    data = ChildData(
        inputs=inputs,
        labels=labels,
        num_train=np.int32(len(task.splits["train"].labels)),
        first_evaluation=np.int32(num_rows["train"]),
        num_evaluation=np.int32(len(task.splits["validation"].labels)),
        num_classes=np.int32(task.num_classes),
        constants=constants,
    )
    return jax.tree.map(jnp.asarray, data)


def pad_rows(array: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns an array with zeros behind its rows."""
    return np.pad(array, ((0, num_rows - len(array)), *[(0, 0)] * (array.ndim - 1)))


def _order(rows: TextRows, sequence: str) -> np.ndarray:
    return np.argsort(_lengths(rows, sequence), kind="stable")


def _lengths(rows: TextRows, sequence: str) -> np.ndarray:
    return np.sum(getattr(rows, sequence) != PADDING, 1)
