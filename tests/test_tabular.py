import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.controller import make_random_policy
from mnms_jax.learner import make_null_learner
from mnms_jax.search import make_search
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.tabular import RewardTable, TableBenchmark, draw_reward, find_row, grid_strides

pytestmark = pytest.mark.usefixtures("quick_compiler")

NAN = np.nan
SPACE = SearchSpace([Decision("a", (1, 2)), Decision("b", ("x", "y", "z"))])
# Cells 1x 1y 1z 2x 2y 2z; 1y and 2x mean the same, 2z is missing.
ROWS = np.array([0, 1, 2, 1, 3, 4], np.int32)
REWARDS = np.array(
    [
        [[0.1, 0.2, 0.3], [0.4, NAN, NAN], [0.5, 0.6, NAN], [0.7, NAN, 0.9], [NAN, NAN, NAN]],
        [[1.1, NAN, NAN], [1.2, NAN, NAN], [1.3, NAN, NAN], [NAN, NAN, NAN], [NAN, NAN, NAN]],
    ],
    np.float32,
)
SEEDS = np.array([[3, 1, 2, 3, 0], [1, 1, 1, 1, 0]], np.int32)  # some of them failed
TABLE = RewardTable(REWARDS, SEEDS, ROWS, grid_strides(SPACE))
BENCHMARK = TableBenchmark("toy", SPACE, ("one", "two"), "accuracy", TABLE, None)


def test_the_last_decision_counts_fastest():
    assert TABLE.strides.tolist() == [3, 1]
    assert TABLE.strides.dtype == np.int32
    sizes = SearchSpace([Decision("a", (1, 2)), Decision("b", (1, 2, 3)), Decision("c", (1, 2))])
    assert grid_strides(sizes).tolist() == [6, 2, 1]


def test_rows_are_found_alike_alone_batched_and_compiled():
    actions = np.array([[a, b] for a in range(2) for b in range(3)], np.int32)
    assert [int(find_row(TABLE, row)) for row in actions] == ROWS.tolist()
    found = jax.jit(jax.vmap(find_row, in_axes=(None, 0)))(TABLE, actions)
    assert found.dtype == jnp.int32
    assert found.tolist() == ROWS.tolist()
    with pytest.raises(AssertionError):
        find_row(TABLE, actions)


def test_each_seed_is_drawn_equally_often(key):
    chances = jax.random.uniform(key, (6000,))
    draw = jax.jit(jax.vmap(draw_reward, in_axes=(None, 0, None, None)))
    for cell, expected in [((0, 0), [0.1, 0.2, 0.3]), ((0, 1), [0.4]), ((0, 2), [0.5, 0.6])]:
        rewards = np.asarray(draw(TABLE, chances, jnp.int32(0), jnp.array(cell)))
        values, counts = np.unique(rewards, return_counts=True)
        np.testing.assert_allclose(values, expected, rtol=1e-6)
        # Four standard deviations of a binomial count.
        share = 1 / len(expected)
        tolerance = 4 * np.sqrt(6000 * share * (1 - share))
        np.testing.assert_allclose(counts, 6000 * share, atol=tolerance)
    rewards = np.asarray(draw(TABLE, chances, jnp.int32(1), jnp.array((0, 0))))
    np.testing.assert_allclose(rewards, 1.1, rtol=1e-6)


def test_a_failed_seed_fails_and_so_does_a_design_that_is_missing(key):
    chances = jax.random.uniform(key, (3000,))
    draw = jax.jit(jax.vmap(draw_reward, in_axes=(None, 0, None, None)))
    failed = np.isnan(draw(TABLE, chances, jnp.int32(0), jnp.array((1, 1))))
    assert 0.28 < failed.mean() < 0.39  # one of three; four standard deviations
    assert np.isnan(draw(TABLE, chances, jnp.int32(1), jnp.array((1, 1)))).all()
    assert np.isnan(draw(TABLE, chances, jnp.int32(0), jnp.array((1, 2)))).all()


def test_a_draw_depends_on_its_chance_alone(key):
    chances = jax.random.uniform(key, (8,))
    actions = jnp.tile(jnp.array([[0, 0], [0, 2]]), (4, 1))
    tasks = jnp.zeros(8, jnp.int32)
    together = jax.vmap(draw_reward, in_axes=(None, 0, 0, 0))(TABLE, chances, tasks, actions)
    draw = jax.jit(draw_reward)
    alone = [draw(TABLE, c, t, a) for c, t, a in zip(chances, tasks, actions, strict=True)]
    np.testing.assert_array_equal(together, np.array(alone))


def test_means_leave_out_failed_seeds_and_padding():
    expected = [[0.2, 0.4, 0.55, 0.8, NAN], [1.1, 1.2, 1.3, NAN, NAN]]
    assert BENCHMARK.means.dtype == np.float32
    np.testing.assert_allclose(BENCHMARK.means, expected, rtol=1e-6)


def test_designs_are_the_first_cell_of_each_row():
    assert BENCHMARK.designs.dtype == np.int32
    assert BENCHMARK.designs.tolist() == [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2]]


def test_a_whole_search_is_one_scan(key):
    search = make_search(
        SPACE, make_random_policy(SPACE), make_null_learner(), num_tasks=2, trials_per_task=4
    )

    def play(table, seed_key):
        def step(state, round_key):
            proposal = search.ask(state)
            chances = jax.random.uniform(round_key, proposal.task_ids.shape)
            rewards = jax.vmap(draw_reward, in_axes=(None, 0, 0, 0))(
                table, chances, proposal.task_ids, proposal.actions
            )
            state, _ = search.tell(state, proposal, rewards)
            return state, (proposal, rewards)

        init_key, trials_key = jax.random.split(seed_key)
        return jax.lax.scan(step, search.init(init_key), jax.random.split(trials_key, 5))[1]

    proposals, rewards = jax.jit(jax.vmap(play, in_axes=(None, 0)))(TABLE, jax.random.split(key, 3))
    assert rewards.shape == (3, 5, 8)
    cells = np.asarray(proposals.actions) @ TABLE.strides
    runs = REWARDS[np.asarray(proposals.task_ids), ROWS[cells]]  # [3, 5, 8, S]
    fits = (runs == np.asarray(rewards)[..., None]) | (
        np.isnan(runs) & np.isnan(np.asarray(rewards))[..., None]
    )
    assert fits.any(axis=-1).all()
    assert np.isfinite(np.asarray(rewards)).any()
