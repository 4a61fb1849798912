"""A model of rewards, which says which of many designs is worth the next trial.

A network learns the source tasks' rewards from their trials, with a linear head for each task. The
target's own head is unknown, and the sources' heads say what to expect (Perrone et al. 2018,
"Scalable hyperparameter transfer learning"). What the network doesn't know of the target is a
Gaussian process over designs (Rasmussen & Williams 2006, chapter 2).

The guard against negative transfer is part of it: that the sources tell something of the target,
and that they tell nothing, are two hypotheses, weighed by how likely they make the target's trials.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from mnms_jax.replay import ReplayBank
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, PRNGKey

_MOST = 3.0  # scaled rewards are clipped to [-_MOST, _MOST]: how bad a bad design is says little
_LEVEL = 2.0  # prior deviation of the target's level
# How large a difference between the target's rewards may be against the sources' usual one, and the
# prior deviation of the logarithm of that.
_SCALES = (0.25, 0.5, 1.0, 2.0)
_SCALE_DEVIATION = 0.7
_BLOCK = 16  # observations that are conditioned on at once


class RewardModel(NamedTuple):
    """What source tasks say of designs, by F features of a network and a constant one; a pytree."""

    network: Params
    head_mean: Array  # [F + 1], of the sources' heads
    head_covariance: Array  # [F + 1, F + 1]
    scale: Array  # [], a usual difference between a source's good and middling rewards; NaN: none


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


# What is known of the sources, the task's trials, designs int32 [M, D] -> their ranking.
Ranker: TypeAlias = Callable[[Any, Trials, Array], Ranking]


def fit_reward_model(
    key: PRNGKey,
    space: SearchSpace,
    sources: ReplayBank,
    *,
    hidden_size: int = 64,
    num_features: int = 32,
    num_steps: int = 500,
    learning_rate: float = 1e-2,
    weight_decay: float = 1e-3,
    head_deviation: float = 0.05,
) -> RewardModel:
    """Learns what the source tasks' trials say of designs.

    Args:
      key: of the network's initial weights.
      space: the search space.
      sources: trials of T tasks. One without any reward counts as if it weren't there.
      hidden_size: units of the network's hidden layer.
      num_features: units of its last layer; with a constant they are the features.
      num_steps: steps of AdamW on all trials, at a rate that falls to zero.
      learning_rate: at the first step.
      weight_decay: of AdamW.
      head_deviation: how far a target's head may be from all that the sources' heads span.
    """
    centre, scale = _centre_and_scale(sources.rewards, sources.valid)
    targets = jnp.where(
        jnp.isnan(sources.rewards), -_MOST, (sources.rewards - centre[:, None]) / scale[:, None]
    )
    targets = jnp.clip(targets, -_MOST, _MOST)
    num_tasks = len(targets)
    network = _init_network(key, (space.action_mask.size, hidden_size, num_features))
    params = (network, jnp.zeros((num_tasks, num_features + 1)))
    rate = optax.linear_schedule(learning_rate, 0.0, num_steps)
    optimizer = optax.adamw(rate, weight_decay=weight_decay)
    count = jnp.maximum(jnp.sum(sources.valid), 1)

    def loss_fn(params: Params) -> Array:
        network, heads = params
        features = jax.vmap(functools.partial(_features, space, network))
        predicted = jnp.einsum("tnf,tf->tn", jax.vmap(features)(sources.actions), heads)
        return jnp.sum(jnp.where(sources.valid, (predicted - targets) ** 2, 0.0)) / count

    def step(carry: tuple[Params, optax.OptState], _: None) -> tuple[tuple, None]:
        params, opt_state = carry
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    start = (params, optimizer.init(params))
    ((network, heads), _), _ = jax.lax.scan(step, start, None, num_steps)
    has_rewards = jnp.any(sources.valid & ~jnp.isnan(sources.rewards), axis=1)
    number = jnp.sum(has_rewards)
    mean = jnp.sum(heads, 0, where=has_rewards[:, None]) / jnp.maximum(number, 1)
    spread = jnp.where(has_rewards[:, None], heads - mean[None], 0)
    covariance = spread.T @ spread / jnp.maximum(number - 1, 1)
    covariance += head_deviation**2 * jnp.eye(num_features + 1)
    usual = jnp.sum(jnp.log(scale), where=has_rewards) / number
    return RewardModel(network, mean, covariance, jnp.exp(usual))


def make_ranker(
    space: SearchSpace,
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
      space: the search space.
      belief: prior probability that the sources tell something of the target; 1: no guard.
      beta: deviations that a design's score lies above its expected reward.
      beta_alone: the same without a model of sources, where there is more to be explored.
      noise: deviation of a trial's reward.
      residual: deviation of what the sources' model can't know.
      decay: how much less alike rewards are if all of a design's decisions differ, as a logarithm.
    """

    def similarity(a: Array, b: Array) -> Array:
        return jnp.exp(-decay * jnp.mean(a[:, None] != b[None], -1))

    def rank(model: RewardModel | None, trials: Trials, candidates: Array) -> Ranking:
        chex.assert_rank([trials.actions, trials.rewards, candidates], [2, 1, 2])
        trials = _whole_blocks(trials)
        filled, centre, scale = _fill(trials)
        if model is not None:
            scale = jnp.where(jnp.isnan(model.scale), scale, model.scale)
        scales = scale * jnp.array(_SCALES)
        y = jnp.clip((filled - centre)[None] / scales[:, None], -_MOST, _MOST)  # [S, N]
        prior = jax.nn.log_softmax(-0.5 * (jnp.log(jnp.array(_SCALES)) / _SCALE_DEVIATION) ** 2)
        # Likelihoods are of rewards, not of scaled ones; and only of those that were made.
        counts = jnp.sum(trials.valid), jnp.sum(_real(trials))
        prior -= counts[1] * jnp.log(scales)
        designs = jnp.concatenate([trials.actions, candidates])
        alike = similarity(trials.actions, designs)  # [N, N + M]
        cold = _condition(y, alike, jnp.ones(len(candidates)), *counts, noise)
        evidence = prior + cold.evidence
        if model is None:
            weights = jax.nn.softmax(evidence)
            expected, deviation = (weights * scales) @ cold.mean, weights @ scales * cold.deviation
            return Ranking(expected + beta_alone * deviation, centre + expected, jnp.float32(0))
        features = jax.vmap(functools.partial(_features, space, model.network))(designs)
        own, others = jnp.split(features, [len(trials.actions)])
        spread = features @ model.head_covariance
        expected = features @ model.head_mean
        warm = _condition(
            y - expected[None, : len(own)],
            own @ spread.T + residual**2 * alike,
            jnp.sum(spread[len(own) :] * others, -1) + residual**2,
            *counts,
            noise,
        )
        means = jnp.stack([cold.mean, expected[None, len(own) :] + warm.mean])
        deviations = jnp.stack([cold.deviation, warm.deviation])
        evidences = jnp.stack(
            [evidence + jnp.log1p(-belief), prior + warm.evidence + jnp.log(belief)]
        )
        weights = jax.nn.softmax(evidences, axis=(0, 1))
        expected = jnp.einsum("hs,s,hsm->m", weights, scales, means)
        deviation = jnp.einsum("hs,s,hm->m", weights, scales, deviations)
        return Ranking(expected + beta * deviation, centre + expected, jnp.sum(weights[1]))

    return rank


class _Posterior(NamedTuple):
    evidence: Array  # [S], log-likelihood of the trials, for S scales of them
    mean: Array  # [S, M]
    deviation: Array  # [M]


def _condition(
    y: Array, covariance: Array, variance: Array, count: Array, num_real: Array, noise: float
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
      num_real: int32 [], of the first observations, whose likelihood is the evidence.
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


def _init_network(key: PRNGKey, sizes: tuple[int, ...]) -> Params:
    keys = jax.random.split(key, len(sizes) - 1)
    return [
        {"kernel": jax.random.normal(k, (n, m)) / jnp.sqrt(n), "bias": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def _features(space: SearchSpace, network: Params, actions: Array) -> Array:
    """Returns the features of a design [D], float [F + 1]; the last one is 1 (unbatched)."""
    x = jax.nn.one_hot(actions, space.max_choices).reshape(-1) * jnp.sqrt(space.max_choices)
    for layer in network:
        x = jnp.tanh(x @ layer["kernel"] + layer["bias"])
    return jnp.append(x, 1.0)
