import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from mnms_jax.gaussian_process import condition, observe
from mnms_jax.lockstep import leave_out
from mnms_jax.ranker import Trials, make_ranker
from mnms_jax.replay import ReplayBank
from mnms_jax.reward_model import (
    Knowledge,
    as_vectors,
    expect,
    fit_expectations,
    fit_reward_model,
)
from mnms_jax.space import Decision, SearchSpace

pytestmark = pytest.mark.usefixtures("quick_compiler")

SPACE = SearchSpace([Decision(name, (0, 1, 2)) for name in "abcd"])
DESIGNS = jnp.array(
    [[a, b, c, d] for a in range(3) for b in range(3) for c in range(3) for d in range(3)]
)
VALUES = jnp.array([[0.0, 0.2, 0.5], [0.3, 0.0, 0.1], [0.0, 0.1, 0.0], [0.2, 0.1, 0.0]])


def value(designs):
    return jnp.sum(VALUES[jnp.arange(4)[None], designs], 1)


def make_sources(key, shuffled=False, num_tasks=3, number=60):
    """Returns trials of tasks that differ in level and scale alone; shuffled, they mean nothing."""
    rows = jax.vmap(lambda k: jax.random.choice(k, 81, (number,), replace=False))(
        jax.random.split(key, num_tasks)
    )
    rewards = jax.vmap(value)(DESIGNS[rows]) * jnp.array([[1.0], [0.5], [0.8]])[:num_tasks] + 0.3
    if shuffled:
        rewards = jax.vmap(jax.random.permutation)(jax.random.split(key, num_tasks), rewards)
    shape = (num_tasks, number, 4)
    return ReplayBank(DESIGNS[rows], jnp.zeros(shape), rewards, jnp.full(num_tasks, number))


def trials_of(rows, capacity=32, rewards=None):
    """Returns a task's trials of some designs, in a bank with room for more."""
    rows = jnp.asarray(rows, jnp.int32)
    rewards = value(DESIGNS[rows]) if rewards is None else jnp.asarray(rewards)
    room = capacity - len(rows)
    return Trials(
        jnp.pad(DESIGNS[rows], ((0, room), (0, 0))),
        jnp.pad(rewards, (0, room)),
        jnp.arange(capacity) < len(rows),
    )


def rank(known, trials, designs=DESIGNS, **parts):
    """Returns how a ranker of these parts ranks designs."""
    ranker = make_ranker(SPACE, **parts)
    return ranker.rank(ranker.believe(known, trials, designs))


def test_conditioning_is_gaussian_process_regression():
    rng = np.random.default_rng(0)
    x, points = rng.normal(size=(37, 2)), rng.normal(size=(5, 2))
    y = rng.normal(size=(2, 37))
    level, noise, room = 4.0, 0.3, 2
    kernel = ConstantKernel(level, "fixed") + RBF(1.0, "fixed")
    # More rows than there are observations, and no whole number of blocks; rubbish behind them.
    among, covariance = np.full((53, 53), 7.0), np.full((53, 5), 7.0)
    among[:37, :37], covariance[:37] = kernel(x, x), kernel(x, points)
    found = condition(
        jnp.pad(jnp.asarray(y, jnp.float32), ((0, 0), (0, 16))),
        jnp.asarray(among, jnp.float32),
        jnp.asarray(covariance, jnp.float32),
        jnp.full(5, level + 1),
        jnp.int32(37),
        noise,
        room=room,
    )

    def check(found, x, y):
        for s in range(2):
            expected = GaussianProcessRegressor(kernel, alpha=noise**2, optimizer=None)
            mean, deviation = expected.fit(x, y[s]).predict(points, return_std=True)
            np.testing.assert_allclose(found.mean[s], mean, atol=2e-4)
            np.testing.assert_allclose(np.sqrt(found.variance), deviation, atol=2e-4)
            yield expected.log_marginal_likelihood_value_ + len(x) / 2 * np.log(2 * np.pi)

    evidence = list(check(found, x, y))
    np.testing.assert_allclose(found.evidence, evidence, atol=2e-3)
    # More observations, at two of the points, which are no evidence.
    for row, point in enumerate((3, 1)):
        told = rng.normal(size=2)
        like = jnp.asarray(kernel(points[point][None], points)[0], jnp.float32)
        found = observe(found, row, point, jnp.asarray(told, jnp.float32), like, noise)
        x, y = np.concatenate([x, points[point][None]]), np.concatenate([y, told[:, None]], 1)
        assert len(list(check(found, x, y))) == 2
    np.testing.assert_allclose(found.evidence, evidence, atol=2e-3)


def test_loops_may_go_on_behind_the_observations():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(40, 3)))
    like = jnp.exp(-jnp.sum((x[:, None] - x[None]) ** 2, -1))
    of_some = functools.partial(
        condition, jnp.asarray(rng.normal(size=(1, 40))), like, like, jnp.ones(40), noise=0.3
    )
    for count in (0, 3, 20):
        exact, longer = of_some(jnp.int32(count)), of_some(jnp.int32(count), most=jnp.int32(40))
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), exact, longer)


def test_expectations_are_gaussian_process_regression(key):
    tasks = make_sources(key, number=40)._replace(size=jnp.array([21, 40, 0]))
    told = fit_expectations(SPACE, tasks)
    found = expect(told, as_vectors(SPACE, DESIGNS))
    assert np.isnan(told.scale[2]) and not found[:, 2].any()  # no trials
    for t, size in enumerate((21, 40)):
        own = np.asarray(tasks.actions[t, :size])
        y = np.asarray(tasks.rewards[t, :size])
        assert float(told.scale[t]) == pytest.approx(np.quantile(y, 0.9) - np.median(y), rel=1e-4)
        y = np.clip((y - np.median(y)) / (np.quantile(y, 0.9) - np.median(y)), -3, 3)

        def covariance(a, b):
            distance = np.mean(a[:, None] != b[None], -1)
            return np.exp(-8 * distance) + 1 - distance + 4

        weights = np.linalg.solve(covariance(own, own) + 0.3**2 * np.eye(size), y)
        expected = covariance(np.asarray(DESIGNS), own) @ weights
        np.testing.assert_allclose(found[:, t], expected, atol=2e-3)


def test_sources_without_a_reward_have_no_scale(key):
    sources = leave_out(make_sources(key), 2)
    more = jax.tree.map(lambda x: jnp.concatenate([x, x[:1], x[:1]]), sources)
    failed = more.rewards.at[2].set(jnp.nan)
    model = fit_reward_model(
        key, SPACE, more._replace(rewards=failed, size=jnp.array([60, 60, 60, 0]))
    )
    usual = fit_reward_model(key, SPACE, sources).scale
    assert float(model.scale) == pytest.approx(float(usual))
    assert np.isfinite(rank(Knowledge(model), trials_of([1, 2])).scores).all()


def test_without_any_trial_the_sources_best_design_comes_first(key):
    model = fit_reward_model(key, SPACE, make_sources(key))
    ranking = jax.jit(rank)(Knowledge(model), trials_of([]))
    values = value(DESIGNS)
    assert float(values[jnp.argmax(ranking.scores)]) >= float(jnp.sort(values)[-3])
    assert float(jnp.corrcoef(ranking.scores, values)[0, 1]) > 0.9
    assert float(ranking.belief) == pytest.approx(0.5, abs=1e-4)


def test_cold_it_learns_from_the_tasks_own_trials():
    rows = np.random.default_rng(0).permutation(81)[:30]
    empty = rank(Knowledge(), trials_of([]))
    np.testing.assert_allclose(empty.scores, empty.scores[0], rtol=1e-5)
    ranking = rank(Knowledge(), trials_of(rows))
    rest = np.setdiff1d(np.arange(81), rows)
    correlation = np.corrcoef(ranking.expected[rest], value(DESIGNS)[rest])[0, 1]
    assert correlation > 0.6
    assert float(ranking.belief) == 0


def test_sources_that_tell_nothing_are_soon_not_believed_and_do_no_harm(key):
    rows = np.random.default_rng(1).permutation(81)[:20]
    rest = np.setdiff1d(np.arange(81), rows)
    good = fit_reward_model(key, SPACE, make_sources(key))
    useless = fit_reward_model(key, SPACE, make_sources(key, shuffled=True))
    rankings = {
        name: rank(Knowledge(model), trials_of(rows))
        for name, model in (("good", good), ("useless", useless), ("cold", None))
    }
    assert float(rankings["good"].belief) > 0.9
    assert float(rankings["useless"].belief) < 0.1

    def correlation(ranking):
        return np.corrcoef(ranking.expected[rest], value(DESIGNS)[rest])[0, 1]

    assert correlation(rankings["useless"]) > correlation(rankings["cold"]) - 0.1
    # The fewer trials of its own a task has, the more good sources help.
    few = [rank(Knowledge(m), trials_of(rows[:6])) for m in (good, None)]
    assert correlation(few[0]) > correlation(few[1]) + 0.05
    # Without the guard the useless model is believed whatever the trials say.
    unguarded = rank(Knowledge(useless), trials_of(rows), belief=1.0)
    assert float(unguarded.belief) == pytest.approx(1)
    assert unguarded.alone is None


def test_by_its_own_trials_alone_a_task_is_told_nothing_but_a_scale(key):
    rows = np.random.default_rng(1).permutation(81)[:20]
    good, useless = (fit_reward_model(key, SPACE, make_sources(key, s)) for s in (False, True))
    useless = useless._replace(scale=good.scale)
    told, misled = (rank(Knowledge(model), trials_of(rows)) for model in (good, useless))
    np.testing.assert_allclose(told.alone, misled.alone, rtol=1e-5)
    assert np.abs(told.scores - misled.scores).max() > 0.01
    cold = rank(Knowledge(), trials_of(rows))
    assert cold.alone is None
    assert np.corrcoef(told.alone, cold.scores)[0, 1] > 0.95


def test_tasks_searched_at_once_are_guarded_against_and_explore_as_from_scratch(key):
    rows = np.random.default_rng(1).permutation(81)[:20]
    good, useless = (fit_expectations(SPACE, make_sources(key, s)) for s in (False, True))
    useless = useless._replace(scale=good.scale)
    told, misled = (rank(Knowledge(others=others), trials_of(rows)) for others in (good, useless))
    assert float(told.belief) > 0.9 and float(misled.belief) < 0.3
    np.testing.assert_allclose(told.alone, misled.alone, rtol=1e-5)
    assert rank(Knowledge(others=good), trials_of(rows), belief=1.0).alone is None
    # Bounds are as wide as without other tasks, and with sources they are narrower.
    sources = fit_reward_model(key, SPACE, make_sources(key))
    means = [
        np.mean(rank(known, trials_of(rows), beta=beta).scores)
        for known in (Knowledge(others=good), Knowledge(sources))
        for beta in (1.0, 3.0)
    ]
    assert means[0] == means[1] and means[2] < means[3] - 0.01


def test_scores_follow_the_scale_and_level_of_rewards(key):
    model = fit_reward_model(key, SPACE, make_sources(key))
    rows = np.random.default_rng(2).permutation(81)[:20]
    there = rank(Knowledge(model), trials_of(rows)).scores
    higher = rank(Knowledge(model), trials_of(rows, rewards=value(DESIGNS[rows]) + 10)).scores
    np.testing.assert_allclose(higher - there, (higher - there)[0], atol=1e-3)


def test_failed_trials_count_as_the_worst():
    rows = [0, 1, 2, 40, 80]
    rewards = value(DESIGNS[jnp.array(rows)])
    failed = rank(Knowledge(), trials_of(rows, rewards=rewards.at[3].set(jnp.nan)), DESIGNS)
    others = rewards[jnp.array([0, 1, 2, 4])]
    below = others.min() - others.std()
    worst = rank(Knowledge(), trials_of(rows, rewards=rewards.at[3].set(below)), DESIGNS)
    assert np.isfinite(failed.scores).all()
    np.testing.assert_allclose(failed.scores, worst.scores, rtol=1e-5)
    # So they tell where not to look, also beside rewards that are all the same.
    alike = trials_of([0, 1, 54, 55], rewards=[0.8, 0.8, jnp.nan, jnp.nan])
    expected = rank(Knowledge(), alike).expected
    assert float(expected[2]) > float(expected[56]) + 2e-4
    none = rank(Knowledge(), trials_of([3, 4], rewards=[jnp.nan, jnp.nan]), DESIGNS)
    assert np.isfinite(none.scores).all()


def test_what_is_assumed_is_less_uncertain_and_no_evidence(key):
    model = fit_reward_model(key, SPACE, make_sources(key))
    ranker = make_ranker(SPACE)
    believe = functools.partial(ranker.believe, Knowledge(model))
    rows = [0, 10, 20, 30, 40, 50]
    seen = assumed = believe(trials_of(rows[:3]), DESIGNS, room=3)
    for row in rows[3:]:
        assumed = ranker.assume(assumed, row)
    told, known = believe(trials_of(rows), DESIGNS), ranker.rank(seen)
    assert float(ranker.rank(assumed).belief) == float(known.belief)
    assert float(ranker.rank(told).belief) != pytest.approx(float(known.belief), abs=1e-3)
    # As little is uncertain, under each hypothesis, as if it had been told.
    np.testing.assert_allclose(assumed.processes.variance, told.processes.variance, rtol=1e-3)
    assert (assumed.processes.variance[:, rows[3:]] < seen.processes.variance[:, rows[3:]]).all()


def test_it_maps_over_tasks_alike(key):
    known = Knowledge(fit_reward_model(key, SPACE, make_sources(key)))
    both = [trials_of([1, 5, 9]), trials_of([3, 4, 50, 60, 70])]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *both)
    together = jax.vmap(functools.partial(rank, known))(stacked).scores
    for scores, trials in zip(together, both, strict=True):
        np.testing.assert_allclose(scores, rank(known, trials).scores, atol=2e-4)
