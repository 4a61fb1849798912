"""Learners: how the controller's policy changes with the rewards of its children."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from mnms_jax import replay as replay_lib
from mnms_jax.advantage import Advantage, Baseline, rank_advantage
from mnms_jax.losses import entropy_loss, imitation_loss, ppo_loss, reinforce_loss, urex_loss
from mnms_jax.replay import Batch, ReplayBank
from mnms_jax.types import Array, Params, Policy, PRNGKey

Metrics = dict[str, Array]


class Learner(NamedTuple):
    """How parameters follow rewards.

    Attributes:
      init: params -> optimiser state.
      update: key, params, optimiser state, baseline, replay bank, the round's trials ->
        params, optimiser state, metrics (scalars by name).
    """

    init: Callable[[Params], Any]
    update: Callable[
        [PRNGKey, Params, Any, Baseline, ReplayBank, Batch], tuple[Params, Any, Metrics]
    ]


def make_learner(
    name: str,
    policy: Policy,
    *,
    advantage: Advantage = rank_advantage,
    imitate_best: bool = True,
    warm: bool = False,
    num_updates: int | None = None,
) -> Learner:
    """Returns a learner by its name, one of `LEARNERS`.

    Args:
      name: of the learner.
      policy: the policy to train.
      advantage: how rewards become advantages.
      imitate_best: whether PPO imitates each task's best trials too.
      warm: whether the policy knows something already, which smaller steps keep.
      num_updates: of PPO in a round; by default 8, or 4 in smaller steps.
    """
    rate = 3e-3 if warm else 1e-2
    if name == "reinforce":
        return make_reinforce_learner(policy, advantage=advantage, learning_rate=rate)
    if name == "trpo":
        return make_trpo_learner(policy, advantage=advantage)
    if name == "urex":
        return make_urex_learner(policy, advantage=advantage, learning_rate=rate)
    return make_ppo_learner(
        policy,
        advantage=advantage,
        learning_rate=rate,
        imitation_weight=(0.1 if warm else 0.3) if imitate_best else 0.0,
        num_updates=num_updates or (4 if warm else 8),
        batch_size=32 if warm else 64,
    )


def make_ppo_learner(
    policy: Policy,
    *,
    advantage: Advantage = rank_advantage,
    learning_rate: float = 1e-2,
    entropy_weight: float = 0.01,
    imitation_weight: float = 0.3,
    num_imitated: int = 10,
    clip: float = 0.2,
    num_updates: int = 8,
    batch_size: int = 64,
    max_grad_norm: float = 1.0,
) -> Learner:
    """Returns off-policy PPO from the per-task replay bank (Wong & Gesmundo 2017).

    A departure from the paper: each task's best trials are imitated too, as in priority queue
    training (Abolafia et al. 2018). With some hundred trials it finds better children than PPO
    alone; `imitation_weight=0` is the paper's way.

    Args:
      policy: the policy to train.
      advantage: how rewards become advantages.
      learning_rate: of Adam.
      entropy_weight: weight of the entropy bonus of a whole design.
      imitation_weight: weight of the imitation of the best trials.
      num_imitated: how many trials of each task are imitated.
      clip: PPO's epsilon.
      num_updates: gradient steps a round, each on a fresh draw from the bank.
      batch_size: trials in a draw, equally many from each task.
      max_grad_norm: gradients are scaled down to this global norm.
    """
    optimizer = _optimizer(learning_rate, max_grad_norm)
    evaluate = jax.vmap(policy.evaluate, in_axes=(None, 0, 0))

    def update(
        key: PRNGKey, params: Params, opt_state: Any, baseline: Baseline, replay: ReplayBank, _: Any
    ) -> tuple[Params, Any, Metrics]:
        models, there = replay_lib.best(replay, num_imitated)
        replay = replay_lib.fill_failures(replay)

        def loss_fn(params: Params, batch: Batch) -> tuple[Array, Metrics]:
            # Both are evaluated at once, which halves the program that is compiled.
            both = jax.tree.map(lambda *parts: jnp.concatenate(parts), batch, models)
            output = evaluate(params, both.actions, both.task_ids)
            size = batch.task_ids.size
            log_probs, entropy = output.log_probs[:size], output.entropy[:size]
            advantages = advantage(baseline, replay, batch.task_ids, batch.rewards)
            surrogate = ppo_loss(log_probs, batch.log_probs, advantages, clip=clip)
            imitation = imitation_loss(output.log_probs[size:], there.astype(jnp.float32))
            loss, metrics = _with_entropy(surrogate, entropy, entropy_weight)
            return loss + imitation_weight * imitation, {**metrics, "imitation_loss": imitation}

        def step(carry: tuple[Params, Any], key: PRNGKey) -> tuple[tuple[Params, Any], Metrics]:
            params, opt_state = carry
            batch = replay_lib.sample(replay, key, batch_size)
            grads, metrics = jax.grad(loss_fn, has_aux=True)(params, batch)
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), metrics

        (params, opt_state), metrics = jax.lax.scan(
            step, (params, opt_state), jax.random.split(key, num_updates)
        )
        return params, opt_state, jax.tree.map(jnp.mean, metrics)

    return Learner(optimizer.init, update)


def make_reinforce_learner(
    policy: Policy,
    *,
    advantage: Advantage = rank_advantage,
    learning_rate: float = 1e-2,
    entropy_weight: float = 0.01,
    max_grad_norm: float = 1.0,
) -> Learner:
    """Returns on-policy REINFORCE: one gradient step on the round's own trials.

    The arguments are those of `make_ppo_learner`.
    """

    def loss(log_probs: Array, batch: Batch, advantages: Array) -> Array:
        del batch
        return reinforce_loss(log_probs, advantages)

    return _make_gradient_learner(
        policy, loss, advantage, _optimizer(learning_rate, max_grad_norm), entropy_weight
    )


def make_urex_learner(
    policy: Policy,
    *,
    advantage: Advantage = rank_advantage,
    learning_rate: float = 1e-2,
    temperature: float = 0.1,
    max_grad_norm: float = 1.0,
) -> Learner:
    """Returns on-policy UREX: REINFORCE that is drawn to good designs that seem unlikely.

    Nachum et al. (2017, arXiv:1611.09321). Its second term takes the place of the entropy bonus.

    Args:
      policy: the policy to train.
      advantage: how rewards become advantages, in whose units the temperature is.
      learning_rate: of Adam.
      temperature: the paper's tau, for which it tries 0.05 to 0.2.
      max_grad_norm: gradients are scaled down to this global norm.
    """

    def loss(log_probs: Array, batch: Batch, advantages: Array) -> Array:
        exploration = urex_loss(log_probs, batch.task_ids, advantages, temperature=temperature)
        return reinforce_loss(log_probs, advantages) + exploration

    return _make_gradient_learner(policy, loss, advantage, _optimizer(learning_rate, max_grad_norm))


def _make_gradient_learner(
    policy: Policy,
    loss: Callable[[Array, Batch, Array], Array],
    advantage: Advantage,
    optimizer: optax.GradientTransformation,
    entropy_weight: float = 0.0,
) -> Learner:
    """Returns one gradient step a round on a loss of log_probs [B, D], trials and advantages."""
    evaluate = jax.vmap(policy.evaluate, in_axes=(None, 0, 0))

    def update(
        key: PRNGKey,
        params: Params,
        opt_state: Any,
        baseline: Baseline,
        replay: ReplayBank,
        batch: Batch,
    ) -> tuple[Params, Any, Metrics]:
        del key
        advantages = _own_advantages(advantage, baseline, replay, batch)

        def loss_fn(params: Params) -> tuple[Array, Metrics]:
            output = evaluate(params, batch.actions, batch.task_ids)
            surrogate = loss(output.log_probs, batch, advantages)
            return _with_entropy(surrogate, output.entropy, entropy_weight)

        grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, metrics

    return Learner(optimizer.init, update)


def make_trpo_learner(
    policy: Policy,
    *,
    advantage: Advantage = rank_advantage,
    max_divergence: float = 0.05,
    entropy_weight: float = 0.01,
    num_probes: int = 8,
    damping: float = 0.01,
    num_products: int = 10,
    num_steps: int = 10,
) -> Learner:
    """Returns on-policy TRPO: the largest step along the natural gradient that is safe.

    Schulman et al. (2015, arXiv:1502.05477). The divergence of the new policy from the old one is
    a mean over designs that are drawn for it, as they need no training.

    Args:
      policy: the policy to train.
      advantage: how rewards become advantages.
      max_divergence: the paper's delta, of a whole design; in nats.
      entropy_weight: weight of the entropy bonus of a whole design; the paper has none.
      num_probes: designs drawn for every trial of the round.
      damping: added to the diagonal of the Fisher matrix.
      num_products: of that matrix with a vector, by the method of conjugate gradients.
      num_steps: step sizes that are tried, each half of the one before; if none is safe and of
        use, the policy stays as it is.
    """
    evaluate = jax.vmap(policy.evaluate, in_axes=(None, 0, 0))

    def update(
        key: PRNGKey,
        params: Params,
        opt_state: Any,
        baseline: Baseline,
        replay: ReplayBank,
        batch: Batch,
    ) -> tuple[Params, Any, Metrics]:
        advantages = _own_advantages(advantage, baseline, replay, batch)
        task_ids = jnp.repeat(batch.task_ids, num_probes)
        keys = jax.random.split(key, batch.task_ids.size)
        sample = jax.vmap(policy.sample, in_axes=(None, 0, 0, None))
        probes = sample(params, keys, batch.task_ids, num_probes)
        probes = jax.tree.map(jnp.concatenate, probes)
        start, unravel = ravel_pytree(params)

        def loss_fn(flat: Array) -> tuple[Array, Metrics]:
            output = evaluate(unravel(flat), batch.actions, batch.task_ids)
            surrogate = ppo_loss(output.log_probs, batch.log_probs, advantages, clip=jnp.inf)
            return _with_entropy(surrogate, output.entropy, entropy_weight)

        def probe(flat: Array) -> Array:
            return evaluate(unravel(flat), probes.actions, task_ids).log_probs

        def divergence(flat: Array) -> Array:
            change = probe(flat) - probes.log_probs
            return jnp.mean(jnp.sum(jnp.expm1(change) - change, axis=1))

        _, push = jax.linearize(probe, start)
        pull = jax.linear_transpose(push, start)

        def fisher(direction: Array) -> Array:
            return pull(push(direction))[0] / task_ids.size + damping * direction

        (loss, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(start)
        direction, _ = jax.scipy.sparse.linalg.cg(fisher, -grads, maxiter=num_products)
        length = jnp.sqrt(2 * max_divergence / jnp.maximum(direction @ fisher(direction), 1e-12))
        steps = length * 0.5 ** jnp.arange(num_steps)
        is_good = jax.lax.map(
            lambda step: (
                (divergence(start + step * direction) <= max_divergence)
                & (loss_fn(start + step * direction)[0] < loss)
            ),
            steps,
        )
        step = jnp.where(jnp.any(is_good), steps[jnp.argmax(is_good)], 0.0)
        moved = start + step * direction
        return unravel(moved), opt_state, {**metrics, "divergence": divergence(moved)}

    return Learner(lambda params: (), update)


def _own_advantages(
    advantage: Advantage, baseline: Baseline, replay: ReplayBank, batch: Batch
) -> Array:
    """Returns the advantages of a round's own trials, [B], failed ones included."""
    worst = replay_lib.worst_rewards(replay.rewards, replay.valid)[batch.task_ids]
    rewards = jnp.where(jnp.isnan(batch.rewards), worst, batch.rewards)
    return advantage(baseline, replay_lib.fill_failures(replay), batch.task_ids, rewards)


def make_null_learner() -> Learner:
    """Returns the learner that never changes its policy, for random search."""

    def update(
        key: PRNGKey, params: Params, opt_state: Any, *unused: Any
    ) -> tuple[Params, Any, Metrics]:
        del key, unused
        return params, opt_state, {}

    return Learner(lambda params: (), update)


def imitate(
    key: PRNGKey,
    policy: Policy,
    params: Params,
    sources: ReplayBank,
    *,
    num_imitated: int = 10,
    num_steps: int = 200,
    learning_rate: float = 5e-3,
    entropy_weight: float = 0.02,
    batch_size: int = 64,
) -> Params:
    """Trains a policy to propose each source task's best trials.

    Args:
      key: chooses the batches.
      policy: whose first T tasks are the sources.
      params: to start from.
      sources: trials of T tasks.
      num_imitated: how many trials of each.
      num_steps: steps of Adam.
      learning_rate: of Adam.
      entropy_weight: of the entropy bonus, which keeps the policy from repeating them only.
      batch_size: trials in a step.
    """
    models, there = replay_lib.best(sources, num_imitated)
    optimizer = optax.adam(learning_rate)
    evaluate = jax.vmap(policy.evaluate, in_axes=(None, 0, 0))

    def loss_fn(params: Params, rows: Array) -> Array:
        output = evaluate(params, models.actions[rows], models.task_ids[rows])
        imitation = imitation_loss(output.log_probs, there[rows].astype(jnp.float32))
        return imitation + entropy_weight * entropy_loss(output.entropy)

    def step(carry: tuple[Params, Any], key: PRNGKey) -> tuple[tuple[Params, Any], None]:
        params, opt_state = carry
        rows = jax.random.choice(key, len(there), (min(batch_size, len(there)),), replace=False)
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(key, num_steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params


def _optimizer(learning_rate: float, max_grad_norm: float) -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), optax.adam(learning_rate))


def _with_entropy(surrogate: Array, entropy: Array, entropy_weight: float) -> tuple[Array, Metrics]:
    bonus = entropy_loss(entropy)
    metrics = {"policy_loss": surrogate, "policy_entropy": -bonus}
    return surrogate + entropy_weight * bonus, metrics
