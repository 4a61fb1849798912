"""The arrays that image children read."""

import functools
import hashlib
import threading
from collections.abc import Sequence

import numpy as np

from mnms_jax.children.image import PixelStatistics
from mnms_jax.tasks.images import common_size, resize
from mnms_jax.tasks.inputs import common_num_rows, make_child_data
from mnms_jax.types import ChildData, ChildSpec, Task


class ImageInputs:
    """Prepares several tasks' images for children.

    Images are brought to one size, and rows and classes padded, to what the largest task needs, so
    that all tasks share compiled programs.

    Args:
      tasks: the tasks.
      limit: most pixels of a side.
    """

    def __init__(self, tasks: Sequence[Task], limit: int):
        self.tasks = tuple(tasks)
        self.num_classes = max(task.num_classes for task in tasks)
        self.side, self.channels = common_size(tasks, limit)
        self._num_rows = common_num_rows(tasks)
        self._kept: dict[int, ChildData] = {}
        self._lock = threading.Lock()

    @functools.cached_property
    def digests(self) -> dict[str, str]:
        """For the content of each task, 16 hexadecimal digits."""
        digests = {}
        for task in self.tasks:
            content = hashlib.sha256()
            for name, split in task.splits.items():
                content.update(f"{name} {split.inputs.shape}".encode())
                content.update(np.ascontiguousarray(split.inputs).data)
                content.update(split.labels.tobytes())
            digests[task.name] = content.hexdigest()[:16]
        return digests

    def child_data(self, task_id: int, spec: ChildSpec) -> ChildData:
        """Returns a task's data, the same for all children, on the default device."""
        del spec
        with self._lock:
            if task_id not in self._kept:
                self._kept[task_id] = self._make(task_id)
            return self._kept[task_id]

    def _make(self, task_id: int) -> ChildData:
        task = self.tasks[task_id]
        arrays = {
            name: resize(task.splits[name].inputs, self.side, self.channels)
            for name in self._num_rows
        }
        statistics = _pixel_statistics(arrays["train"])
        return make_child_data(task, self._num_rows, arrays, statistics)


def _pixel_statistics(images: np.ndarray) -> PixelStatistics:
    """Returns what images [N, S, S, C] are scaled by, from how often each value is there."""
    counts = np.stack([np.bincount(x.ravel(), minlength=256) for x in np.moveaxis(images, -1, 0)])
    values = np.arange(256)
    mean = counts @ values / counts.sum(1)
    deviation = np.sqrt(counts @ values**2 / counts.sum(1) - mean**2)
    return PixelStatistics(mean.astype(np.float32), np.maximum(deviation, 1).astype(np.float32))
