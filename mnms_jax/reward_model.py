"""A model of rewards, which says which of many designs is worth the next trial.

A network learns the source tasks' rewards from their trials, with a linear head for each task. The
target's own head is unknown, and the sources' heads say what to expect (Perrone et al. 2018,
"Scalable hyperparameter transfer learning"). Tasks that are searched at the same time tell each
other what they expect, each by a Gaussian process over designs that is made anew every round
(Rasmussen & Williams 2006, chapter 2). What neither knows of the target is such a process too.

The guard against negative transfer is part of it: that other tasks tell something of the target,
and that they tell nothing, are two hypotheses, weighed by how likely they make the target's trials.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mnms_jax.gaussian_process import BLOCK, LEVEL, condition, solve
from mnms_jax.replay import ReplayBank, worst_rewards
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, PRNGKey

_MOST = 3.0  # scaled rewards are clipped to [-_MOST, _MOST]: how bad a bad design is says little
# How large a difference between the target's rewards may be against the usual one, and the prior
# deviation of the logarithm of that. Sources know less of it than the target's own trials do, or
# those of tasks that are searched on in the same way.
_SCALES, _SCALE_DEVIATION = (0.25, 0.5, 1.0, 2.0), 0.7
_SOURCE_SCALES, _SOURCE_SCALE_DEVIATION = (*_SCALES, 4.0, 8.0), 1.5


class RewardModel(NamedTuple):
    """What source tasks say of designs, by F features of a network and a constant one; a pytree."""

    network: Params
    head_mean: Array  # [F + 1], of the sources' heads
    head_covariance: Array  # [F + 1, F + 1]
    scale: Array  # [], a usual difference between a source's good and middling rewards; NaN: none


class Expectations(NamedTuple):
    """What K tasks' trials let expect of designs: a Gaussian process each; a pytree."""

    actions: Array  # int32 [K, N, D], the trials
    weights: Array  # [K, N]; what is expected are a design's covariances with them times these
    scale: Array  # [K], a usual difference between good and middling rewards; NaN: doesn't count


class Knowledge(NamedTuple):
    """What is known of other tasks; a pytree."""

    sources: RewardModel | None = None
    others: Expectations | None = None  # tasks that are searched at the same time


class Trials(NamedTuple):
    """One task's trials; a row of a replay bank."""

    actions: Array  # int32 [N, D]
    rewards: Array  # [N], NaN where the trial failed
    valid: Array  # bool [N]: which rows hold a trial; these come first
    real: Array | None = None  # bool [N]: which of them were made, and not only expected; None: all
    features: Array | None = None  # [N, F], of their designs, see Ranker; None: to be found out


class Ranking(NamedTuple):
    """What a ranker says of M designs for one task."""

    scores: Array  # [M], higher is better worth a trial
    alone: Array | None  # [M], the same by the task's own trials alone; None: no guard, or one task
    expected: Array  # [M], rewards
    belief: Array  # [], probability that other tasks tell something of this one


class Ranker(NamedTuple):
    """How designs are ranked for a task.

    Attributes:
      describe: what is known of other tasks, designs int32 [M, D] -> all that it says of them, as
        features [M, F]. It costs most, and is needed once for designs that are ranked again.
      rank: what is known, the task's trials, designs, their features (None: to be found out) ->
        their ranking.
    """

    describe: Callable[[Knowledge, Array], Array]
    rank: Callable[..., Ranking]


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
    has_rewards = _has_rewards(sources)
    sources = sources._replace(size=jnp.where(has_rewards, sources.size, 0))
    targets, scale = _scaled(sources)
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
    number = jnp.sum(has_rewards)
    mean = jnp.sum(heads, 0, where=has_rewards[:, None]) / jnp.maximum(number, 1)
    spread = jnp.where(has_rewards[:, None], heads - mean[None], 0)
    covariance = spread.T @ spread / jnp.maximum(number - 1, 1)
    covariance += head_deviation**2 * jnp.eye(num_features + 1)
    usual = jnp.sum(jnp.log(scale), where=has_rewards) / number
    return RewardModel(network, mean, covariance, jnp.exp(usual))


def fit_expectations(space: SearchSpace, tasks: ReplayBank) -> Expectations:
    """Learns what tasks' trials let expect of designs; one without any reward doesn't count."""
    y, scale = _scaled(tasks)
    has_rewards = _has_rewards(tasks)

    def weigh(trials: Trials) -> Array:
        covariance = _prior_covariance(_distance(space, trials.actions, trials.actions))
        return solve(trials.rewards, covariance, jnp.sum(trials.valid))

    known = jax.vmap(_whole_blocks)(Trials(tasks.actions, y, tasks.valid))
    scale = jnp.where(has_rewards, scale, jnp.nan)
    return Expectations(known.actions, jax.vmap(weigh)(known), scale)


def expect(space: SearchSpace, expectations: Expectations, designs: Array) -> Array:
    """Returns what each task lets expect of designs [M], over its scale: [M, K]; 0: nothing."""

    def of_task(actions: Array, weights: Array) -> Array:
        return (_prior_covariance(_distance(space, designs, actions)) + LEVEL**2) @ weights

    expected = jax.vmap(of_task)(expectations.actions, expectations.weights)
    return jnp.where(jnp.isnan(expectations.scale)[:, None], 0.0, expected).T


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
    """Returns the ranker by upper confidence bounds (Srinivas et al. 2010).

    Where nothing is known of other tasks, the task's own trials are all that counts. Numbers are in
    units of the scale of rewards, which is .001 at least: smaller differences count as none.

    Args:
      space: the search space.
      belief: prior probability that other tasks tell something of the target; 1: no guard.
      beta: deviations that a design's score lies above its expected reward, as far as sources are
        believed.
      beta_alone: the same without sources, or as far as they aren't believed: there is more to be
        explored.
      noise: deviation of a trial's reward.
      residual: deviation of what other tasks can't tell.
      decay: how much less alike rewards are if all of a design's decisions differ, as a logarithm.
    """
    describe = functools.partial(_describe, space)

    def rank(
        known: Knowledge, trials: Trials, candidates: Array, features: Array | None = None
    ) -> Ranking:
        chex.assert_rank([trials.actions, trials.rewards, candidates], [2, 1, 2])
        trials = _whole_blocks(trials)
        filled, centre, scale = _fill(trials)
        scales, prior = _possible_scales(known, scale)
        y = jnp.clip((filled - centre)[None] / scales[:, None], -_MOST, _MOST)  # [S, N]
        # Likelihoods are of rewards, not of scaled ones; and only of those that were made.
        counts = jnp.sum(trials.valid), jnp.sum(are_real(trials))
        prior -= counts[1] * jnp.log(scales)
        designs = jnp.concatenate([trials.actions, candidates])
        alike = jnp.exp(-decay * _distance(space, trials.actions, designs))  # [N, N + M]
        cold = condition(y, alike, jnp.ones(len(candidates)), *counts, noise)
        evidence = prior + cold.evidence
        if known.sources is None and known.others is None:
            weights = jax.nn.softmax(evidence)
            expected, deviation = (weights * scales) @ cold.mean, weights @ scales * cold.deviation
            scores = expected + beta_alone * deviation
            return Ranking(scores, None, centre + expected, jnp.float32(0))
        of_trials = describe(known, trials.actions) if trials.features is None else trials.features
        of_candidates = describe(known, candidates) if features is None else features
        head_mean, head_covariance = _head(known)
        both = jnp.concatenate([of_trials, of_candidates])
        spread, prior_mean = both @ head_covariance, both @ head_mean
        warm = condition(
            y - prior_mean[None, : len(of_trials)],
            of_trials @ spread.T + residual**2 * alike,
            jnp.sum(spread[len(of_trials) :] * of_candidates, -1) + residual**2,
            *counts,
            noise,
        )
        means = jnp.stack([cold.mean, prior_mean[None, len(of_trials) :] + warm.mean])
        # Tasks that are searched at the same time know too little to do without exploring.
        bound = beta_alone if known.sources is None else beta
        deviations = jnp.stack([beta_alone * cold.deviation, bound * warm.deviation])
        evidences = jnp.stack(
            [evidence + jnp.log1p(-belief), prior + warm.evidence + jnp.log(belief)]
        )
        weights = jax.nn.softmax(evidences, axis=(0, 1))
        expected = jnp.einsum("hs,s,hsm->m", weights, scales, means)
        bonus = jnp.einsum("hs,s,hm->m", weights, scales, deviations)
        alone = None
        if belief < 1:
            own_scales = jax.nn.softmax(evidence) * scales
            alone = own_scales @ cold.mean + jnp.sum(own_scales) * deviations[0]
        return Ranking(expected + bonus, alone, centre + expected, jnp.sum(weights[1]))

    return Ranker(describe, rank)


def _possible_scales(known: Knowledge, own: Array) -> tuple[Array, Array]:
    """Returns S scales that a task's rewards may have, and the logarithms of their probabilities.

    They are around the usual one on the other tasks, or, where that isn't known, the task's own [].
    """
    factors, tolerance, usual = jnp.array(_SCALES), _SCALE_DEVIATION, jnp.float32(jnp.nan)
    if known.sources is not None:
        factors, tolerance = jnp.array(_SOURCE_SCALES), _SOURCE_SCALE_DEVIATION
        usual = known.sources.scale
    elif known.others is not None:
        usual = jnp.exp(jnp.nanmean(jnp.log(known.others.scale)))
    prior = jax.nn.log_softmax(-0.5 * (jnp.log(factors) / tolerance) ** 2)
    return jnp.where(jnp.isnan(usual), own, usual) * factors, prior


def _describe(space: SearchSpace, known: Knowledge, designs: Array) -> Array:
    """Returns features of designs, [M, F]: the sources' network, and what other tasks expect."""
    parts = [jnp.zeros((len(designs), 0))]
    if known.sources is not None:
        network = functools.partial(_features, space, known.sources.network)
        parts.append(jax.vmap(network)(designs))
    if known.others is not None:
        parts.append(expect(space, known.others, designs))
    return jnp.concatenate(parts, axis=1)


def _head(known: Knowledge) -> tuple[Array, Array]:
    """Returns the prior of a task's head on these features, mean [F] and covariance [F, F].

    Tasks that are searched at the same time count the same, give or take as much as all of them.
    """
    parts = []
    if known.sources is not None:
        parts.append((known.sources.head_mean, known.sources.head_covariance))
    if known.others is not None:
        counts = ~jnp.isnan(known.others.scale)
        share = counts / jnp.maximum(jnp.sum(counts), 1)
        parts.append((share, jnp.diag(share)))
    means, covariances = zip(*parts, strict=True)
    return jnp.concatenate(means) / len(parts), jax.scipy.linalg.block_diag(*covariances)


def _distance(space: SearchSpace, a: Array, b: Array) -> Array:
    """Returns the share of decisions in which designs differ, [A, B]."""
    first, second = (
        jax.nn.one_hot(x, space.max_choices).reshape(len(x), space.action_mask.size) for x in (a, b)
    )
    return (space.num_decisions - first @ second.T) / space.num_decisions


def _prior_covariance(distance: Array) -> Array:
    """Returns the prior covariance of a task's scaled rewards by distance, but for its level.

    Half of the variance is of decisions by themselves, half of designs that are nearly equal.
    """
    return jnp.exp(-8.0 * distance) + 1.0 - distance


def with_room(trials: Trials, number: int) -> Trials:
    """Returns the trials with room for so many more behind them."""
    return jax.tree.map(lambda x: jnp.pad(x, [(0, number)] + [(0, 0)] * (x.ndim - 1)), trials)


def are_real(trials: Trials) -> Array:
    """Returns which trials were made, and not only expected, bool [N]."""
    return trials.valid if trials.real is None else trials.real


def _whole_blocks(trials: Trials) -> Trials:
    return with_room(trials, -len(trials.valid) % BLOCK)


def _fill(trials: Trials) -> tuple[Array, Array, Array]:
    """Returns rewards with `worst_rewards` in place of failures, their centre and their scale."""
    worst = worst_rewards(trials.rewards, are_real(trials))
    filled = jnp.where(jnp.isnan(trials.rewards), worst, trials.rewards)
    centre, scale = _centre_and_scale(filled, are_real(trials))
    return filled, centre, scale


def _scaled(tasks: ReplayBank) -> tuple[Array, Array]:
    """Returns what models learn of T tasks, [T, N]: failures are the worst; and scales [T]."""
    centre, scale = _centre_and_scale(tasks.rewards, tasks.valid)
    y = (tasks.rewards - centre[:, None]) / scale[:, None]
    return jnp.clip(jnp.where(jnp.isnan(y), -_MOST, y), -_MOST, _MOST), scale


def _has_rewards(tasks: ReplayBank) -> Array:
    """Returns which tasks have any trial that didn't fail, bool [T]."""
    return jnp.any(tasks.valid & ~jnp.isnan(tasks.rewards), axis=1)


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
