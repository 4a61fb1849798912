"""What other tasks' trials let expect of a task's rewards.

A network learns the source tasks' rewards from their trials, with a linear head for each task. The
target's own head is unknown, and the sources' heads say what to expect (Perrone et al. 2018,
"Scalable hyperparameter transfer learning"). Tasks that are searched at the same time tell each
other what they expect, each by a Gaussian process over designs that is made anew every round
(Rasmussen & Williams 2006, chapter 2).
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from mnms_jax.gaussian_process import condition, exact_matmul
from mnms_jax.replay import ReplayBank
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, PRNGKey

MOST = 3.0  # scaled rewards are clipped to [-MOST, MOST]: how bad a bad design is says little
LEVEL = 2.0  # prior deviation of the level of a task's scaled rewards
_NOISE = 0.3  # deviation of a trial's, of tasks that are searched at the same time


class RewardModel(NamedTuple):
    """What source tasks say of designs, by F features of a network and a constant one; a pytree."""

    network: Params
    head_mean: Array  # [F + 1], of the sources' heads
    head_covariance: Array  # [F + 1, F + 1]
    scale: Array  # [], a usual difference between a source's good and middling rewards; NaN: none


class Expectations(NamedTuple):
    """What K tasks' trials let expect of designs: a Gaussian process each; a pytree."""

    vectors: Array  # [K, N, P], of the trials, see `as_vectors`
    weights: Array  # [K, N]; what is expected are a design's covariances with them times these
    scale: Array  # [K], a usual difference between good and middling rewards; NaN: doesn't count


class Knowledge(NamedTuple):
    """What is known of other tasks; a pytree."""

    sources: RewardModel | None = None
    others: Expectations | None = None  # tasks that are searched at the same time


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
    counts = jnp.sum(tasks.valid, axis=1)
    most = jnp.max(counts)

    def weigh(vectors: Array, y: Array, count: Array) -> Array:
        among = _prior_covariance(distance(vectors, vectors))
        # The mean at a point that is like one trial alone is the weight of that trial.
        like_one, variance = jnp.eye(len(y)), jnp.ones(len(y))
        return condition(y[None], among, like_one, variance, count, _NOISE, most=most).mean[0]

    vectors = jax.vmap(functools.partial(as_vectors, space))(tasks.actions)
    weights = jax.vmap(weigh)(vectors, y, counts)
    return Expectations(vectors, weights, jnp.where(has_rewards, scale, jnp.nan))


def expect(expectations: Expectations, vectors: Array) -> Array:
    """Returns what each task lets expect of designs [M, P], over its scale: [M, K]; 0: nothing."""

    def of_task(own: Array, weights: Array) -> Array:
        return exact_matmul(_prior_covariance(distance(vectors, own)), weights)

    expected = jax.vmap(of_task)(expectations.vectors, expectations.weights)
    return jnp.where(jnp.isnan(expectations.scale)[:, None], 0.0, expected).T


def describe(space: SearchSpace, known: Knowledge, designs: Array) -> Array:
    """Returns all that is known of designs, [M, F]; with F = 0 if no other task is known.

    These are the features of the sources' network, and what other tasks expect.
    """
    parts = [jnp.zeros((len(designs), 0))]
    if known.sources is not None:
        network = functools.partial(_features, space, known.sources.network)
        parts.append(jax.vmap(network)(designs))
    if known.others is not None:
        parts.append(expect(known.others, as_vectors(space, designs)))
    return jnp.concatenate(parts, axis=1)


def prior_head(known: Knowledge) -> tuple[Array, Array]:
    """Returns the prior of a task's head on known features, mean [F] and covariance [F, F].

    Tasks that are searched at the same time count the same, give or take as much as all of them.
    """
    parts = []
    if known.sources is not None:
        parts.append((known.sources.head_mean, known.sources.head_covariance))
    if known.others is not None:
        counts = ~jnp.isnan(known.others.scale)
        share = counts / jnp.maximum(jnp.sum(counts), 1)
        parts.append((share, jnp.diag(share)))
    if not parts:
        return jnp.zeros(0), jnp.zeros((0, 0))
    means, covariances = zip(*parts, strict=True)
    return jnp.concatenate(means) / len(parts), jax.scipy.linalg.block_diag(*covariances)


def as_vectors(space: SearchSpace, designs: Array) -> Array:
    """Returns designs [M, D] as vectors [M, P].

    The product of two is the share of decisions in which they agree.
    """
    chosen = jax.nn.one_hot(designs, space.max_choices).reshape(len(designs), -1)
    return chosen / jnp.sqrt(space.num_decisions)


def distance(a: Array, b: Array) -> Array:
    """Returns the share of decisions in which designs [A, P] and [B, P] differ, [A, B]."""
    return 1.0 - exact_matmul(a, b.T)


def _prior_covariance(distance: Array) -> Array:
    """Returns the prior covariance of a task's scaled rewards by distance.

    But for their level, half of the variance is of decisions by themselves, half of designs that
    are nearly equal.
    """
    return jnp.exp(-8.0 * distance) + 1.0 - distance + LEVEL**2


def _scaled(tasks: ReplayBank) -> tuple[Array, Array]:
    """Returns what models learn of T tasks, [T, N]: failures are the worst; and scales [T]."""
    centre, scale = centre_and_scale(tasks.rewards, tasks.valid)
    y = (tasks.rewards - centre[:, None]) / scale[:, None]
    return jnp.clip(jnp.where(jnp.isnan(y), -MOST, y), -MOST, MOST), scale


def _has_rewards(tasks: ReplayBank) -> Array:
    """Returns which tasks have any trial that didn't fail, bool [T]."""
    return jnp.any(tasks.valid & ~jnp.isnan(tasks.rewards), axis=1)


def centre_and_scale(rewards: Array, valid: Array) -> tuple[Array, Array]:
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
