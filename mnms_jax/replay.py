"""The replay bank: each task's last trials, kept for off-policy learning."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mnms_jax.randomness import draw, index
from mnms_jax.types import Array, PRNGKey


class Batch(NamedTuple):
    """Trials to learn from."""

    task_ids: Array  # int32 [B]
    actions: Array  # int32 [B, D]
    log_probs: Array  # [B, D], under the policy that sampled them
    rewards: Array  # [B], NaN where the trial failed


class ReplayBank(NamedTuple):
    """A ring of the last N trials of every task."""

    actions: Array  # int32 [T, N, D]
    log_probs: Array  # [T, N, D]
    rewards: Array  # [T, N], NaN where the trial failed
    size: Array  # int32 [T], trials ever added

    @property
    def valid(self) -> Array:
        """Bool [T, N]: which slots hold a trial."""
        return jnp.arange(self.rewards.shape[1])[None] < self.size[:, None]


class Suggestions(NamedTuple):
    """Designs that were good on other tasks, in the order to try them."""

    designs: Array  # int32 [P, D]
    number: Array  # int32 [], how many first ones count: the others repeat some, or fill up


def init_replay(num_tasks: int, capacity: int, num_decisions: int) -> ReplayBank:
    """Returns an empty bank of `capacity` trials a task."""
    shape = (num_tasks, capacity, num_decisions)
    return ReplayBank(
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape),
        jnp.zeros(shape[:2]),
        jnp.zeros(num_tasks, jnp.int32),
    )


def shrink(replay: ReplayBank, capacity: int) -> ReplayBank:
    """Returns a bank without trials with no more slots than that for a task.

    Of a bank that holds trials, some would be lost.
    """
    actions, log_probs, rewards = (x[:, :capacity] for x in replay[:3])
    return ReplayBank(actions, log_probs, rewards, replay.size)


def add(replay: ReplayBank, batch: Batch) -> ReplayBank:
    """Adds B trials, each in place of its task's oldest once the bank is full.

    No task may have more trials in the batch than the bank has slots.
    """
    chex.assert_rank([batch.task_ids, batch.actions, batch.rewards], [1, 2, 1])
    num_tasks, capacity = replay.rewards.shape
    same_task = jax.nn.one_hot(batch.task_ids, num_tasks, dtype=jnp.int32)  # [B, T]
    earlier = jnp.cumsum(same_task, axis=0) - same_task
    rank = jnp.take_along_axis(earlier, batch.task_ids[:, None], axis=1)[:, 0]
    slots = (replay.size[batch.task_ids] + rank) % capacity
    where = (batch.task_ids, slots)
    return ReplayBank(
        replay.actions.at[where].set(batch.actions),
        replay.log_probs.at[where].set(batch.log_probs),
        replay.rewards.at[where].set(batch.rewards),
        replay.size + jnp.sum(same_task, axis=0),
    )


def worst_rewards(rewards: Array, valid: Array) -> Array:
    """Returns what failed trials count as, [...]: a deviation below their task's lowest reward.

    So they are worse than any other trial, on whatever scale, and not so far off that they drown
    the differences between the others.

    Args:
      rewards: [..., N], NaN where the trial failed.
      valid: bool [..., N], the trials that count.
    """
    known = jnp.where(valid, rewards, jnp.nan)
    lowest, deviation = jnp.nanmin(known, axis=-1), jnp.nanstd(known, axis=-1)
    return jnp.nan_to_num(lowest) - jnp.maximum(jnp.nan_to_num(deviation), 1e-3)


def fill_failures(replay: ReplayBank) -> ReplayBank:
    """Returns the bank with `worst_rewards` in place of NaN."""
    worst = worst_rewards(replay.rewards, replay.valid)[:, None]
    return replay._replace(rewards=jnp.where(jnp.isnan(replay.rewards), worst, replay.rewards))


def best(replay: ReplayBank, number: int) -> tuple[Batch, Array]:
    """Returns each task's best trials in the bank, and whether each is there: [T * number]."""
    num_tasks, capacity = replay.rewards.shape
    number = min(number, capacity)
    known = replay.valid & ~jnp.isnan(replay.rewards)
    rewards, slots = jax.lax.top_k(jnp.where(known, replay.rewards, -jnp.inf), number)
    task_ids = jnp.repeat(jnp.arange(num_tasks, dtype=jnp.int32), number)
    where = (task_ids, slots.reshape(-1))
    batch = Batch(task_ids, replay.actions[where], replay.log_probs[where], replay.rewards[where])
    return batch, jnp.isfinite(rewards.reshape(-1))


def best_designs(sources: ReplayBank, number: int, key: PRNGKey) -> Suggestions:
    """Returns the sources' best designs, at most T times the number.

    The sources take turns: the best design of each, then the second best of each. No common scale
    of rewards is needed so, and no source is preferred; their order within a turn is random.

    Args:
      sources: T tasks' trials; failed ones don't count.
      number: of best trials of each source that are looked at.
      key: of the order.
    """
    order = jax.random.permutation(key, len(sources.size))
    batch, there = best(jax.tree.map(lambda x: x[order], sources), number)

    def take_turns(x: Array) -> Array:
        return jnp.swapaxes(x.reshape(len(order), -1, *x.shape[1:]), 0, 1).reshape(x.shape)

    designs, there = take_turns(batch.actions), take_turns(there)
    same = jnp.all(designs[:, None] == designs[None], -1) & there[None]
    known = jnp.any(jnp.tril(same, -1), 1) | ~there
    return Suggestions(designs[jnp.argsort(known, stable=True)], jnp.sum(~known))


def sample(replay: ReplayBank, key: PRNGKey, batch_size: int) -> Batch:
    """Draws `batch_size` trials with replacement, the same number from every task.

    Every task must hold at least one trial, and `batch_size` is rounded down to a multiple of the
    number of tasks.
    """
    num_tasks, capacity = replay.rewards.shape
    each = max(batch_size // num_tasks, 1)
    stored = jnp.minimum(replay.size, capacity)
    slots = index(draw(key, (num_tasks, each)), stored[:, None])
    task_ids = jnp.repeat(jnp.arange(num_tasks, dtype=jnp.int32), each)
    where = (task_ids, slots.reshape(-1))
    return Batch(task_ids, replay.actions[where], replay.log_probs[where], replay.rewards[where])
