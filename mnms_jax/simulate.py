"""Whole searches on tables of known rewards: functions of a key, compiled and mapped as one."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.devices import map_trials, trial_sharding
from mnms_jax.randomness import draw
from mnms_jax.search import Search, SearchState
from mnms_jax.tabular import RewardTable, TableBenchmark, draw_reward
from mnms_jax.types import Array, PRNGKey


class Played(NamedTuple):
    """Trials of searches on G tasks, N on each, in their order."""

    actions: Array  # int32 [G, N, D]
    rewards: Array  # [G, N], NaN where the trial failed


# One seed's searches on a table, all that is random being the key's.
Strategy: TypeAlias = Callable[[RewardTable, PRNGKey], Played]


def play(
    search: Search, table: RewardTable, task_ids: Array, num_rounds: int, key: PRNGKey
) -> tuple[SearchState, Played]:
    """Runs a search on a table from its start to its end (unbatched; callers jit, and vmap).

    Args:
      search: on G tasks.
      table: what designs earn.
      task_ids: int32 [G], the table's task for each of the search's.
      num_rounds: of asking and telling.
      key: of the search and of the table's noise.
    """
    init_key, rounds_key = jax.random.split(key)
    draw_rewards = jax.vmap(draw_reward, in_axes=(None, 0, 0, 0))

    def step(state: SearchState, round_key: PRNGKey) -> tuple[SearchState, Played]:
        proposal = search.ask(state)
        chances = draw(round_key, proposal.task_ids.shape)
        rewards = draw_rewards(table, chances, task_ids[proposal.task_ids], proposal.actions)
        state, _ = search.tell(state, proposal, rewards)
        return state, Played(proposal.actions, rewards)

    def by_task(rounds: Array) -> Array:  # within a round, tasks take turns
        return jnp.swapaxes(rounds.reshape(-1, len(task_ids), *rounds.shape[2:]), 0, 1)

    keys = jax.random.split(rounds_key, num_rounds)
    state, rounds = jax.lax.scan(step, search.init(init_key), keys)
    return state, jax.tree.map(by_task, rounds)


def play_seeds(
    strategy: Strategy, devices: Sequence[jax.Device]
) -> Callable[[RewardTable, PRNGKey], Played]:
    """Returns the strategy as one compiled function of keys [S], spread over devices.

    Results have a leading axis of S. Numbers of seeds that the devices don't divide are padded.
    """
    sharding = trial_sharding(devices)

    @jax.jit
    def spread(table: RewardTable, keys: PRNGKey) -> Played:
        return map_trials(jax.vmap(functools.partial(strategy, table)), sharding)(keys)

    def run(table: RewardTable, keys: PRNGKey) -> Played:
        padded = len(keys) + -len(keys) % len(devices)
        played = spread(table, keys[jnp.arange(padded) % len(keys)])
        return jax.tree.map(lambda x: x[: len(keys)], played)

    return run


def regret(benchmark: TableBenchmark, task_ids: Sequence[int], played: Played) -> np.ndarray:
    """Returns the normalised regret after each trial, float [S, G, N].

    It is (best - incumbent) / (best - median), of the table's designs by their mean rewards, or
    (best - incumbent) where half of them are as good as the best. The incumbent is the design with
    the highest reward seen so far, the median as long as all failed.

    Args:
      benchmark: whose table was played on.
      task_ids: G numbers of its tasks.
      played: with a leading axis of seeds, [S, G, N].
    """
    table, means = benchmark.table, benchmark.means[list(task_ids)]
    best, median = np.nanmax(means, 1), np.nanmedian(means, 1)
    rows = np.asarray(table.rows)[np.asarray(played.actions) @ np.asarray(table.strides)]
    values = means[np.arange(len(means))[:, None], rows]  # [S, G, N]
    seen = np.asarray(played.rewards)
    seen = np.where(np.isnan(seen), -np.inf, seen)
    before = np.maximum.accumulate(seen, -1)
    earlier = np.pad(before[..., :-1], ((0, 0), (0, 0), (1, 0)), constant_values=-np.inf)
    is_new = before > earlier
    index = np.maximum.accumulate(np.where(is_new, np.arange(seen.shape[-1]), 0), -1)
    incumbent = np.take_along_axis(values, index, -1)
    incumbent = np.where(np.isfinite(before), incumbent, median[:, None])
    span = best - median
    return (best[:, None] - incumbent) / np.where(span > 0, span, 1)[:, None]
