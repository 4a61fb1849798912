"""The arrays that record children read."""

import functools
import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from mnms_jax.children.mlp import RecordPreprocessing
from mnms_jax.tasks.inputs import common_num_rows, make_child_data
from mnms_jax.tasks.records import RecordEncoder, encode_records, fit_record_encoder
from mnms_jax.types import ChildData, ChildSpec, Task


class RecordInputs:
    """Prepares several tasks' records for children.

    Rows, features and classes are padded to what the largest task needs, so that all tasks share
    compiled programs.
    """

    def __init__(self, tasks: Sequence[Task]):
        self.tasks = tuple(tasks)
        self.num_classes = max(task.num_classes for task in tasks)
        standard = RecordPreprocessing("standard")
        # The same with any scaling.
        self.num_features = max(
            fit_record_encoder(task.splits["train"].inputs, standard).num_features for task in tasks
        )
        self._num_rows = common_num_rows(tasks)
        self._kept: dict[tuple[int, RecordPreprocessing], tuple[RecordEncoder, ChildData]] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """For the content of each task, 16 hexadecimal digits."""
        digests = {}
        for task in self.tasks:
            content = hashlib.sha256()
            for part, split in task.splits.items():
                for name, column in split.inputs.items():
                    content.update(f"{part} {name} {column.tolist()}".encode())
                content.update(split.labels.tobytes())
            digests[task.name] = content.hexdigest()[:16]
        return digests

    def child_data(self, task_id: int, spec: ChildSpec) -> ChildData:
        """Returns a task's data as the child takes it, on the default device."""
        return self._prepare(task_id, spec)[1]

    def encoder(self, task_id: int, spec: ChildSpec) -> RecordEncoder:
        """Returns the encoder of a task's records."""
        return self._prepare(task_id, spec)[0]

    def _prepare(self, task_id: int, spec: ChildSpec) -> tuple[RecordEncoder, ChildData]:
        assert isinstance(spec.preprocessing, RecordPreprocessing)
        key = (task_id, spec.preprocessing)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = self._make(*key)
            return self._kept[key]

    def _make(
        self, task_id: int, preprocessing: RecordPreprocessing
    ) -> tuple[RecordEncoder, ChildData]:
        task = self.tasks[task_id]
        encoder = fit_record_encoder(task.splits["train"].inputs, preprocessing)
        arrays = {
            name: pad_features(encode_records(encoder, task.splits[name].inputs), self.num_features)
            for name in self._num_rows
        }
        constant = np.float32(encoder.num_features)
        return encoder, make_child_data(task, self._num_rows, arrays, constant)


def pad_features(features: np.ndarray, number: int) -> np.ndarray:
    """Returns features [N, F] with zeros behind them, [N, number]."""
    return np.pad(features, ((0, 0), (0, number - features.shape[1])))
