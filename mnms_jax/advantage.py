"""Per-task moving baselines, and advantages in which every task pulls with equal force."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mnms_jax.replay import ReplayBank
from mnms_jax.types import Array


class Baseline(NamedTuple):
    """Exponential moving statistics of each task's rewards."""

    mean: Array  # [T]
    variance: Array  # [T]
    seen: Array  # int32 [T], number of rewards


# Baseline, replay bank, task_ids [B] and rewards [B] -> advantages [B].
Advantage = Callable[[Baseline, ReplayBank, Array, Array], Array]


def init_baseline(num_tasks: int) -> Baseline:
    """Returns the statistics before any reward was seen."""
    zeros = jnp.zeros(num_tasks)
    return Baseline(zeros, zeros, jnp.zeros(num_tasks, jnp.int32))


def update_baseline(
    baseline: Baseline, task_ids: Array, rewards: Array, *, decay: float = 0.95
) -> Baseline:
    """Moves each task's statistics towards its rewards, one trial after another.

    A task's first reward sets its mean. Mean and variance follow the exponentially weighted
    recursion of Finch (2009), "Incremental calculation of weighted mean and variance".

    Args:
      baseline: statistics so far.
      task_ids: int32 [B].
      rewards: [B]; NaN (a failed trial) changes nothing.
      decay: weight of the past (Zoph & Le 2017 have 0.95).
    """
    chex.assert_rank([task_ids, rewards], 1)

    def step(baseline: Baseline, trial: tuple[Array, Array]) -> tuple[Baseline, None]:
        task_id, reward = trial
        weight = jnp.where(baseline.seen[task_id] == 0, 1.0, 1.0 - decay)
        weight = jnp.where(jnp.isnan(reward), 0.0, weight)
        delta = jnp.nan_to_num(reward) - baseline.mean[task_id]
        variance = (1.0 - weight) * (baseline.variance[task_id] + weight * delta**2)
        moved = Baseline(
            baseline.mean.at[task_id].add(weight * delta),
            baseline.variance.at[task_id].set(variance),
            baseline.seen.at[task_id].add(weight > 0),
        )
        return moved, None

    return jax.lax.scan(step, baseline, (task_ids, rewards))[0]


def relative_advantage(
    baseline: Baseline, replay: ReplayBank, task_ids: Array, rewards: Array
) -> Array:
    """Returns (R - b) / abs(b): as published (Wong & Gesmundo 2017), where rewards are positive.

    It is huge where b is nearly 0; rewards that may be negative are better taken by their ranks.
    """
    del replay
    mean = baseline.mean[task_ids]
    return (rewards - mean) / jnp.maximum(jnp.abs(mean), 1e-3)


def standardized_advantage(
    baseline: Baseline, replay: ReplayBank, task_ids: Array, rewards: Array
) -> Array:
    """Returns (R - b) over the moving standard deviation of the task's rewards."""
    del replay
    deviation = jnp.sqrt(baseline.variance[task_ids])
    return (rewards - baseline.mean[task_ids]) / jnp.maximum(deviation, 1e-3)


def rank_advantage(
    baseline: Baseline, replay: ReplayBank, task_ids: Array, rewards: Array
) -> Array:
    """Returns each reward's rank among the task's replayed ones, from -1 (worst) to 1 (best)."""
    del baseline
    bank = replay.rewards[task_ids]  # [B, N]
    valid = replay.valid[task_ids]
    below = jnp.sum(valid & (bank < rewards[:, None]), axis=1)
    above = jnp.sum(valid & (bank > rewards[:, None]), axis=1)
    return (below - above) / jnp.maximum(jnp.sum(valid, axis=1), 1)


ADVANTAGES: dict[str, Advantage] = {
    "relative": relative_advantage,
    "std": standardized_advantage,
    "rank": rank_advantage,
}
