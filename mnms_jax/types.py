"""Aliases and NamedTuples shared by all modules.

Shape letters used throughout: B trials in a round, D decisions, C most choices of a decision,
T tasks, N rows (of data, or of a replay bank), L tokens in a text, V rows of an embedding table.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
PRNGKey: TypeAlias = jax.Array
Params: TypeAlias = Any
Choice: TypeAlias = str | int | float | bool


class UserError(ValueError):
    """A mistake that the user can mend; experiments show its message without a traceback."""


class Split(NamedTuple):
    """Labelled texts."""

    texts: tuple[str, ...]  # N texts
    labels: np.ndarray  # int32 [N], indices into the task's class names


class Task(NamedTuple):
    """A text classification data set, split once and for all."""

    name: str
    splits: Mapping[str, Split]  # "train", "validation" and "test"
    class_names: tuple[str, ...]

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class PolicyOutput(NamedTuple):
    """One rollout of the policy (unbatched; inactive decisions hold zeros)."""

    actions: Array  # int32 [D]
    log_probs: Array  # [D]
    entropy: Array  # [D]


class Policy(NamedTuple):
    """A controller's policy as pure functions (unbatched; callers vmap)."""

    init: Callable[[PRNGKey], Params]
    sample: Callable[[Params, PRNGKey, Array], PolicyOutput]  # params, key, task_id []
    evaluate: Callable[[Params, Array, Array], PolicyOutput]  # params, actions [D], task_id []
