"""A model of rewards, which says which of many designs is worth the next trial.

Each task's rewards are a Gaussian process over designs (Rasmussen & Williams 2006, chapter 2). What
is expected of a task are other tasks' processes, in a combination that is itself unknown, and how
far the task's own trials are from that.

The guard against negative transfer is part of it: that other tasks tell something of the target,
and that they tell nothing, are two hypotheses, weighed by how likely they make the target's trials.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp

from mnms_jax.replay import ReplayBank
from mnms_jax.types import Array

_MOST = 3.0  # scaled rewards are clipped to [-_MOST, _MOST]: how bad a bad design is says little
_LEVEL = 2.0  # prior deviation of the target's level
# How large a difference between the target's rewards may be against the sources' usual one, and the
# prior deviation of the logarithm of that.
_SCALES = (0.25, 0.5, 1.0, 2.0)
_SCALE_DEVIATION = 0.7
_BLOCK = 16  # observations that are conditioned on at once


class RewardModel(NamedTuple):
    """What K other tasks' trials say of designs: a Gaussian process each; a pytree."""

    actions: Array  # int32 [K, N, D], their trials
    weights: (
        Array  # [K, N]; what a task expects of a design is its covariances with them times these
    )
    scale: Array  # [K], a usual difference between good and middling rewards; NaN: doesn't count


class Trials(NamedTuple):
    """One task's trials; a row of a replay bank."""

    actions: Array  # int32 [N, D]
    rewards: Array  # [N], NaN where the trial failed
    valid: Array  # bool [N]: which rows hold a trial; these come first
    real: Array | None = None  # bool [N]: which of them were made, and not only expected; None: all


class Ranking(NamedTuple):
    """What a ranker says of M designs for one task."""

    scores: Array  # [M], higher is better worth a trial
    expected: Array  # [M], rewards
    belief: Array  # [], probability that the sources tell something of this task


# What is known of other tasks (None: nothing), the task's trials, designs [M, D] -> their ranking.
Ranker: TypeAlias = Callable[[Any, Trials, Array], Ranking]


def fit_reward_model(tasks: ReplayBank) -> RewardModel:
    """Learns what tasks' trials say of designs; a task without any reward doesn't count."""
    centre, scale = _centre_and_scale(tasks.rewards, tasks.valid)
    y = (tasks.rewards - centre[:, None]) / scale[:, None]
    y = jnp.clip(jnp.where(jnp.isnan(y), -_MOST, y), -_MOST, _MOST)
    has_rewards = jnp.any(tasks.valid & ~jnp.isnan(tasks.rewards), axis=1)

    def weigh(trials: Trials) -> Array:
        covariance = _likeness(trials.actions, trials.actions)
        return _solve(trials.rewards, covariance, jnp.sum(trials.valid))

    known = jax.vmap(_whole_blocks)(Trials(tasks.actions, y, tasks.valid))
    scale = jnp.where(has_rewards, scale, jnp.nan)
    return RewardModel(known.actions, jax.vmap(weigh)(known), scale)


def leave_out(model: RewardModel, task_id: Array | int) -> RewardModel:
    """Returns the model in which one of the tasks doesn't count."""
    return model._replace(scale=model.scale.at[task_id].set(jnp.nan))


def join(first: RewardModel, second: RewardModel) -> RewardModel:
    """Returns the model of two models' tasks."""
    most = max(first.weights.shape[1], second.weights.shape[1])

    def concatenate(a: Array, b: Array) -> Array:
        if a.ndim > 1:
            a, b = (
                jnp.pad(x, [(0, 0), (0, most - x.shape[1]), *[(0, 0)] * (x.ndim - 2)])
                for x in (a, b)
            )
        return jnp.concatenate([a, b])

    return jax.tree.map(concatenate, first, second)


def make_ranker(
    *,
    belief: float = 0.5,
    beta: float = 1.0,
    beta_alone: float = 3.0,
    noise: float = 0.3,
    residual: float = 1.0,
    decay: float = 2.0,
) -> Ranker:
    """Returns the ranker by upper confidence bounds (Srinivas et al. 2010), given a RewardModel.

    With None in its place, the task's own trials are all that counts. Numbers are in units of the
    scale of rewards.

    Args:
      belief: prior probability that other tasks tell something of the target; 1: no guard.
      beta: deviations that a design's score lies above its expected reward, as far as other tasks
        are believed.
      beta_alone: the same as far as they aren't, where there is more to be explored.
      noise: deviation of a trial's reward.
      residual: deviation of what other tasks can't tell.
      decay: how much less alike rewards are if all of a design's decisions differ, as a logarithm.
    """

    def rank(model: RewardModel | None, trials: Trials, candidates: Array) -> Ranking:
        chex.assert_rank([trials.actions, trials.rewards, candidates], [2, 1, 2])
        trials = _whole_blocks(trials)
        filled, centre, scale = _fill(trials)
        if model is not None:
            usual = jnp.exp(jnp.nanmean(jnp.log(model.scale)))
            scale = jnp.where(jnp.isnan(usual), scale, usual)
        scales = scale * jnp.array(_SCALES)
        y = jnp.clip((filled - centre)[None] / scales[:, None], -_MOST, _MOST)  # [S, N]
        prior = jax.nn.log_softmax(-0.5 * (jnp.log(jnp.array(_SCALES)) / _SCALE_DEVIATION) ** 2)
        # Likelihoods are of rewards, not of scaled ones; and only of those that were made.
        counts = jnp.sum(trials.valid), jnp.sum(_real(trials))
        prior -= counts[1] * jnp.log(scales)
        own, others = trials.actions, candidates
        alike = jnp.concatenate(  # [N, N + M]
            [jnp.exp(-decay * _distance(own, designs)) for designs in (own, others)], axis=1
        )
        cold = _condition(y, alike, jnp.ones(len(others)), *counts, noise)
        evidence = prior + cold.evidence
        if model is None:
            weights = jax.nn.softmax(evidence)
            expected, deviation = (weights * scales) @ cold.mean, weights @ scales * cold.deviation
            return Ranking(expected + beta_alone * deviation, centre + expected, jnp.float32(0))
        # The prior of their combination: each counts the same, give or take as much as all of them.
        number = jnp.maximum(jnp.sum(~jnp.isnan(model.scale)), 1)
        told, told_others = (_expect(model, designs) for designs in (own, others))  # [N, K], [M, K]
        means, means_others = jnp.sum(told, 1) / number, jnp.sum(told_others, 1) / number
        spread = told @ jnp.concatenate([told, told_others]).T / number
        warm = _condition(
            y - means[None],
            spread + residual**2 * alike,
            jnp.sum(told_others**2, 1) / number + residual**2,
            *counts,
            noise,
        )
        expectations = jnp.stack([cold.mean, means_others[None] + warm.mean])
        deviations = jnp.stack([beta_alone * cold.deviation, beta * warm.deviation])
        evidences = jnp.stack(
            [evidence + jnp.log1p(-belief), prior + warm.evidence + jnp.log(belief)]
        )
        weights = jax.nn.softmax(evidences, axis=(0, 1))
        expected = jnp.einsum("hs,s,hsm->m", weights, scales, expectations)
        bonus = jnp.einsum("hs,s,hm->m", weights, scales, deviations)
        return Ranking(expected + bonus, centre + expected, jnp.sum(weights[1]))

    return rank


def _distance(a: Array, b: Array) -> Array:
    """Returns the share of decisions in which designs differ, [A, B]."""
    return jnp.mean(a[:, None] != b[None], -1)


def _likeness(a: Array, b: Array) -> Array:
    """Returns the prior covariance of a task's scaled rewards, [A, B], but for its level.

    Half of the variance is of decisions by themselves, half of designs that are nearly equal.
    """
    distance = _distance(a, b)
    return jnp.exp(-8.0 * distance) + 1.0 - distance


def _expect(model: RewardModel, designs: Array) -> Array:
    """Returns what each task's trials let expect of designs [M], scaled: [M, K]; 0: nothing."""

    def of_task(actions: Array, weights: Array) -> Array:
        return (_likeness(designs, actions) + _LEVEL**2) @ weights

    expected = jax.vmap(of_task)(model.actions, model.weights)
    return jnp.where(jnp.isnan(model.scale)[:, None], 0.0, expected).T


class _Posterior(NamedTuple):
    evidence: Array  # [S], log-likelihood of the trials, for S scales of them
    mean: Array  # [S, M]
    deviation: Array  # [M]


def _condition(
    y: Array, covariance: Array, variance: Array, count: Array, num_real: Array, noise: float
) -> _Posterior:
    """Conditions a Gaussian process on S versions of some observations, at M other points.

    Args:
      y: [S, N], of mean zero; the first `count` are observations. N is a multiple of `_BLOCK`.
      covariance: [N, N + M], of the points observed with them and the others.
      variance: [M], of the others.
      count: int32 [].
      num_real: int32 [], of the first observations, whose likelihood is the evidence.
      noise: deviation of an observation.
    """
    factor, errors, evidence = _factorise(y, covariance, count, num_real, noise)
    others = factor[:, y.shape[1] :]
    left = jnp.maximum(variance + _LEVEL**2 - jnp.sum(others**2, axis=0), 1e-6)
    return _Posterior(evidence, errors @ others, jnp.sqrt(left))


def _solve(y: Array, covariance: Array, count: Array, noise: float = 0.3) -> Array:
    """Returns the weights [N] by which covariances with observations y [N] give the mean there."""
    factor, errors, _ = _factorise(y[None], covariance, count, count, noise)
    stored = jnp.diagonal(factor)  # (d^2 - noise^2) / d, for the diagonal d of the factor
    diagonal = (stored + jnp.sqrt(stored**2 + 4 * noise**2)) / 2
    upper = jnp.triu(factor, 1)

    def substitute(i: Array, weights: Array) -> Array:
        row = count - 1 - i
        return weights.at[row].set((errors[0, row] - upper[row] @ weights) / diagonal[row])

    return jax.lax.fori_loop(0, count, substitute, jnp.zeros(len(y)))


def _factorise(
    y: Array, covariance: Array, count: Array, num_real: Array, noise: float
) -> tuple[Array, Array, Array]:
    """Returns the Cholesky factor [N, N + M], errors [S, N] and evidence [S] for `_condition`.

    The factor of the observations' covariance, transposed, whose rows go on over the other points
    (Rasmussen & Williams 2006, algorithm 2.1). It is made a block of rows at a time, so as to be
    matrix products, ends with the last observation, and needs no LAPACK, whose calls from vmapped
    loops were seen to hang XLA on CPUs. Its diagonal lacks the noise.
    """
    covariance = covariance + _LEVEL**2

    def observe(start: Array, i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        rows, errors, evidence = state
        total = rows[i, start + i] + noise**2
        is_there, after = start + i < count, jnp.arange(_BLOCK) > i
        row = jnp.where(is_there, rows[i] / jnp.sqrt(total), 0)
        error = jnp.where(is_there, errors[:, i] / jnp.sqrt(total), 0)
        known = jnp.where(after, row[start + jnp.arange(_BLOCK)], 0)
        rows = (rows - known[:, None] * row[None]).at[i].set(row)
        errors = (errors - error[:, None] * known[None]).at[:, i].set(error)
        surprise = jnp.where(start + i < num_real, error**2 + jnp.log(total), 0)
        return rows, errors, evidence - surprise / 2

    def observe_block(b: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        factor, errors, evidence = state  # [N, N + M], [S, N], [S]
        start = b * _BLOCK
        take = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=_BLOCK)
        own = take(factor, axis=1)
        block = (take(covariance) - own.T @ factor, take(y, axis=1) - errors @ own, evidence)
        rows, error, evidence = jax.lax.fori_loop(
            0, _BLOCK, functools.partial(observe, start), block
        )
        put = jax.lax.dynamic_update_slice_in_dim
        return put(factor, rows, start, 0), put(errors, error, start, 1), evidence

    state = (jnp.zeros_like(covariance), jnp.zeros_like(y), jnp.zeros(len(y)))
    blocks = (count + _BLOCK - 1) // _BLOCK
    return jax.lax.fori_loop(0, blocks, observe_block, state)


def _whole_blocks(trials: Trials) -> Trials:
    """Returns the trials with room up to a multiple of `_BLOCK`."""
    room = -len(trials.valid) % _BLOCK
    return jax.tree.map(lambda x: jnp.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1)), trials)


def _real(trials: Trials) -> Array:
    return trials.valid if trials.real is None else trials.real


def _fill(trials: Trials) -> tuple[Array, Array, Array]:
    """Returns rewards with the lowest in place of failures, their centre and their scale."""
    known = jnp.where(_real(trials), trials.rewards, jnp.nan)
    filled = jnp.where(jnp.isnan(trials.rewards), jnp.nanmin(known), trials.rewards)
    filled = jnp.nan_to_num(filled)
    centre, scale = _centre_and_scale(filled, _real(trials))
    return filled, centre, scale


def _centre_and_scale(rewards: Array, valid: Array) -> tuple[Array, Array]:
    """Returns the median of rewards [..., N], and by how much their best tenth is above it."""
    known = jnp.where(valid, rewards, jnp.nan)
    centre, high = (jnp.nan_to_num(jnp.nanquantile(known, q, axis=-1)) for q in (0.5, 0.9))
    return centre, jnp.maximum(high - centre, 1e-3)
