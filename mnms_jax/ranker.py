"""Which of many designs is worth a task's next trial.

The guard against negative transfer is part of it: that other tasks tell something of the target,
and that they tell nothing, are two hypotheses, weighed by how likely they make the target's trials.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from mnms_jax.gaussian_process import Process, condition, exact_matmul, observe
from mnms_jax.replay import worst_rewards
from mnms_jax.reward_model import (
    LEVEL,
    MOST,
    Knowledge,
    as_vectors,
    centre_and_scale,
    describe,
    distance,
    prior_head,
)
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array

_NOISE = 0.3  # deviation of a trial's scaled reward
_DECAY = 2.0  # how much less alike they are if all decisions differ, as a logarithm
_BETA_ALONE = 3.0  # as `beta` of `make_ranker`, without sources
# How large a difference between the target's rewards may be against the usual one, and the prior
# deviation of the logarithm of that. Sources know less of it than the target's own trials do, or
# those of tasks that are searched on in the same way.
_SCALES, _SCALE_DEVIATION = (0.25, 0.5, 1.0, 2.0), 0.7
_SOURCE_SCALES, _SOURCE_SCALE_DEVIATION = (*_SCALES, 4.0, 8.0), 1.5


class Trials(NamedTuple):
    """One task's trials; a row of a replay bank."""

    actions: Array  # int32 [N, D]
    rewards: Array  # [N], NaN where the trial failed
    valid: Array  # bool [N]: which rows hold a trial; these come first


class Described(NamedTuple):
    """Designs, and what is known of them; a pytree."""

    vectors: Array  # [M, P], see `as_vectors`
    features: Array  # [M, F], by other tasks; F = 0: none is known
    foretold: Array  # [M], scaled rewards that these let expect
    spread: Array  # [M, F], features times the covariance of the task's head


class Beliefs(NamedTuple):
    """What is believed of M designs for a task, under H hypotheses; a pytree.

    They are that other tasks tell nothing of the task and, if any are known, that they tell
    something; each with S scales that the task's rewards may have.
    """

    described: Described
    processes: Process  # [H, ...], of scaled rewards
    weights: Array  # [H, S], probabilities
    own_weights: Array | None  # [S], under the first hypothesis; None: no guard, or H = 1
    bounds: Array  # [H], deviations that a score lies above its expected reward
    scales: Array  # [S]
    centre: Array  # [], of rewards
    num_assumed: Array  # int32 []


class Ranking(NamedTuple):
    """What a ranker says of M designs for one task."""

    scores: Array  # [M], higher is better worth a trial
    alone: Array | None  # [M], the same by the task's own trials alone; None: no guard, or one task
    expected: Array  # [M], rewards
    belief: Array  # [], probability that other tasks tell something of this one


class Ranker(NamedTuple):
    """How designs are ranked for a task.

    Attributes:
      believe: what is known of other tasks, the task's trials, designs int32 [M, D], `most` (see
        `condition`; None: the number of trials), how many designs may be assumed (0) -> beliefs.
      rank: beliefs -> the designs' ranking.
      assume: beliefs, a design's index -> the same as if it had earned what is expected of it.
    """

    believe: Callable[..., Any]
    rank: Callable[[Any], Ranking]
    assume: Callable[[Any, Array], Any]


def make_ranker(space: SearchSpace, *, belief: float = 0.5, beta: float = 1.0) -> Ranker:
    """Returns the ranker by upper confidence bounds (Srinivas et al. 2010).

    Where nothing is known of other tasks, the task's own trials are all that counts. Differences
    between rewards that are below .001 count as none.

    Args:
      space: the search space.
      belief: prior probability that other tasks tell something of the target; 1: no guard.
      beta: deviations that a design's score lies above its expected reward, as far as sources are
        believed; where they aren't, or are none, it's 3, as there is more to be explored.
    """

    def describe_all(known: Knowledge, designs: Array) -> Described:
        features, (mean, covariance) = describe(space, known, designs), prior_head(known)
        spread = exact_matmul(features, covariance)
        return Described(as_vectors(space, designs), features, features @ mean, spread)

    def believe(
        known: Knowledge, trials: Trials, designs: Array, most: Array | None = None, room: int = 0
    ) -> Beliefs:
        chex.assert_rank([trials.actions, trials.rewards, designs], [2, 1, 2])
        filled, centre, scale = _fill(trials)
        scales, prior = _possible_scales(known, scale)
        y = jnp.clip((filled - centre)[None] / scales[:, None], -MOST, MOST)  # [S, N]
        count = jnp.sum(trials.valid)
        tried, new = describe_all(known, trials.actions), describe_all(known, designs)
        processes = jax.vmap(
            functools.partial(condition, count=count, noise=_NOISE, most=most, room=room)
        )(
            y[None] - _means(tried)[:, None],
            _covariances(tried, tried),
            _covariances(tried, new),
            _variances(new),
        )
        # Likelihoods are of rewards, not of scaled ones.
        evidence = processes.evidence + (prior - count * jnp.log(scales))[None]
        own_weights = jax.nn.softmax(evidence[0])
        if len(evidence) > 1:
            evidence += jnp.log(jnp.array([[1 - belief], [belief]]))
        # Tasks that are searched at the same time know too little to do without exploring.
        bounds = (_BETA_ALONE, _BETA_ALONE if known.sources is None else beta)
        return Beliefs(
            new,
            processes._replace(mean=processes.mean + _means(new)[:, None]),
            jax.nn.softmax(evidence, axis=(0, 1)),
            own_weights if len(evidence) > 1 and belief < 1 else None,
            _of_hypotheses(new, *bounds),
            scales,
            centre,
            jnp.int32(0),
        )

    return Ranker(believe, _rank, _assume)


def _rank(beliefs: Beliefs) -> Ranking:
    weights = beliefs.weights * beliefs.scales[None]
    means, deviations = beliefs.processes.mean, jnp.sqrt(beliefs.processes.variance)
    expected = jnp.einsum("hs,hsm->m", weights, means)
    bonus = jnp.einsum("hs,h,hm->m", weights, beliefs.bounds, deviations)
    alone = None
    if beliefs.own_weights is not None:
        own = beliefs.own_weights * beliefs.scales
        alone = own @ means[0] + jnp.sum(own) * beliefs.bounds[0] * deviations[0]
    told = jnp.sum(beliefs.weights[1:])
    return Ranking(expected + bonus, alone, beliefs.centre + expected, told)


def _assume(beliefs: Beliefs, index: Array) -> Beliefs:
    expected = _rank(beliefs).expected[index] - beliefs.centre
    y = jnp.clip(expected / beliefs.scales, -MOST, MOST)
    own = jax.tree.map(lambda x: x[index][None], beliefs.described)
    covariances = _covariances(own, beliefs.described)[:, 0]
    tell = functools.partial(observe, row=beliefs.num_assumed, point=index, y=y, noise=_NOISE)
    processes = jax.vmap(tell)(beliefs.processes, covariance=covariances)
    return beliefs._replace(processes=processes, num_assumed=beliefs.num_assumed + 1)


def _means(x: Described) -> Array:
    """Returns the expected scaled rewards of M designs, [H, M]."""
    return _of_hypotheses(x, jnp.zeros(len(x.features)), x.foretold)


def _variances(x: Described) -> Array:
    """Returns their variances, [H, M]."""
    told = jnp.sum(x.features * x.spread, axis=1)
    return _of_hypotheses(x, jnp.ones(len(x.features)), 1 + told) + LEVEL**2


def _covariances(a: Described, b: Described) -> Array:
    """Returns those of A designs with B, [H, A, B].

    What other tasks can't tell varies as much as a task's rewards do of which they tell nothing.
    """
    alike = jnp.exp(-_DECAY * distance(a.vectors, b.vectors))
    return _of_hypotheses(b, alike, alike + exact_matmul(a.features, b.spread.T)) + LEVEL**2


def _of_hypotheses(described: Described, untold: ArrayLike, told: ArrayLike) -> Array:
    """Returns what holds if other tasks tell nothing and, if any are known, something: [H, ...]."""
    return jnp.stack([untold, told] if described.features.shape[1] else [untold])


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


def _fill(trials: Trials) -> tuple[Array, Array, Array]:
    """Returns rewards with `worst_rewards` in place of failures, their centre and their scale."""
    worst = worst_rewards(trials.rewards, trials.valid)
    filled = jnp.where(jnp.isnan(trials.rewards), worst, trials.rewards)
    centre, scale = centre_and_scale(filled, trials.valid)
    return filled, centre, scale
