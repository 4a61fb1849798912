"""Losses of the controller, batched: log-probabilities [B, D], advantages [B]."""

import chex
import jax
import jax.numpy as jnp

from mnms_jax.types import Array

_LARGEST_LOG_RATIO = 20.0


def reinforce_loss(log_probs: Array, advantages: Array) -> Array:
    """Returns the policy-gradient loss, a mean over trials of summed decisions.

    Williams (1992), "Simple statistical gradient-following algorithms for connectionist
    reinforcement learning". The design is one compound action, so every decision has the
    advantage of the whole.
    """
    chex.assert_rank([log_probs, advantages], [2, 1])
    return -jnp.mean(jnp.sum(log_probs, axis=1) * jax.lax.stop_gradient(advantages))


def ppo_loss(
    log_probs: Array, behaviour_log_probs: Array, advantages: Array, *, clip: float = 0.2
) -> Array:
    """Returns the clipped surrogate loss, with one probability ratio for each decision.

    Schulman et al. (2017), "Proximal policy optimization algorithms", equation 7; `clip` is its
    epsilon. The behaviour policy may be any earlier one, so that trials can be replayed. Inactive
    decisions hold equal log-probabilities and add a constant.

    >>> before, after = jnp.log(jnp.array([[0.5]])), jnp.log(jnp.array([[0.9]]))
    >>> f"{ppo_loss(after, before, jnp.ones(1)):.2f}"  # the ratio of 1.8 is clipped to 1.2
    '-1.20'
    """
    chex.assert_rank([log_probs, behaviour_log_probs, advantages], [2, 2, 1])
    # What was once all but impossible may be likely now, and the ratio, or its sum with others,
    # overflow. Beyond the bound a trial teaches nothing, as in dual-clip PPO (Ye et al. 2020).
    ratios = jnp.exp(jnp.minimum(log_probs - behaviour_log_probs, _LARGEST_LOG_RATIO))
    advantages = jax.lax.stop_gradient(advantages)[:, None]
    clipped = jnp.clip(ratios, 1.0 - clip, 1.0 + clip)
    return -jnp.mean(jnp.sum(jnp.minimum(ratios * advantages, clipped * advantages), axis=1))


def urex_loss(
    log_probs: Array, task_ids: Array, advantages: Array, *, temperature: float = 0.1
) -> Array:
    """Returns the part of UREX that explores designs which are better than they are likely.

    Nachum et al. (2017, arXiv:1611.09321), the second term of the objective, whose tau is
    `temperature`: minus the log-probabilities of designs, weighted by exp(advantage / tau) over
    their probabilities. Weights are normalised within each task's designs (task_ids int32 [B]), as
    in the paper within the samples of one problem.
    """
    chex.assert_rank([log_probs, task_ids, advantages], [2, 1, 1])
    totals = jnp.sum(log_probs, axis=1)
    logits = jax.lax.stop_gradient(advantages / temperature - totals)
    same_task = task_ids[:, None] == task_ids[None]
    logits -= jax.nn.logsumexp(jnp.where(same_task, logits[None], -jnp.inf), axis=1)
    num_tasks = jnp.sum(1.0 / jnp.sum(same_task, axis=1))
    return -temperature * jnp.sum(jnp.exp(logits) * totals) / num_tasks


def imitation_loss(log_probs: Array, weights: Array) -> Array:
    """Returns minus the weighted mean log-probability of designs, for weights [B].

    With the best designs found so far it is priority queue training: Abolafia et al. (2018,
    arXiv:1801.03526), equation 3.
    """
    chex.assert_rank([log_probs, weights], [2, 1])
    total = jnp.sum(jnp.sum(log_probs, axis=1) * weights)
    return -total / jnp.maximum(jnp.sum(weights), 1e-6)


def entropy_loss(entropy: Array) -> Array:
    """Returns minus the mean entropy of a design, for entropies [B, D] of its decisions."""
    chex.assert_rank(entropy, 2)
    return -jnp.mean(jnp.sum(entropy, axis=1))
