"""The controller's policy: a recurrent network that makes one decision after another.

Wong & Gesmundo, "Transfer Learning to Learn with Multitask Neural Model Search" (2017,
arXiv:1710.10776): the embedding of the task is concatenated with that of the previous action at
every step. Wong, Houlsby, Lu & Gesmundo, "Transfer Learning with Neural AutoML" (2018,
arXiv:1803.02780): a skip connection around the recurrent cell lets the marginal of each decision
be learnt easily. Neither paper gives sizes; the defaults here are ours.
"""

import functools
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.randomness import draw, index
from mnms_jax.space import SearchSpace
from mnms_jax.types import AnyArray, Array, Params, Policy, PolicyOutput, PRNGKey

_Carry = tuple[Array, Array]  # memory c and output h of the recurrent cell, each [H]


class _Rollout(NamedTuple):
    """What is known after some of the decisions."""

    carry: _Carry
    previous: Array  # int32 [], the last action
    actions: Array  # int32 [D], zero where not yet decided


class _Weights(NamedTuple):
    """The network's parameters as the arithmetic takes them, for H units, inputs of size E + K."""

    task_embedding: Array  # [T, K]
    action_embedding: Array  # [D, C, E], of the action before d; before the first stands action 0
    cell_input: Array  # [E + K, 4H]
    cell_recurrent: Array  # [H, 4H]
    cell_bias: Array  # [4H]
    head_recurrent: Array  # [D, H, C]
    head_input: Array  # [D, E + K, C], the skip connection
    head_bias: Array  # [D, C]


class _Inputs(NamedTuple):
    """What the inputs, the previous action and the task, add to gates and logits.

    There are fewer different inputs than trials times decisions: each is projected once.
    """

    action_gates: Array  # [D, C, 4H], by the action before d
    action_logits: Array  # [D, C, C], by the action before d
    task_gates: Array  # [4H]
    task_logits: Array  # [D, C]


def make_policy(
    space: SearchSpace,
    num_tasks: int,
    *,
    hidden_size: int = 64,
    action_embedding_size: int = 16,
    task_embedding_size: int = 16,
    skip_connection: bool = True,
    init_scale: float = 0.1,
) -> Policy:
    """Returns the recurrent multitask policy over a search space.

    Args:
      space: the decisions to make.
      num_tasks: number of tasks T, each with a learned embedding.
      hidden_size: units of the LSTM.
      action_embedding_size: length of the embedding of the previous action.
      task_embedding_size: length of the task embedding.
      skip_connection: whether decisions see the inputs directly too, or only through the recurrent
        cell, as in the first of the two papers. The parameters are the same.
      init_scale: parameters start uniform in [-init_scale, init_scale] (Zoph & Le 2017).
    """
    network = _PolicyNetwork(
        space=space,
        num_tasks=num_tasks,
        hidden_size=hidden_size,
        action_embedding_size=action_embedding_size,
        task_embedding_size=task_embedding_size,
        skip_connection=skip_connection,
        init_scale=init_scale,
    )

    def weigh(params: Params) -> _Weights:
        weights = network.apply({"params": params})
        assert isinstance(weights, _Weights)
        return weights

    def sample(params: Params, key: PRNGKey, task_id: Array, number: int) -> PolicyOutput:
        weights = weigh(params)
        shape = (number, space.num_decisions, space.max_choices)
        noise = draw(key, shape, jax.random.gumbel)
        noise = jnp.where(jnp.asarray(space.action_mask), noise, -jnp.inf)
        roll = functools.partial(_sample, space, weights, _project(weights, task_id))
        return jax.vmap(roll)(noise)

    def evaluate(params: Params, actions: Array, task_id: Array) -> PolicyOutput:
        chex.assert_rank([actions, task_id], [1, 0])
        return _evaluate(space, weigh(params), actions, task_id)

    return Policy(lambda key: network.init(key)["params"], sample, evaluate)


def make_random_policy(space: SearchSpace) -> Policy:
    """Returns the policy of random search: uniform over the choices of every active decision."""
    shape = (space.num_decisions, space.max_choices)

    def sample(params: Params, key: PRNGKey, task_id: Array, number: int) -> PolicyOutput:
        chances = draw(key, (number, space.num_decisions))
        actions = index(chances, jnp.asarray(space.action_mask).sum(1)[None])
        return jax.vmap(evaluate, in_axes=(None, 0, None))(params, actions, task_id)

    def evaluate(params: Params, actions: Array, task_id: Array) -> PolicyOutput:
        del params
        chex.assert_rank([actions, task_id], [1, 0])
        return _score(space, jnp.zeros(shape), actions)

    return Policy(lambda key: {}, sample, evaluate)


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
    sample = jax.jit(policy.sample, static_argnums=3)
    actions = np.asarray(sample(params, key, jnp.int32(task_id), num_samples).actions)
    taken = actions[..., None] == np.arange(space.max_choices)
    return np.mean(taken & space.active(actions)[..., None], axis=0)


class _PolicyNetwork(nn.Module):
    """Declares the parameters and returns them as the plain functions below take them."""

    space: SearchSpace
    num_tasks: int
    hidden_size: int
    action_embedding_size: int
    task_embedding_size: int
    skip_connection: bool
    init_scale: float

    @nn.compact
    def __call__(self) -> _Weights:
        scale = self.init_scale
        uniform = functools.partial(jax.random.uniform, minval=-scale, maxval=scale)

        def init(key: PRNGKey, shape: tuple[int, ...], dtype: jnp.dtype = jnp.float32) -> Array:
            return draw(key, shape, uniform).astype(dtype)

        size = (self.space.num_decisions, self.space.max_choices)
        inputs = self.action_embedding_size + self.task_embedding_size
        features = inputs + self.hidden_size
        task = self.param("task_embedding", init, (self.num_tasks, self.task_embedding_size))
        action = self.param("action_embedding", init, (*size, self.action_embedding_size))
        first = self.param("first_input", init, (self.action_embedding_size,))
        kernel = self.param("head_kernel", init, (size[0], features, size[1]))
        bias = self.param("head_bias", nn.initializers.zeros, size)
        if self.is_initializing():
            cell = nn.OptimizedLSTMCell(
                self.hidden_size, kernel_init=init, recurrent_kernel_init=init, name="cell"
            )
            carry = (jnp.zeros(self.hidden_size), jnp.zeros(self.hidden_size))
            cell(carry, jnp.zeros(inputs))
        cell_params = self.variables["params"]["cell"]

        def gates(prefix: str, name: str) -> Array:
            return jnp.concatenate([cell_params[prefix + gate][name] for gate in "ifgo"], axis=-1)

        skip = kernel[:, self.hidden_size :]
        before_first = jnp.broadcast_to(first, (1, *action.shape[1:]))
        return _Weights(
            task,
            jnp.concatenate([before_first, action[:-1]]),
            gates("i", "kernel"),
            gates("h", "kernel"),
            gates("h", "bias"),
            kernel[:, : self.hidden_size],
            skip if self.skip_connection else jnp.zeros_like(skip),
            bias,
        )


def _sample(space: SearchSpace, weights: _Weights, inputs: _Inputs, noise: Array) -> PolicyOutput:
    """Draws a design by standard Gumbel noise [D, C], -inf where there is no choice.

    The choice whose logit and noise have the largest sum is a draw of the logits' distribution.
    """
    forbidding = jnp.asarray(_forbidding_actions(space))

    def step(rollout: _Rollout, d: Array) -> tuple[_Rollout, Array]:
        gates = inputs.action_gates[d, rollout.previous] + inputs.task_gates
        carry = _lstm(weights, rollout.carry, gates)
        logits = inputs.action_logits[d, rollout.previous] + inputs.task_logits[d]
        logits += carry[1] @ weights.head_recurrent[d]
        action = jnp.argmax(logits + noise[d]).astype(jnp.int32)
        action = jnp.where(_takes_none(forbidding[d], rollout.actions), action, 0)
        return _Rollout(carry, action, rollout.actions.at[d].set(action)), logits

    actions = jnp.zeros(space.num_decisions, jnp.int32)
    start = _Rollout(_start(weights), jnp.int32(0), actions)
    rollout, logits = jax.lax.scan(step, start, jnp.arange(space.num_decisions))
    return _score(space, logits, rollout.actions)


def _evaluate(
    space: SearchSpace, weights: _Weights, actions: Array, task_id: Array
) -> PolicyOutput:
    # All actions are known, so that nothing but the recurrent cell stands in the loop. Rows of
    # tables are taken by products with one-hot vectors, as the gradients of indexing are slow on a
    # CPU; so is that of an einsum over few choices, and the product is summed instead.
    inputs = _project(weights, task_id)
    actions = jnp.where(are_active(space, actions), actions, 0)
    previous = jnp.concatenate([jnp.zeros(1, jnp.int32), actions[:-1]])
    previous = jax.nn.one_hot(previous, space.max_choices)

    def step(carry: _Carry, before: tuple[Array, Array]) -> tuple[_Carry, Array]:
        previous, action_gates = before
        carry = _lstm(weights, carry, previous @ action_gates + inputs.task_gates)
        return carry, carry[1]

    _, outputs = jax.lax.scan(step, _start(weights), (previous, inputs.action_gates))
    logits = jnp.sum(previous[:, :, None] * inputs.action_logits, axis=1) + inputs.task_logits
    logits += jnp.einsum("dh,dhc->dc", outputs, weights.head_recurrent)
    return _score(space, logits, actions)


def _project(weights: _Weights, task_id: Array) -> _Inputs:
    action, task = weights.action_embedding, weights.task_embedding[task_id]
    split = action.shape[-1]
    return _Inputs(
        action @ weights.cell_input[:split],
        jnp.einsum("dpe,dec->dpc", action, weights.head_input[:, :split]),
        task @ weights.cell_input[split:] + weights.cell_bias,
        jnp.einsum("k,dkc->dc", task, weights.head_input[:, split:]) + weights.head_bias,
    )


def _start(weights: _Weights) -> _Carry:
    hidden_size = weights.cell_recurrent.shape[0]
    return jnp.zeros(hidden_size), jnp.zeros(hidden_size)


def _lstm(weights: _Weights, carry: _Carry, inputs: Array) -> _Carry:
    """One step of Flax's LSTM cell, for projected inputs [4H] that hold the bias.

    The cell itself would project its inputs and join its kernels anew at every step.
    """
    c, h = carry
    i, f, g, o = jnp.split(inputs + h @ weights.cell_recurrent, 4)
    c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    return c, jax.nn.sigmoid(o) * jnp.tanh(c)


def _forbidding_actions(space: SearchSpace) -> np.ndarray:
    """Returns which choices of each decision don't let d be active, float32 0 or 1, [D, D, C].

    It includes the decisions that d depends on through others, so that d is active where no action
    of a design forbids it, without a look at what else is active.
    """
    required = space.conditions.copy()
    for d in range(space.num_decisions):  # a decision's parents stand before it
        for parent in np.flatnonzero(space.parents[d]):
            required[d] &= required[parent]
    return (~required).astype(np.float32)


def _takes_none(forbidding: AnyArray, actions: Array) -> Array:
    """Returns whether a design [D] takes none of some choices [..., D, C], bool [...]."""
    taken = jax.nn.one_hot(actions, forbidding.shape[-1])
    return jnp.einsum("...dc,dc->...", forbidding, taken) == 0


def are_active(space: SearchSpace, actions: Array) -> Array:
    """Returns which decisions are active, bool [D], in a design [D], whatever inactive ones hold.

    Whether d is active depends on decisions before it alone, so that others may be undecided.
    """
    forbidding = _forbidding_actions(space)
    if not forbidding.any():  # XLA would take seconds to find out
        return jnp.ones(space.num_decisions, bool)
    return _takes_none(forbidding, actions)


def _score(space: SearchSpace, logits: Array, actions: Array) -> PolicyOutput:
    """Returns log-probabilities and entropies of a design under its logits [D, C].

    An inactive decision takes its first choice at no log-probability and no entropy, so that
    equal children have equal encodings.
    """
    active = are_active(space, actions)
    actions = jnp.where(active, actions, 0)
    mask = jnp.asarray(space.action_mask)
    # Padded choices are masked before the product p log p: masking after it gives NaN gradients.
    log_p = jax.nn.log_softmax(jnp.where(mask, logits, jnp.finfo(logits.dtype).min))
    log_p = jnp.where(mask, log_p, 0.0)
    entropy = -jnp.sum(jnp.where(mask, jnp.exp(log_p) * log_p, 0.0), axis=1)
    taken = jax.nn.one_hot(actions, space.max_choices, dtype=bool)
    log_probs = jnp.sum(jnp.where(taken & active[:, None], log_p, 0.0), axis=1)
    return PolicyOutput(actions, log_probs, jnp.where(active, entropy, 0.0))
