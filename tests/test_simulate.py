import csv
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax import strategies
from mnms_jax.controller import make_random_policy
from mnms_jax.learner import make_null_learner
from mnms_jax.methods import make_cold_search
from mnms_jax.search import make_search
from mnms_jax.simulate import Played, play, play_seeds, regret
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.strategies import TableSetup, make_strategy
from mnms_jax.tabular import RewardTable, TableBenchmark, grid_strides
from mnms_jax.tabular_experiment import run_tabular
from mnms_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compiler")

NAN = np.nan
SPACE = SearchSpace([Decision(name, (0, 1, 2, 3)) for name in "abcd"])
CELLS = np.stack(np.unravel_index(np.arange(256), (4, 4, 4, 4)), -1)
VALUES = np.random.default_rng(3).uniform(size=(4, 4))


def make_benchmark(num_tasks=4):
    """Tasks that agree but for a little, with two repeats of each design."""
    rng = np.random.default_rng(0)
    common = VALUES[np.arange(4), CELLS].mean(1)
    rewards = common + 0.02 * rng.standard_normal((num_tasks, 256))
    rewards = np.stack([rewards, rewards + 0.01], -1).astype(np.float32)
    seeds = np.full((num_tasks, 256), 2, np.int32)
    table = RewardTable(rewards, seeds, np.arange(256, dtype=np.int32), grid_strides(SPACE))
    names = tuple(f"task{t}" for t in range(num_tasks))
    return TableBenchmark("toy", SPACE, names, "accuracy", table, None)


BENCHMARK = make_benchmark()
SETUP = TableSetup(SPACE, (0, 1), (2, 3), num_trials=5, num_source_trials=24)


def test_a_search_is_played_to_its_end(key):
    search = make_search(
        SPACE, make_random_policy(SPACE), make_null_learner(), num_tasks=2, trials_per_task=3
    )
    state, played = jax.jit(lambda key: play(search, BENCHMARK.table, jnp.array([3, 1]), 4, key))(
        key
    )
    assert played.actions.shape == (2, 12, 4) and played.rewards.shape == (2, 12)
    assert int(state.step) == 4
    np.testing.assert_array_equal(state.replay.actions[:, :12], played.actions)
    np.testing.assert_array_equal(state.replay.rewards[:, :12], played.rewards)
    rows = np.asarray(played.actions) @ BENCHMARK.table.strides
    for g, task in enumerate((3, 1)):
        repeats = BENCHMARK.table.rewards[task, rows[g]]
        assert (repeats == np.asarray(played.rewards)[g][:, None]).any(1).all()


@pytest.mark.parametrize("num_seeds", [1, 3, 4])
def test_seeds_are_spread_over_devices_and_each_is_its_own(num_seeds, key):
    strategy = make_strategy("random", SETUP)
    keys = jax.random.split(key, num_seeds)
    table = BENCHMARK.table
    together = play_seeds(strategy, jax.devices())(table, keys)
    assert len(jax.devices()) == 4 and together.rewards.shape == (num_seeds, 2, 5)
    alone = [jax.jit(strategy)(table, key) for key in keys]
    for number, own in enumerate(alone):
        np.testing.assert_array_equal(together.actions[number], own.actions)
        np.testing.assert_array_equal(together.rewards[number], own.rewards)


@pytest.mark.parametrize(
    "name",
    [
        *("cold", "evolution", "multitask", "portfolio", "mnms2017", "mnms2017_multitask"),
        *("tnaml2018_trpo_cold", "tnaml2018_urex", "pretrained", "transfer"),
    ],
)
def test_strategies_play_each_target(name, key):
    played = jax.jit(make_strategy(name, SETUP))(BENCHMARK.table, key)
    assert played.actions.shape == (2, 5, 4) and played.rewards.shape == (2, 5)
    rows = np.asarray(played.actions) @ BENCHMARK.table.strides
    for g, task in enumerate(SETUP.targets):
        repeats = BENCHMARK.table.rewards[task, rows[g]]
        assert (repeats == np.asarray(played.rewards)[g][:, None]).any(1).all()


def test_a_bank_without_empty_slots_changes_no_trial(key):
    setup = SETUP._replace(num_trials=20, trials_per_round=2)
    with mock.patch.object(strategies, "play", wraps=play) as spy:
        played = jax.jit(make_strategy("multitask", setup))(BENCHMARK.table, key)
    assert spy.call_args.args[0].init(key).replay.rewards.shape == (2, 20)
    search, tasks = make_cold_search(SPACE, 2, 2), jnp.array(setup.targets)
    assert search.init(key).replay.rewards.shape[1] > 20
    expected = jax.jit(lambda key: play(search, BENCHMARK.table, tasks, 10, key)[1])(key)
    np.testing.assert_array_equal(played.actions, expected.actions)
    np.testing.assert_array_equal(played.rewards, expected.rewards)


def test_regret_is_of_the_design_that_seemed_best():
    space = SearchSpace([Decision("a", (0, 1, 2, 3, 4))])
    rewards = np.array([[[1.0, 3.0], [4.0, 4.0], [6.0, NAN], [9.0, 1.0], [NAN, NAN]]], np.float32)
    seeds = np.array([[2, 2, 2, 2, 0]], np.int32)
    table = RewardTable(rewards, seeds, np.arange(5, dtype=np.int32), grid_strides(space))
    benchmark = TableBenchmark("toy", space, ("one",), "accuracy", table, None)
    # Means are 2, 4, 6 and 5: the best is 6, the median 4.5.
    actions = np.array([[[[4], [0], [1], [3], [2]]], [[[3], [2], [1], [0], [4]]]])
    seen = np.array([[[NAN, 3.0, 4.0, 9.0, 6.0]], [[1.0, NAN, 4.0, 3.0, NAN]]])
    found = regret(benchmark, [0], Played(actions, seen))
    incumbents = np.array([[[4.5, 2, 4, 5, 5]], [[5, 5, 4, 4, 4]]])
    np.testing.assert_allclose(found, (6 - incumbents) / 1.5, rtol=1e-6)


def test_an_experiment_prints_and_writes_its_regrets(tmp_path, capsys):
    path = tmp_path / "regrets.csv"
    regrets = run_tabular(
        BENCHMARK,
        ["random", "portfolio"],
        source_names=("task0",),
        num_seeds=6,
        num_trials=30,
        num_source_trials=80,
        csv=path,
    )
    assert regrets.shape == (2, 6, 3, 30)
    # Related tasks: what was best on one is good on the others.
    assert regrets[1, :, :, 9].mean() < regrets[0, :, :, 9].mean() - 0.1
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["benchmark", "task", "method", "seed", "trials", "regret"]
    assert len(rows) == 3 * 2 * 6 * 2  # at 10 and 25 trials
    row = rows[-1]
    assert (row["benchmark"], row["task"], row["method"]) == ("toy", "task3", "portfolio")
    assert float(row["regret"]) == pytest.approx(regrets[1, 5, 2, 24])
    shown = capsys.readouterr().out
    assert "regret: mean over tasks" in shown and "regret: task1" in shown


@pytest.mark.parametrize(
    ("methods", "changes", "message"),
    [
        (["randon"], {}, "did you mean 'random'"),
        (["tpe"], {}, "can't be compiled"),
        (["transfer_replay"], {}, "can't be compiled"),
        ([], {}, "name at least one, each once"),
        (["random", "random"], {}, "methods random, random: name at least one, each once"),
        (
            ["transfer_similar"],
            {},
            "'transfer_similar' needs to know how alike a table's tasks are",
        ),
        (["random"], {"task_names": ["task9"]}, "task 'task9' isn't in the table"),
        (["random"], {"task_names": ["task1"], "source_names": ["task1"]}, "name each once"),
        (["transfer"], {"task_names": BENCHMARK.task_names}, "needs source tasks"),
    ],
)
def test_mistakes(methods, changes, message):
    with pytest.raises(UserError, match=message):
        run_tabular(BENCHMARK, methods, **changes)


def with_rewards(rewards):
    table = BENCHMARK.table._replace(rewards=rewards)
    return BENCHMARK._replace(table=table)


def test_a_task_without_a_reward_is_refused():
    rewards = BENCHMARK.table.rewards.copy()
    rewards[3] = NAN
    with pytest.raises(UserError, match="task 'task3' has no reward"):
        run_tabular(with_rewards(rewards), ["random"])


def test_where_most_designs_are_the_best_regret_is_a_difference():
    rewards = np.ones_like(BENCHMARK.table.rewards)
    rewards[:, :9] = 0.75
    actions = np.array([[[[0, 0, 0, 0], [3, 3, 3, 3]]]])
    found = regret(with_rewards(rewards), [1], Played(actions, np.array([[[0.75, 1.0]]])))
    np.testing.assert_allclose(found, [[[0.25, 0.0]]])


def test_a_file_that_cannot_be_written_is_told_before_anything_is_played(tmp_path):
    with mock.patch("mnms_jax.tabular_experiment.play_seeds") as played:
        with pytest.raises(UserError, match=r"--csv .* can't be written: No such file"):
            run_tabular(BENCHMARK, ["random"], csv=tmp_path / "no" / "regrets.csv")
    played.assert_not_called()


def test_a_table_of_few_tasks_keeps_a_source():
    regrets = run_tabular(
        make_benchmark(2), ["portfolio"], num_seeds=4, num_trials=4, num_source_trials=8
    )
    assert regrets.shape == (1, 4, 1, 4)
