"""The controller's policy: a recurrent network that makes one decision after another.

Wong & Gesmundo, "Transfer Learning to Learn with Multitask Neural Model Search" (2017,
arXiv:1710.10776): the embedding of the task is concatenated with that of the previous action at
every step. Wong, Houlsby, Lu & Gesmundo, "Transfer Learning with Neural AutoML" (2018,
arXiv:1803.02780): a skip connection around the recurrent cell lets the marginal of each decision
be learnt easily. Neither paper gives sizes; the defaults here are ours.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, Policy, PolicyOutput, PRNGKey

# Given the index of a decision and its masked logits [C], returns the action.
Choose = Callable[[Array, Array], Array]


class _Rollout(NamedTuple):
    """What is known after some of the decisions."""

    carry: tuple[Array, Array]  # of the recurrent cell
    previous: Array  # [E], embedding of the last action
    actions: Array  # int32 [D], zero where not yet decided
    active: Array  # bool [D], False where not yet decided


def make_policy(
    space: SearchSpace,
    num_tasks: int,
    *,
    hidden_size: int = 64,
    action_embedding_size: int = 16,
    task_embedding_size: int = 16,
    init_scale: float = 0.1,
) -> Policy:
    """Returns the recurrent multitask policy over a search space.

    Args:
      space: the decisions to make.
      num_tasks: number of tasks T, each with a learned embedding.
      hidden_size: units of the LSTM.
      action_embedding_size: length of the embedding of the previous action.
      task_embedding_size: length of the task embedding.
      init_scale: parameters start uniform in [-init_scale, init_scale] (Zoph & Le 2017).
    """
    network = _PolicyNetwork(
        space=space,
        num_tasks=num_tasks,
        hidden_size=hidden_size,
        action_embedding_size=action_embedding_size,
        task_embedding_size=task_embedding_size,
        init_scale=init_scale,
    )

    def init(key: PRNGKey) -> Params:
        return network.init(key, jnp.int32(0), lambda _, logits: jnp.argmax(logits))["params"]

    def roll(params: Params, task_id: Array, choose: Choose) -> PolicyOutput:
        output = network.apply({"params": params}, task_id, choose)
        assert isinstance(output, PolicyOutput)
        return output

    return _as_policy(init, roll)


def make_random_policy(space: SearchSpace) -> Policy:
    """Returns the policy of random search: uniform over the choices of every active decision."""

    def roll(params: Params, task_id: Array, choose: Choose) -> PolicyOutput:
        del params, task_id
        logits = jnp.zeros((space.num_decisions, space.max_choices))

        def step(rollout: _Rollout, d: Array) -> tuple[_Rollout, tuple[Array, Array]]:
            return _decide(space, rollout, d, logits[d], choose)

        empty = jnp.zeros(0)
        rollout, (log_probs, entropy) = jax.lax.scan(
            step, _start(space, (empty, empty), empty), jnp.arange(space.num_decisions)
        )
        return PolicyOutput(rollout.actions, log_probs, entropy)

    return _as_policy(lambda key: {}, roll)


def choice_frequencies(
    policy: Policy,
    space: SearchSpace,
    params: Params,
    key: PRNGKey,
    task_id: int,
    num_samples: int = 1024,
) -> np.ndarray:
    """Estimates from samples how often a task's designs take each choice, float [D, C].

    A row sums to the share of designs in which its decision is active.
    """
    keys = jax.random.split(key, num_samples)
    sample = jax.jit(jax.vmap(policy.sample, in_axes=(None, 0, None)))
    actions = np.asarray(sample(params, keys, jnp.int32(task_id)).actions)
    taken = actions[..., None] == np.arange(space.max_choices)
    return np.mean(taken & space.active(actions)[..., None], axis=0)


def _as_policy(
    init: Callable[[PRNGKey], Params], roll: Callable[[Params, Array, Choose], PolicyOutput]
) -> Policy:
    def sample(params: Params, key: PRNGKey, task_id: Array) -> PolicyOutput:
        def choose(d: Array, logits: Array) -> Array:
            return jax.random.categorical(jax.random.fold_in(key, d), logits)

        return roll(params, task_id, choose)

    def evaluate(params: Params, actions: Array, task_id: Array) -> PolicyOutput:
        chex.assert_rank([actions, task_id], [1, 0])
        return roll(params, task_id, lambda d, _: actions[d])

    return Policy(init, sample, evaluate)


class _PolicyNetwork(nn.Module):
    space: SearchSpace
    num_tasks: int
    hidden_size: int
    action_embedding_size: int
    task_embedding_size: int
    init_scale: float

    @nn.compact
    def __call__(self, task_id: Array, choose: Choose) -> PolicyOutput:
        def init(key: PRNGKey, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            return jax.random.uniform(key, shape, dtype, -self.init_scale, self.init_scale)

        size = (self.space.num_decisions, self.space.max_choices)
        inputs = self.action_embedding_size + self.task_embedding_size
        features = inputs + self.hidden_size
        task_table = self.param("task_embedding", init, (self.num_tasks, self.task_embedding_size))
        action_table = self.param("action_embedding", init, (*size, self.action_embedding_size))
        first = self.param("first_input", init, (self.action_embedding_size,))
        kernel = self.param("head_kernel", init, (size[0], features, size[1]))
        bias = self.param("head_bias", nn.initializers.zeros, size)
        cell = nn.OptimizedLSTMCell(
            self.hidden_size, kernel_init=init, recurrent_kernel_init=init, name="cell"
        )

        def step(
            cell: nn.Module, rollout: _Rollout, d: Array
        ) -> tuple[_Rollout, tuple[Array, Array]]:
            x = jnp.concatenate([rollout.previous, task_table[task_id]])
            carry, h = cell(rollout.carry, x)
            logits = jnp.concatenate([h, x]) @ kernel[d] + bias[d]  # x: the skip connection
            rollout, outputs = _decide(self.space, rollout, d, logits, choose)
            previous = action_table[d, rollout.actions[d]]
            return rollout._replace(carry=carry, previous=previous), outputs

        scan = nn.scan(step, variable_broadcast="params", split_rngs={"params": False})
        carry = (jnp.zeros(self.hidden_size), jnp.zeros(self.hidden_size))
        rollout, (log_probs, entropy) = scan(
            cell, _start(self.space, carry, first), jnp.arange(self.space.num_decisions)
        )
        return PolicyOutput(rollout.actions, log_probs, entropy)


def _start(space: SearchSpace, carry: tuple[Array, Array], previous: Array) -> _Rollout:
    actions = jnp.zeros(space.num_decisions, jnp.int32)
    return _Rollout(carry, previous, actions, jnp.zeros(space.num_decisions, bool))


def _decide(
    space: SearchSpace, rollout: _Rollout, d: Array, logits: Array, choose: Choose
) -> tuple[_Rollout, tuple[Array, Array]]:
    """Makes decision d; returns the rollout with it, and its log-probability and entropy.

    An inactive decision takes its first choice at no log-probability and no entropy, so that
    equal children have equal encodings.
    """
    allowed = jnp.asarray(space.conditions)[d, jnp.arange(space.num_decisions), rollout.actions]
    active = jnp.all(allowed & (rollout.active | ~jnp.asarray(space.parents)[d]))
    mask = jnp.asarray(space.action_mask)[d]
    action = jnp.where(active, choose(d, jnp.where(mask, logits, -jnp.inf)), 0).astype(jnp.int32)
    # Padded choices are masked before the product p log p: masking after it gives NaN gradients.
    log_p = jax.nn.log_softmax(jnp.where(mask, logits, jnp.finfo(logits.dtype).min))
    log_p = jnp.where(mask, log_p, 0.0)
    entropy = -jnp.sum(jnp.where(mask, jnp.exp(log_p) * log_p, 0.0))
    rollout = rollout._replace(
        actions=rollout.actions.at[d].set(action), active=rollout.active.at[d].set(active)
    )
    return rollout, (jnp.where(active, log_p[action], 0.0), jnp.where(active, entropy, 0.0))
