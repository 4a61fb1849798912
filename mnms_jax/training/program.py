"""Training of one child as one pure function, compiled once for each architecture."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.children.layers import counter_bits, mix
from mnms_jax.training.optimizer import Coefficients, apply_gradients, init_slots
from mnms_jax.types import AnyArray, Array, ChildData, ChildModel, Params

BATCH_SIZE = 128
EVALUATION_BATCH_SIZE = 256


class Recipe(NamedTuple):
    """A child's traced inputs, with R rungs at which a hopeless child is stopped."""

    hyperparameters: Any  # what the model reads
    optimizers: dict[str, Coefficients]  # by group of parameters
    num_steps: AnyArray  # int32 []
    rung_steps: AnyArray  # int32 [R], ascending; those that aren't below num_steps don't count
    rung_accuracies: AnyArray  # [R], to be reached there to go on


class Outcome(NamedTuple):
    """What training a child gave."""

    accuracy: Array  # [], on the evaluation rows; NaN when training diverged
    loss: Array  # [], of the last batch
    num_steps: Array  # int32 [], steps made
    rungs: Array  # [R], accuracies at the rungs; NaN where it never came
    logits: Array  # [M, BATCH_SIZE, C], of the last evaluation's batches, see `evaluated_logits`


class _Loop(NamedTuple):
    step: Array  # int32 [], of training
    rung: Array  # int32 [], the next one; R is the end of training, R + 1 is over
    position: Array  # int32 [], batches of this rung's evaluation
    correct: Array  # int32 [], of their rows
    accuracies: Array  # [R + 1], NaN where it hasn't come yet
    loss: Array  # [], of the last batch trained on
    logits: Array  # [M + 1, BATCH_SIZE, C], of evaluated batches; the last ones are of no use
    params: Params
    batch_stats: Params
    slots: Params


Program = Callable[[Array, Recipe, ChildData], tuple[Outcome, Params]]


def make_program(model: ChildModel, axis_name: str | None = None) -> Program:
    """Returns the function seed, recipe, data -> outcome, variables (unbatched, to be jitted).

    Training sees shuffled batches of BATCH_SIZE rows, each epoch in another order, and stops at
    once when the loss isn't finite. At every rung the child is evaluated, and goes on if it is good
    enough (successive halving: Jamieson & Talwalkar 2016, arXiv:1502.07943). All randomness comes
    from the seed, uint32 []. Evaluation rows go through the same compiled step with its update
    thrown away: a few per cent of its time, for a program that compiles faster by all of a second
    forward pass.

    Args:
      model: the child.
      axis_name: set when the caller vmaps over children; all of them then stop with the last one.
    """

    def train(seed: Array, recipe: Recipe, data: ChildData) -> tuple[Outcome, Params]:
        hyper, groups = recipe.hyperparameters, recipe.optimizers
        first_batch = jax.tree.map(lambda rows: rows[:BATCH_SIZE], data.inputs)
        variables = model.init(seed, first_batch, data.constants, hyper)
        num_rungs = len(recipe.rung_steps)
        ends = jnp.append(jnp.minimum(recipe.rung_steps, recipe.num_steps), recipe.num_steps)
        needed = jnp.append(recipe.rung_accuracies, 0.0)
        loss_fn = jax.value_and_grad(_make_loss(model, seed, hyper, data), has_aux=True)

        def is_active(loop: _Loop) -> Array:
            return (loop.rung <= num_rungs) & jnp.isfinite(loop.loss)

        def body(loop: _Loop) -> _Loop:
            active = is_active(loop)
            end = ends[loop.rung]
            training = active & (loop.step < end)
            evaluated, counts = _evaluation_rows(loop.position, data.num_evaluation)
            rows = jnp.where(
                training,
                _training_rows(seed, loop.step, data.num_train),
                data.first_evaluation + evaluated,
            )
            (loss, aux), grads = loss_fn(loop.params, loop, rows, training)
            logits, correct, batch_stats = aux
            params, slots = apply_gradients(
                loop.params, grads, loop.slots, groups, loop.step, recipe.num_steps, training
            )
            evaluating = active & ~training
            slot = jnp.where(evaluating, loop.position, len(loop.logits) - 1)
            position = loop.position + evaluating
            num_correct = loop.correct + jnp.sum(correct & counts & evaluating)
            there = position == _num_batches(data.num_evaluation)
            accuracy = num_correct / data.num_evaluation
            over = (end == recipe.num_steps) | (accuracy < needed[loop.rung])
            here = there & (jnp.arange(num_rungs + 1) == loop.rung)
            return _Loop(
                loop.step + training,
                jnp.where(there & over, num_rungs + 1, loop.rung + there),
                jnp.where(there, 0, position),
                jnp.where(there, 0, num_correct),
                jnp.where(here, accuracy, loop.accuracies),
                # The last step's divergence shows in the first loss of the evaluation.
                jnp.where(active & (training | ~jnp.isfinite(loss)), loss, loop.loss),
                jax.lax.dynamic_update_index_in_dim(loop.logits, logits, slot, 0),
                params,
                batch_stats,
                slots,
            )

        def any_active(loop: _Loop) -> Array:
            active = is_active(loop)
            if axis_name is None:
                return active
            return jax.lax.pmax(active.astype(jnp.int32), axis_name) > 0

        example = variables, first_batch, data.constants, hyper, seed, False
        logits = _room_for_logits(model, example, len(data.labels))
        loop = jax.lax.while_loop(any_active, body, _start(variables, groups, num_rungs, logits))
        last = jnp.sum(jnp.isfinite(loop.accuracies)) - 1
        accuracy = jnp.where(jnp.isfinite(loop.loss), loop.accuracies[last], jnp.nan)
        rungs = jnp.where(recipe.rung_steps < recipe.num_steps, loop.accuracies[:-1], jnp.nan)
        outcome = Outcome(accuracy, loop.loss, loop.step, rungs, loop.logits[:-1])
        return outcome, {"params": loop.params, "batch_stats": loop.batch_stats}

    return train


def with_lanes(model: ChildModel, lanes: int) -> Callable:
    """Returns a child's program over a leading axis of `lanes` children."""
    if lanes > 1:
        return jax.vmap(make_program(model, "lanes"), axis_name="lanes")
    program = make_program(model)

    def one_lane(*inputs: Any) -> Any:
        outputs = program(*jax.tree.map(lambda x: x[0], inputs))
        return jax.tree.map(lambda x: x[None], outputs)

    return one_lane


@jax.custom_vjp
def cross_entropy(logits: Array, labels: Array) -> Array:
    """Returns the mean cross-entropy of logits [B, C] and labels, int32 [B]."""
    return _cross_entropy(logits, labels)[0]


def _cross_entropy(logits: Array, labels: Array) -> tuple[Array, tuple]:
    log_p = jax.nn.log_softmax(logits)
    one_hot = jax.nn.one_hot(labels, logits.shape[-1])
    loss = -jnp.sum(one_hot * log_p) / len(labels)
    return loss, (log_p, one_hot)


def _cross_entropy_backward(residuals: tuple, grad: Array) -> tuple:
    log_p, one_hot = residuals
    return grad * (jnp.exp(log_p) - one_hot) / len(log_p), None


cross_entropy.defvjp(_cross_entropy, _cross_entropy_backward)


def predict(
    model: ChildModel, variables: Params, inputs: Any, constants: Any, hyperparameters: Any
) -> Array:
    """Returns logits [M, C] for inputs of M rows, EVALUATION_BATCH_SIZE rows at a time.

    Rows come in any order, so that ragged ones need one length for all.
    """

    def chunk(batch: Any) -> Array:
        return model.apply(variables, batch, constants, hyperparameters, jnp.uint32(0), False)[0]

    num_rows = jax.tree.leaves(inputs)[0].shape[0]
    # Written so that it holds for an unknown number of rows too, as jax.export has it.
    num_chunks = (num_rows + EVALUATION_BATCH_SIZE - 1) // EVALUATION_BATCH_SIZE
    padding = num_chunks * EVALUATION_BATCH_SIZE - num_rows
    chunks = jax.tree.map(
        lambda x: jnp.pad(x, ((0, padding), *[(0, 0)] * (x.ndim - 1))).reshape(
            num_chunks, EVALUATION_BATCH_SIZE, *x.shape[1:]
        ),
        inputs,
    )
    logits = jax.lax.map(chunk, chunks)
    return logits.reshape(-1, logits.shape[-1])[:num_rows]


def evaluated_logits(batches: np.ndarray, num_rows: int) -> np.ndarray:
    """Returns the logits [num_rows, C] of the rows that a child was evaluated on, in their order.

    Args:
      batches: an outcome's logits, [M, BATCH_SIZE, C].
      num_rows: of the data to evaluate on.
    """
    place = np.arange(BATCH_SIZE + 1) * num_rows // BATCH_SIZE
    sizes = np.diff(place)  # of the places' strata
    counts = np.arange(len(batches))[None] < sizes[:, None]
    return np.swapaxes(batches, 0, 1)[counts]


def num_logits_batches(num_rows: int) -> int:
    """Returns for how many batches' logits a program has room, given its data's rows.

    How many of these are to be evaluated isn't known when it is compiled.
    """
    return num_rows // BATCH_SIZE + 2


def _room_for_logits(model: ChildModel, example: tuple, num_rows: int) -> Array:
    shape = jax.eval_shape(model.apply, *example)[0].shape
    return jnp.zeros((num_logits_batches(num_rows), *shape))


def _make_loss(model: ChildModel, seed: Array, hyper: Any, data: ChildData) -> Callable:
    """Returns params, loop, rows, training -> loss, (logits, hits, new batch statistics)."""

    def loss_fn(params: Params, loop: _Loop, rows: Array, training: Array) -> tuple[Array, tuple]:
        batch = _take(data.inputs, rows)
        step_seed = mix(seed ^ mix(loop.step.astype(jnp.uint32) + 1))
        variables = {"params": params, "batch_stats": loop.batch_stats}
        logits, batch_stats = model.apply(
            variables, batch, data.constants, hyper, step_seed, training
        )
        valid = jnp.arange(logits.shape[-1]) < data.num_classes
        logits = jnp.where(valid[None], logits, -1e9)
        labels = _take(data.labels, rows)
        hits = jnp.argmax(logits, -1) == labels
        return cross_entropy(logits, labels), (logits, hits, batch_stats)

    return loss_fn


def _start(
    variables: Params, groups: dict[str, Coefficients], num_rungs: int, logits: Array
) -> _Loop:
    zero, params = jnp.int32(0), variables["params"]
    return _Loop(
        step=zero,
        rung=zero,
        position=zero,
        correct=zero,
        accuracies=jnp.full(num_rungs + 1, jnp.nan),
        loss=jnp.float32(0),
        logits=logits,
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        slots=init_slots(params, groups),
    )


def _take(tree: Any, rows: Array) -> Any:
    return jax.tree.map(lambda x: x.at[rows].get(mode="promise_in_bounds"), tree)


def _training_rows(seed: Array, step: Array, num_train: Array) -> Array:
    """Returns the rows of the batch of a step, int32 [BATCH_SIZE].

    Each place in a batch walks its own stratum once an epoch, from a random start: every row is
    seen, and batches differ from epoch to epoch, with no order to be sorted and kept. Strata of k
    rows see one of them twice where others have k + 1.
    """
    first, size = _strata(num_train)
    size = jnp.maximum(size, 1)
    step, length = step.astype(jnp.uint32), _num_batches(num_train).astype(jnp.uint32)
    epoch = step // length
    start = counter_bits(seed + mix(epoch + 1), (BATCH_SIZE,)) % size
    return (first + (start + step - epoch * length) % size).astype(jnp.int32)


def _evaluation_rows(position: Array, num_rows: Array) -> tuple[Array, Array]:
    """Returns the rows of a batch, int32 [BATCH_SIZE], and which of them count, bool.

    Each place walks its stratum from the start; one that is through stays at its end.

    Args:
      position: int32 [], number of the batch.
      num_rows: int32 [], rows to evaluate on.
    """
    first, size = (x.astype(jnp.int32) for x in _strata(num_rows))
    return first + jnp.clip(position, 0, jnp.maximum(size - 1, 0)), position < size


def _num_batches(num_rows: Array) -> Array:
    return -(-num_rows // BATCH_SIZE)


def _strata(num_rows: Array) -> tuple[Array, Array]:
    """Cuts rows into BATCH_SIZE strata, one for each place in a batch.

    Returns:
      Each stratum's first row and its size, uint32 [BATCH_SIZE]. Sizes differ by one at most; with
      fewer rows than places some are 0, their first row being another's.
    """
    place = jnp.arange(BATCH_SIZE, dtype=jnp.uint32)
    count = num_rows.astype(jnp.uint32)
    first = place * count // BATCH_SIZE  # no overflow below 2^25 rows
    return first, (place + 1) * count // BATCH_SIZE - first
