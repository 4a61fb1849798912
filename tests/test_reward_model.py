import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from mnms_jax.gaussian_process import condition
from mnms_jax.lockstep import leave_out
from mnms_jax.replay import ReplayBank
from mnms_jax.reward_model import (
    Knowledge,
    Trials,
    expect,
    fit_expectations,
    fit_reward_model,
    make_ranker,
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


def test_conditioning_is_gaussian_process_regression():
    rng = np.random.default_rng(0)
    x, others = rng.normal(size=(21, 2)), rng.normal(size=(5, 2))
    y = rng.normal(size=(2, 21))
    level, noise = 4.0, 0.3
    kernel = ConstantKernel(level, "fixed") + RBF(1.0, "fixed")
    points = np.concatenate([x, others])
    # More rows than there are observations.
    covariance = np.zeros((48, 53))
    known = RBF(1.0)(x, points)
    covariance[:21, :21], covariance[:21, 48:] = known[:, :21], known[:, 21:]
    padded = jnp.pad(jnp.asarray(y, jnp.float32), ((0, 0), (0, 27)))
    predict = functools.partial(
        condition, padded, jnp.asarray(covariance, jnp.float32), jnp.ones(5), jnp.int32(21)
    )
    found = predict(jnp.int32(21), noise)
    for s in range(2):
        expected = GaussianProcessRegressor(kernel, alpha=noise**2, optimizer=None).fit(x, y[s])
        mean, deviation = expected.predict(others, return_std=True)
        np.testing.assert_allclose(found.mean[s], mean, atol=2e-4)
        np.testing.assert_allclose(found.deviation, deviation, atol=2e-4)
        likelihood = expected.log_marginal_likelihood_value_ + 21 / 2 * np.log(2 * np.pi)
        assert float(found.evidence[s]) == pytest.approx(likelihood, abs=2e-3)
        # The evidence may be of the first observations alone.
        half = GaussianProcessRegressor(kernel, alpha=noise**2, optimizer=None)
        half.fit(x[:11], y[s, :11])
        likelihood = half.log_marginal_likelihood_value_ + 11 / 2 * np.log(2 * np.pi)
        evidence = predict(jnp.int32(11), noise).evidence[s]
        assert float(evidence) == pytest.approx(likelihood, abs=2e-3)


def test_expectations_are_gaussian_process_regression(key):
    tasks = make_sources(key, number=40)._replace(size=jnp.array([21, 40, 0]))
    told = fit_expectations(SPACE, tasks)
    found = expect(SPACE, told, DESIGNS)
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
    assert np.isfinite(
        make_ranker(SPACE).rank(Knowledge(model), trials_of([1, 2]), DESIGNS).scores
    ).all()


def test_without_any_trial_the_sources_best_design_comes_first(key):
    model = fit_reward_model(key, SPACE, make_sources(key))
    ranking = jax.jit(make_ranker(SPACE).rank)(Knowledge(model), trials_of([]), DESIGNS)
    values = value(DESIGNS)
    assert float(values[jnp.argmax(ranking.scores)]) >= float(jnp.sort(values)[-3])
    assert float(jnp.corrcoef(ranking.scores, values)[0, 1]) > 0.9
    assert float(ranking.belief) == pytest.approx(0.5, abs=1e-4)


def test_cold_it_learns_from_the_tasks_own_trials():
    rows = np.random.default_rng(0).permutation(81)[:30]
    empty = make_ranker(SPACE).rank(Knowledge(), trials_of([]), DESIGNS)
    np.testing.assert_allclose(empty.scores, empty.scores[0], rtol=1e-5)
    ranking = make_ranker(SPACE).rank(Knowledge(), trials_of(rows), DESIGNS)
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
        name: make_ranker(SPACE).rank(Knowledge(model), trials_of(rows), DESIGNS)
        for name, model in (("good", good), ("useless", useless), ("cold", None))
    }
    assert float(rankings["good"].belief) > 0.9
    assert float(rankings["useless"].belief) < 0.1

    def correlation(ranking):
        return np.corrcoef(ranking.expected[rest], value(DESIGNS)[rest])[0, 1]

    assert correlation(rankings["useless"]) > correlation(rankings["cold"]) - 0.1
    # The fewer trials of its own a task has, the more good sources help.
    few = [
        make_ranker(SPACE).rank(Knowledge(m), trials_of(rows[:6]), DESIGNS) for m in (good, None)
    ]
    assert correlation(few[0]) > correlation(few[1]) + 0.05
    # Without the guard the useless model is believed whatever the trials say.
    unguarded = make_ranker(SPACE, belief=1.0).rank(Knowledge(useless), trials_of(rows), DESIGNS)
    assert float(unguarded.belief) == pytest.approx(1)
    assert unguarded.alone is None


def test_by_its_own_trials_alone_a_task_is_told_nothing_but_a_scale(key):
    rows = np.random.default_rng(1).permutation(81)[:20]
    good, useless = (fit_reward_model(key, SPACE, make_sources(key, s)) for s in (False, True))
    useless = useless._replace(scale=good.scale)
    told, misled = (
        make_ranker(SPACE).rank(Knowledge(model), trials_of(rows), DESIGNS)
        for model in (good, useless)
    )
    np.testing.assert_allclose(told.alone, misled.alone, rtol=1e-5)
    assert np.abs(told.scores - misled.scores).max() > 0.01
    cold = make_ranker(SPACE).rank(Knowledge(), trials_of(rows), DESIGNS)
    assert cold.alone is None
    assert np.corrcoef(told.alone, cold.scores)[0, 1] > 0.95


def test_tasks_searched_at_once_are_guarded_against_and_explore_as_from_scratch(key):
    rows = np.random.default_rng(1).permutation(81)[:20]
    good, useless = (fit_expectations(SPACE, make_sources(key, s)) for s in (False, True))
    useless = useless._replace(scale=good.scale)
    rank = make_ranker(SPACE).rank
    told, misled = (
        rank(Knowledge(others=others), trials_of(rows), DESIGNS) for others in (good, useless)
    )
    assert float(told.belief) > 0.9 and float(misled.belief) < 0.3
    np.testing.assert_allclose(told.alone, misled.alone, rtol=1e-5)
    unguarded = make_ranker(SPACE, belief=1.0)
    assert unguarded.rank(Knowledge(others=good), trials_of(rows), DESIGNS).alone is None
    # Bounds are as wide as without other tasks, and with sources they are narrower.
    sources = fit_reward_model(key, SPACE, make_sources(key))
    means = [
        np.mean(make_ranker(SPACE, beta=beta).rank(known, trials_of(rows), DESIGNS).scores)
        for known in (Knowledge(others=good), Knowledge(sources))
        for beta in (1.0, 3.0)
    ]
    assert means[0] == means[1] and means[2] < means[3] - 0.01


def test_scores_follow_the_scale_and_level_of_rewards(key):
    model = fit_reward_model(key, SPACE, make_sources(key))
    rows = np.random.default_rng(2).permutation(81)[:20]
    rank = functools.partial(make_ranker(SPACE).rank, Knowledge(model))
    there = rank(trials_of(rows), DESIGNS).scores
    higher = rank(trials_of(rows, rewards=value(DESIGNS[rows]) + 10), DESIGNS).scores
    np.testing.assert_allclose(higher - there, (higher - there)[0], atol=1e-3)


def test_failed_trials_count_as_the_worst():
    rows = [0, 1, 2, 40, 80]
    rewards = value(DESIGNS[jnp.array(rows)])
    failed = make_ranker(SPACE).rank(
        Knowledge(), trials_of(rows, rewards=rewards.at[3].set(jnp.nan)), DESIGNS
    )
    others = rewards[jnp.array([0, 1, 2, 4])]
    below = others.min() - others.std()
    worst = make_ranker(SPACE).rank(
        Knowledge(), trials_of(rows, rewards=rewards.at[3].set(below)), DESIGNS
    )
    assert np.isfinite(failed.scores).all()
    np.testing.assert_allclose(failed.scores, worst.scores, rtol=1e-5)
    # So they tell where not to look, also beside rewards that are all the same.
    alike = trials_of([0, 1, 54, 55], rewards=[0.8, 0.8, jnp.nan, jnp.nan])
    expected = make_ranker(SPACE).rank(Knowledge(), alike, DESIGNS).expected
    assert float(expected[2]) > float(expected[56]) + 2e-4
    none = make_ranker(SPACE).rank(
        Knowledge(), trials_of([3, 4], rewards=[jnp.nan, jnp.nan]), DESIGNS
    )
    assert np.isfinite(none.scores).all()


def test_expected_rewards_are_no_evidence(key):
    model = fit_reward_model(key, SPACE, make_sources(key))
    rank = functools.partial(make_ranker(SPACE).rank, Knowledge(model))
    rows = [0, 10, 20, 30, 40, 50]
    trials = trials_of(rows)
    three = jnp.arange(len(trials.valid)) < 3
    seen = rank(trials._replace(valid=three), DESIGNS)
    imagined = rank(trials._replace(real=three), DESIGNS)
    assert float(imagined.belief) == pytest.approx(float(seen.belief), abs=1e-5)
    assert float(rank(trials, DESIGNS).belief) != pytest.approx(float(seen.belief), abs=1e-3)
    # What is expected to have been tried is less uncertain.
    uncertainty = [ranking.scores - ranking.expected for ranking in (seen, imagined)]
    assert (np.asarray(uncertainty[1] - uncertainty[0])[rows[3:]] < 0).all()


def test_it_maps_over_tasks_alike(key):
    model = fit_reward_model(key, SPACE, make_sources(key))
    rank = functools.partial(make_ranker(SPACE).rank, Knowledge(model))
    both = [trials_of([1, 5, 9]), trials_of([3, 4, 50, 60, 70])]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *both)
    together = jax.vmap(rank, in_axes=(0, None))(stacked, DESIGNS).scores
    for scores, trials in zip(together, both, strict=True):
        np.testing.assert_allclose(scores, rank(trials, DESIGNS).scores, atol=2e-4)
