"""Tables of known rewards in place of training: what a design earns is a look-up of arrays."""

import math
from typing import NamedTuple

import chex
import jax.numpy as jnp
import numpy as np

from mnms_jax.randomness import index
from mnms_jax.space import SearchSpace
from mnms_jax.types import AnyArray, Array


class RewardTable(NamedTuple):
    """Rewards of R designs on T tasks; a pytree of arrays, so that jit takes it as an argument.

    Every choice of one action a decision is a cell of a grid, the last decision counting fastest.
    Several cells may have one row, where they describe the same child. Designs that nobody
    evaluated have a row too: the last one, which has no seeds.
    """

    rewards: AnyArray  # float32 [T, R, S], maximised; NaN: failed, or beyond num_seeds
    num_seeds: AnyArray  # int32 [T, R], repeats of a design on a task; the first so many of S
    rows: AnyArray  # int32 [cells], the row of each cell
    strides: AnyArray  # int32 [D], cells between two neighbouring choices of a decision


class TableBenchmark(NamedTuple):
    """A search space and tasks whose rewards are known."""

    name: str
    space: SearchSpace
    task_names: tuple[str, ...]  # T names
    metric: str  # what a reward is, in words
    table: RewardTable  # NumPy arrays
    test: np.ndarray | None  # float32 [T, R], mean of the seeds (NaN: none); None: not in the table

    @property
    def means(self) -> np.ndarray:
        """Float32 [T, R]: mean reward of a design's seeds without failed ones; NaN: none."""
        rewards = np.asarray(self.table.rewards)
        counts = np.isfinite(rewards).sum(axis=-1)
        sums = np.nansum(rewards, axis=-1, dtype=np.float64)
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(np.float32)

    @property
    def designs(self) -> np.ndarray:
        """Int32 [R, D]: the actions of each row, of several that mean the same the first."""
        _, cells = np.unique(self.table.rows, return_index=True)
        sizes = [len(decision.choices) for decision in self.space.decisions]
        return np.stack(np.unravel_index(cells, sizes), axis=-1).astype(np.int32)


def grid_strides(space: SearchSpace) -> np.ndarray:
    """Returns the strides of a space's grid of cells, int32 [D]; the last decision's is 1."""
    sizes = [len(decision.choices) for decision in space.decisions]
    return np.array([math.prod(sizes[d + 1 :]) for d in range(len(sizes))], np.int32)


def find_row(table: RewardTable, actions: Array) -> Array:
    """Returns the row of a design, int32 []; actions are int32 [D] (unbatched; callers vmap)."""
    chex.assert_rank(actions, 1)
    return jnp.asarray(table.rows)[jnp.sum(actions * jnp.asarray(table.strides))]


def draw_reward(table: RewardTable, chance: Array, task_id: Array, actions: Array) -> Array:
    """Returns the reward of one trial, as `Search.tell` takes it (unbatched; callers vmap).

    One of the design's seeds is drawn, all being equally likely, so that trials of one design
    differ as they do when children are trained.

    Args:
      table: the known rewards.
      chance: float32 [], of this trial, uniform in [0, 1); it chooses the seed.
      task_id: int32 [].
      actions: int32 [D].

    Returns:
      Float32 []; NaN if the trial failed or the table lacks this design on this task.
    """
    row = find_row(table, actions)
    most = jnp.maximum(jnp.asarray(table.num_seeds)[task_id, row], 1)
    return jnp.asarray(table.rewards)[task_id, row, index(chance, most)]
