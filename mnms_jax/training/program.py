"""Training of one child as one pure function, compiled once for each architecture."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mnms_jax.children.layers import counter_bits, mix
from mnms_jax.training.optimizer import Coefficients, Slots, apply_gradients, init_slots
from mnms_jax.types import AnyArray, Array, ChildData, ChildModel, Params

BATCH_SIZE = 128
EVALUATION_BATCH_SIZE = 256


class Recipe(NamedTuple):
    """A child's traced inputs."""

    hyperparameters: Any  # what the model reads
    optimizers: dict[str, Coefficients]  # by group of parameters
    num_steps: AnyArray  # int32 []


class Outcome(NamedTuple):
    """What training a child gave."""

    accuracy: Array  # [], on the evaluation rows; NaN when training diverged
    loss: Array  # [], of the last batch
    num_steps: Array  # int32 [], steps made


class _Loop(NamedTuple):
    step: Array  # int32 []
    loss: Array  # []
    order: Array  # int32 [N], rows in this epoch's order
    params: Params
    batch_stats: Params
    slots: Slots


Program = Callable[[Array, Recipe, ChildData], tuple[Outcome, Params]]


def make_program(model: ChildModel) -> Program:
    """Returns the function seed, recipe, data -> outcome, variables (unbatched, to be jitted).

    Training sees shuffled batches of BATCH_SIZE rows, each epoch in another order, and stops at
    once when the loss isn't finite. All randomness comes from the seed, uint32 [].
    """

    def train(seed: Array, recipe: Recipe, data: ChildData) -> tuple[Outcome, Params]:
        hyper, groups = recipe.hyperparameters, recipe.optimizers
        first_batch = jax.tree.map(lambda rows: rows[:BATCH_SIZE], data.train)
        variables = model.init(seed, first_batch, data.constants, hyper)
        steps_an_epoch = jnp.maximum(data.num_train // BATCH_SIZE, 1)

        def loss_fn(params: Params, loop: _Loop, rows: Array) -> tuple[Array, Params]:
            batch = jax.tree.map(lambda x: x[rows], data.train)
            step_seed = mix(seed ^ mix(loop.step.astype(jnp.uint32) + 1))
            logits, batch_stats = model.apply(
                {"params": params, "batch_stats": loop.batch_stats},
                batch,
                data.constants,
                hyper,
                step_seed,
            )
            log_p = jax.nn.log_softmax(_mask_classes(logits, data.num_classes))
            picked = jnp.take_along_axis(log_p, data.train_labels[rows][:, None], 1)
            return -jnp.mean(picked), batch_stats

        def body(loop: _Loop) -> _Loop:
            epoch, position = jnp.divmod(loop.step, steps_an_epoch)
            order = jax.lax.cond(
                position == 0,
                lambda: _shuffle(seed, epoch, data.train_labels.size, data.num_train),
                lambda: loop.order,
            )
            index = position * BATCH_SIZE + jnp.arange(BATCH_SIZE)
            rows = order[index % data.num_train]
            (loss, batch_stats), grads = jax.value_and_grad(loss_fn, has_aux=True)(
                loop.params, loop, rows
            )
            params, slots = apply_gradients(
                loop.params, grads, loop.slots, groups, loop.step, recipe.num_steps
            )
            return _Loop(loop.step + 1, loss, order, params, batch_stats, slots)

        start = _Loop(
            jnp.int32(0),
            jnp.float32(0),
            jnp.zeros(data.train_labels.size, jnp.int32),
            variables["params"],
            variables.get("batch_stats", {}),
            init_slots(variables["params"], groups),
        )
        loop = jax.lax.while_loop(
            lambda loop: (loop.step < recipe.num_steps) & jnp.isfinite(loop.loss), body, start
        )
        variables = {"params": loop.params, "batch_stats": loop.batch_stats}
        logits = predict(model, variables, data.evaluation, data.constants, hyper)
        logits = _mask_classes(logits, data.num_classes)
        finite = jnp.isfinite(loop.loss) & jnp.all(jnp.isfinite(logits))
        accuracy = jnp.where(finite, _accuracy(logits, data), jnp.nan)
        return Outcome(accuracy, loop.loss, loop.step), variables

    return train


def predict(
    model: ChildModel, variables: Params, inputs: Any, constants: Any, hyperparameters: Any
) -> Array:
    """Returns logits [M, C] for inputs of M rows, EVALUATION_BATCH_SIZE rows at a time."""

    def chunk(batch: Any) -> Array:
        return model.apply(variables, batch, constants, hyperparameters, None)[0]

    num_rows = jax.tree.leaves(inputs)[0].shape[0]
    padding = -num_rows % EVALUATION_BATCH_SIZE
    chunks = jax.tree.map(
        lambda x: jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1))).reshape(
            -1, EVALUATION_BATCH_SIZE, *x.shape[1:]
        ),
        inputs,
    )
    logits = jax.lax.map(chunk, chunks)
    return logits.reshape(-1, logits.shape[-1])[:num_rows]


def _mask_classes(logits: Array, num_classes: Array) -> Array:
    return jnp.where(jnp.arange(logits.shape[-1]) < num_classes, logits, -1e9)


def _accuracy(logits: Array, data: ChildData) -> Array:
    correct = jnp.argmax(logits, -1) == data.evaluation_labels
    valid = jnp.arange(correct.size) < data.num_evaluation
    return jnp.sum(correct & valid) / data.num_evaluation


def _shuffle(seed: Array, epoch: Array, num_rows: int, num_valid: Array) -> Array:
    """Returns an order of the rows, int32 [N], in which the valid ones come first, at random."""
    bits = counter_bits(seed + mix(epoch.astype(jnp.uint32) + 1), (num_rows,))
    last = jnp.uint32(2**32 - 1)
    keys = jnp.where(jnp.arange(num_rows) < num_valid, jnp.minimum(bits, last - 1), last)
    return jnp.argsort(keys).astype(jnp.int32)
