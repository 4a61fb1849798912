"""What can be said of a task before any trial on it."""

import itertools
from collections import Counter

import numpy as np

from mnms_jax.tasks.text import normalize
from mnms_jax.types import Task, TaskTraits


def task_traits(task: Task, num_words: int = 500) -> TaskTraits:
    """Returns what a task's training examples are like.

    Args:
      task: the task.
      num_words: how many of its commonest words, in lower case, are kept.
    """
    train = task.splits["train"]
    common: tuple[str, ...] = ()
    if task.kind == "text":
        words = [normalize(text).split() for text in train.inputs]
        counts = Counter(itertools.chain.from_iterable(words))
        size = float(np.mean([len(own) for own in words]))
        common = tuple(word for word, _ in counts.most_common(num_words))
    elif task.kind == "image":
        size = float(np.prod(train.inputs.shape[1:3]))
    else:
        size = float(len(train.inputs))
    majority = float(np.bincount(train.labels).max() / len(train.labels))
    return TaskTraits(len(train.labels), task.num_classes, size, majority, common)
