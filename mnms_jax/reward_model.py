"""A model of rewards, which says which of many designs is worth the next trial.

A Gaussian process over designs for each source task is conditioned on the task's trials (Rasmussen
& Williams 2006, chapter 2). The target's rewards are a mixture of what these expect, with unknown
weights, plus a process of its own for what the sources don't know: ensembles of this kind are the
strong ones among tuners that transfer (Feurer et al. 2018, arXiv:1802.02219; Wistuba et al. 2018,
"Scalable Gaussian process-based transfer surrogates for hyperparameter optimization").

The guard against negative transfer is part of it: that the sources tell something of the target,
and that they tell nothing, are two hypotheses, weighed by how likely they make the target's trials.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import jax.scipy as jsp
import numpy as np

from mnms_jax.replay import ReplayBank
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.types import Array

_MOST = 3.0  # scaled rewards are clipped to [-_MOST, _MOST]: how bad a bad design is says little
_LEVEL = 2.0  # prior deviation of a task's level
# How large a difference between the target's rewards may be against the sources' usual one, and the
# prior deviation of the logarithm of that.
_SCALES = (0.25, 0.5, 1.0, 2.0)
_SCALE_DEVIATION = 0.7
_BLOCK = 16  # observations that are conditioned on at once
_DECAYS = (2.0, 4.0, 8.0, 16.0)  # among which a fit chooses, see Kernel
_NOISES = (0.15, 0.3, 0.6, 1.2)
_DECAY, _NOISE = 8.0, 0.3  # where there is nothing to choose by
_VARIANCE = 2.0  # of a Kernel
_MOST_TRIALS = 256  # of a source that are conditioned on


class Kernel(NamedTuple):
    """How alike the rewards of two designs are, in units of a task's scale; a pytree.

    With d the share of the decisions that differ, each counting as much as it matters, their
    covariance is exp(-decay d) + 1 - d: what designs do as a whole, and what each decision adds.
    """

    importance: Array  # [D], sum 1, of the decisions
    decay: Array | float
    noise: Array | float  # deviation of a trial's reward


class RewardModel(NamedTuple):
    """What T source tasks say of designs; a pytree."""

    actions: Array  # int32 [T, N, D], of their trials
    weights: Array  # [T, N], of these in what a source expects of a design
    kernel: Kernel
    scale: Array  # [], a usual difference between a source's good and middling rewards


class Trials(NamedTuple):
    """One task's trials; a row of a replay bank."""

    actions: Array  # int32 [N, D]
    rewards: Array  # [N], NaN where the trial failed
    valid: Array  # bool [N]: which rows hold a trial; these come first


class Ranking(NamedTuple):
    """What a ranker says of M designs for one task."""

    scores: Array  # [M], higher is better worth a trial
    expected: Array  # [M], rewards
    belief: Array  # [], probability that the sources tell something of this task


# What is known of the sources, the task's trials, designs int32 [M, D] -> their ranking.
Ranker: TypeAlias = Callable[[Any, Trials, Array], Ranking]
# Importance of decisions [D], designs int32 [N, D] and [M, D] -> distances [N, M].
Distance: TypeAlias = Callable[[Array, Array, Array], Array]


def fit_reward_model(space: SearchSpace, sources: ReplayBank) -> RewardModel:
    """Conditions a Gaussian process on each source task's trials, T of them.

    They share the kernel, chosen so that all their trials are likeliest. Of a source with very many
    trials, some are taken, evenly over its rewards.
    """
    distance = _make_distance(space)
    centre, scale = _centre_and_scale(sources.rewards, sources.valid)
    targets = (sources.rewards - centre[:, None]) / scale[:, None]
    targets = jnp.clip(jnp.where(jnp.isnan(targets), -_MOST, targets), -_MOST, _MOST)
    known = Trials(sources.actions, targets, sources.valid)
    actions, y, valid = known = jax.vmap(lambda trials: _whole_blocks(_thin_out(trials)))(known)
    y = jnp.where(valid, y, 0)
    importance = _importance(space, known)
    distances = jax.vmap(functools.partial(distance, importance))(actions, actions)

    def likelihood(kernel: Kernel) -> Array:
        def of_source(y: Array, distances: Array, valid: Array) -> Array:
            alike, count = _covariance(kernel, distances), jnp.sum(valid)
            return _condition(y[None], alike, jnp.ones(0), count, kernel.noise).evidence[0]

        return jnp.sum(jax.vmap(of_source)(y, distances, valid))

    decays, noises = jnp.array(list(itertools.product(_DECAYS, _NOISES))).T
    kernels = Kernel(jnp.tile(importance, (len(decays), 1)), decays, noises)
    likeliest = jnp.argmax(jax.lax.map(likelihood, kernels))
    kernel = jax.tree.map(lambda x: x[likeliest], kernels)

    def weights(y: Array, distances: Array, valid: Array) -> Array:
        covariance = _covariance(kernel, distances) + _LEVEL**2
        covariance *= valid[:, None] & valid[None]
        # Not by a factorisation: see `_condition`.
        solve = jsp.sparse.linalg.cg
        return solve(lambda x: covariance @ x + kernel.noise**2 * x, y, tol=1e-4)[0]

    has_rewards = jnp.any(sources.valid & ~jnp.isnan(sources.rewards), axis=1)
    usual = jnp.sum(jnp.log(scale), where=has_rewards) / jnp.maximum(jnp.sum(has_rewards), 1)
    return RewardModel(actions, jax.vmap(weights)(y, distances, valid), kernel, jnp.exp(usual))


def make_ranker(
    space: SearchSpace,
    *,
    belief: float = 0.5,
    beta: float = 1.2,
    residual: float = 1.0,
) -> Ranker:
    """Returns the ranker by upper confidence bounds (Srinivas et al. 2010), given a RewardModel.

    With None in its place, the task's own trials are all that counts. Numbers are in units of the
    scale of rewards.

    Args:
      space: the search space.
      belief: prior probability that the sources tell something of the target; 1: no guard.
      beta: deviations that a design's score lies above its expected reward.
      residual: deviation of what the sources can't know.
    """
    distance = _make_distance(space)

    def rank(model: RewardModel | None, trials: Trials, candidates: Array) -> Ranking:
        chex.assert_rank([trials.actions, trials.rewards, candidates], [2, 1, 2])
        trials = _whole_blocks(trials)
        filled, centre, scale = _fill(trials)
        if model is not None:
            scale = model.scale
        scales = scale * jnp.array(_SCALES)
        y = jnp.clip((filled - centre)[None] / scales[:, None], -_MOST, _MOST)  # [S, N]
        prior = jax.nn.log_softmax(-0.5 * (jnp.log(jnp.array(_SCALES)) / _SCALE_DEVIATION) ** 2)
        # Likelihoods are of rewards, not of scaled ones.
        prior -= jnp.sum(trials.valid) * jnp.log(scales)
        count, designs = jnp.sum(trials.valid), jnp.concatenate([trials.actions, candidates])
        uniform = jnp.full(space.num_decisions, 1 / space.num_decisions)
        kernel = Kernel(uniform, _DECAY, _NOISE)
        variance = jnp.full(len(candidates), _VARIANCE)

        def own_covariance(kernel: Kernel) -> Array:  # [N, N + M]
            return _covariance(kernel, distance(kernel.importance, trials.actions, designs))

        cold = _condition(y, own_covariance(kernel), variance, count, kernel.noise)
        evidence = prior + cold.evidence
        if model is None:
            weights = jax.nn.softmax(evidence) * scales
            expected, deviation = weights @ cold.mean, jnp.sum(weights) * cold.deviation
            return Ranking(expected + beta * deviation, centre + expected, jnp.float32(0))
        expected = _expected_by_sources(distance, model, designs)  # [N + M, T]
        mixed = jnp.mean(expected, 1)
        # The mixture's weights are independent, 1 / T on average, and deviate so that the mixture
        # does by as much as a source.
        spread = expected / jnp.sqrt(expected.shape[1])
        own, others = jnp.split(spread, [len(trials.actions)])
        warm = _condition(
            y - mixed[None, : len(own)],
            own @ spread.T + residual**2 * own_covariance(model.kernel),
            jnp.sum(others**2, -1) + residual**2 * variance,
            count,
            model.kernel.noise,
        )
        evidences = jnp.stack(
            [evidence + jnp.log1p(-belief), prior + warm.evidence + jnp.log(belief)]
        )
        weights = jax.nn.softmax(evidences, axis=(0, 1))
        means = jnp.stack([cold.mean, mixed[None, len(own) :] + warm.mean])
        deviations = jnp.stack([cold.deviation, warm.deviation])
        expected = jnp.einsum("hs,s,hsm->m", weights, scales, means)
        deviation = jnp.einsum("hs,s,hm->m", weights, scales, deviations)
        return Ranking(expected + beta * deviation, centre + expected, jnp.sum(weights[1]))

    return rank


class _Posterior(NamedTuple):
    evidence: Array  # [S], log-likelihood of the trials, for S scales of them
    mean: Array  # [S, M]
    deviation: Array  # [M]


def _condition(
    y: Array, covariance: Array, variance: Array, count: Array, noise: Array | float
) -> _Posterior:
    """Conditions a Gaussian process on S versions of some observations, at M other points.

    A Cholesky decomposition of the observations' covariance, whose rows go on over the other points
    (Rasmussen & Williams 2006, algorithm 2.1). It takes them a block at a time, so as to be matrix
    products, ends with the last observation, and needs no LAPACK, whose calls from vmapped loops
    were seen to hang XLA on CPUs.

    Args:
      y: [S, N], of mean zero; the first `count` are observations. N is a multiple of `_BLOCK`.
      covariance: [N, N + M], of the points observed with them and the others.
      variance: [M], of the others.
      count: int32 [].
      noise: deviation of an observation.
    """
    num_scales, size = y.shape
    covariance, variance = covariance + _LEVEL**2, variance + _LEVEL**2

    def observe(start: Array, i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        rows, errors, evidence = state
        total = rows[i, start + i] + noise**2
        is_there, after = start + i < count, jnp.arange(_BLOCK) > i
        row = jnp.where(is_there, rows[i] / jnp.sqrt(total), 0)
        error = jnp.where(is_there, errors[:, i] / jnp.sqrt(total), 0)
        known = jnp.where(after, row[start + jnp.arange(_BLOCK)], 0)
        rows = (rows - known[:, None] * row[None]).at[i].set(row)
        errors = (errors - error[:, None] * known[None]).at[:, i].set(error)
        return rows, errors, evidence - (error**2 + jnp.where(is_there, jnp.log(total), 0)) / 2

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

    state = (jnp.zeros_like(covariance), jnp.zeros_like(y), jnp.zeros(num_scales))
    blocks = (count + _BLOCK - 1) // _BLOCK
    factor, errors, evidence = jax.lax.fori_loop(0, blocks, observe_block, state)
    others = factor[:, size:]
    left = jnp.maximum(variance - jnp.sum(others**2, axis=0), 1e-6)
    return _Posterior(evidence, errors @ others, jnp.sqrt(left))


def _whole_blocks(trials: Trials) -> Trials:
    """Returns the trials with room up to a multiple of `_BLOCK`."""
    room = -len(trials.valid) % _BLOCK
    return jax.tree.map(lambda x: jnp.pad(x, [(0, room)] + [(0, 0)] * (x.ndim - 1)), trials)


def _fill(trials: Trials) -> tuple[Array, Array, Array]:
    """Returns rewards with the lowest in place of failures, their centre and their scale."""
    known = jnp.where(trials.valid, trials.rewards, jnp.nan)
    filled = jnp.where(jnp.isnan(trials.rewards), jnp.nanmin(known), trials.rewards)
    filled = jnp.nan_to_num(filled)
    centre, scale = _centre_and_scale(filled, trials.valid)
    return filled, centre, scale


def _centre_and_scale(rewards: Array, valid: Array) -> tuple[Array, Array]:
    """Returns the median of rewards [..., N], and by how much their best tenth is above it."""
    known = jnp.where(valid, rewards, jnp.nan)
    centre, high = (jnp.nan_to_num(jnp.nanquantile(known, q, axis=-1)) for q in (0.5, 0.9))
    return centre, jnp.maximum(high - centre, 1e-3)


def _thin_out(trials: Trials) -> Trials:
    """Returns a task's trials, at most `_MOST_TRIALS`, evenly over its rewards; best ones first."""
    number, size = min(len(trials.valid), _MOST_TRIALS), jnp.sum(trials.valid)
    best_first = jnp.argsort(jnp.where(trials.valid, -trials.rewards, jnp.inf))
    step = jnp.maximum(size / number, 1)
    return jax.tree.map(lambda x: x[best_first[(jnp.arange(number) * step).astype(int)]], trials)


def _expected_by_sources(distance: Distance, model: RewardModel, designs: Array) -> Array:
    """Returns what each source expects of designs [M, D], as scaled rewards [M, T]."""
    num_tasks, size, num_decisions = model.actions.shape
    flat = model.actions.reshape(-1, num_decisions)
    alike = _covariance(model.kernel, distance(model.kernel.importance, designs, flat))
    alike = alike.reshape(-1, num_tasks, size) + _LEVEL**2
    return jnp.einsum("mtn,tn->mt", alike, model.weights)


def _covariance(kernel: Kernel, distances: Array) -> Array:
    return jnp.exp(-kernel.decay * distances) + 1 - distances


def _importance(space: SearchSpace, trials: Trials) -> Array:
    """Returns how much each decision matters, [D] with sum 1, from tasks' trials [T, N, ...].

    It is the share of the rewards' variance that lies between the decision's choices, less what
    chance would give (omega squared), on average over tasks. A little is the same for all.
    """

    def of_decision(actions: Array, y: Array, valid: Array) -> Array:
        member = jax.nn.one_hot(actions, space.max_choices) * valid[:, None]  # [N, C]
        size = jnp.sum(member, 0)
        count, groups = jnp.sum(size), jnp.sum(size > 0)
        centred = jnp.where(valid, y - jnp.sum(y * valid) / jnp.maximum(count, 1), 0)
        between = jnp.sum((centred @ member) ** 2 / jnp.maximum(size, 1))
        total = jnp.sum(centred**2)
        chance = (groups - 1) * (total - between) / jnp.maximum(count - groups, 1)
        return jnp.maximum(between - chance, 0) / jnp.maximum(total, 1e-6)

    over_decisions = jax.vmap(of_decision, in_axes=(1, None, None))
    shares = jnp.mean(jax.vmap(over_decisions)(*trials), 0)
    floor = jnp.full(space.num_decisions, 0.1 / space.num_decisions)
    return (0.9 * shares + floor) / jnp.sum(0.9 * shares + floor)


def _make_distance(space: SearchSpace) -> Distance:
    """Returns how much of two designs differs, from 0 to 1: the decisions' importance, summed.

    Choices that are numbers are as far apart as their ranks, from the lowest to the highest 1;
    others are either equal or not.
    """
    # Each choice is a row of bits, and the distance a weighted number of bits that differ, so that
    # it is a matrix product.
    blocks = [_bits(decision) for decision in space.decisions]
    widths = [bits.shape[1] for bits, _ in blocks]
    codes = np.zeros((space.num_decisions, space.max_choices, sum(widths)), np.float32)
    for own, (bits, weight), end in zip(codes, blocks, np.cumsum(widths), strict=True):
        own[: len(bits), end - bits.shape[1] : end] = bits * np.sqrt(weight)

    def distance(importance: Array, a: Array, b: Array) -> Array:
        table = jnp.asarray(codes) * jnp.sqrt(importance)[:, None, None]

        def encode(actions: Array) -> Array:  # [N, D] -> [N, bits]
            return jnp.sum(table[np.arange(space.num_decisions), actions], axis=1)

        a, b = encode(a), encode(b)
        squares = jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None]
        return jnp.clip(squares - 2 * a @ b.T, 0, 1)

    return distance


def _bits(decision: Decision) -> tuple[np.ndarray, float]:
    """Returns a decision's choices as rows of bits, and what a bit that differs weighs."""
    choices, number = decision.choices, len(decision.choices)
    if number > 2 and all(type(choice) in (int, float) for choice in choices):
        ranks = np.argsort(np.argsort(np.array(choices)))
        return ranks[:, None] > np.arange(number - 1), 1 / (number - 1)
    return np.eye(number), 0.5
