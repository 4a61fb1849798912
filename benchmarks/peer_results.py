"""What is written of a comparison with other tuners: regrets by benchmark, task and method."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

import mnms_jax as mnms
from mnms_jax.comparison import ALL_TASKS, mean_interval, trial_counts

# Tasks that defaults of the library were chosen on, of all tables.
_TUNED = frozenset(
    (
        *("australian", "blood_transfusion", "car", "credit_g", "kc1", "phoneme", "segment"),
        *("vehicle", "cora", "citeseer", "pubmed", "cs", "physics", "arxiv"),
    )
)


def summarise(methods: Sequence[str], regrets: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Returns all rows for regrets [M, S, T, N] by table.

    They are of each task, of all tasks of each table, and of all those that nothing was tuned on.
    """
    rows, untuned = [], []
    for table, by_task in regrets.items():
        rows += _rows(table, ALL_TASKS, methods, by_task.mean(axis=2))
        for t, task in enumerate(mnms.load_table(table).task_names):
            rows += _rows(table, task, methods, by_task[:, :, t])
            if task not in _TUNED:
                untuned.append(by_task[:, :, t])
    if untuned:
        rows += _rows("untuned", ALL_TASKS, methods, np.mean(untuned, axis=0))
    return rows


def _rows(
    benchmark: str, task: str, methods: Sequence[str], regrets: np.ndarray
) -> list[dict[str, Any]]:
    """Returns mean regrets with their 95 % intervals over the seeds, of regrets [M, S, N]."""
    return [
        {
            **{"benchmark": benchmark, "task": task, "method": method, "trials": count},
            **dict(zip(("regret", "low", "high"), map(float, mean_interval(own)), strict=True)),
        }
        for m, method in enumerate(methods)
        for count in trial_counts(regrets.shape[-1])
        for own in [regrets[m, :, count - 1]]
    ]
