"""Children as a Flax user writes them today: own module and own jitted step for each, in a loop.

What a design decides is decided in Python: a child has the layers that it needs and no others, so
every child is compiled anew. The computation is that of mnms_jax's children, but for one thing:
the moving variance of batch normalisation is the mean of the batches' variances, Flax's way.
"""

import functools
import time
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training import train_state

from benchmarks.children import (
    BATCH_SIZE,
    Arrays,
    Design,
    Result,
    Rows,
    conv_widths,
    embedding_size,
    is_trained,
    num_steps,
)
from mnms_jax.children.text import TextSizes
from mnms_jax.types import Array, Params

_ACTIVATIONS = {
    "relu": nn.relu,
    "relu6": nn.relu6,
    "leaky_relu": nn.leaky_relu,
    "swish": nn.swish,
    "sigmoid": nn.sigmoid,
    "tanh": nn.tanh,
}
_OPTIMIZERS = {
    "sgd": functools.partial(optax.sgd, momentum=0.9),
    "adam": optax.adam,
    "adagrad": optax.adagrad,
}
_INIT = nn.initializers.variance_scaling(1.0, "fan_in", "uniform")
_TABLE_INIT = nn.initializers.uniform(0.2)  # in [0, 0.2), shifted below


class WideTower(nn.Module):
    """A linear layer over TF-IDF n-grams."""

    rows: int
    num_classes: int

    @nn.compact
    def __call__(self, ngrams: Array, weights: Array) -> Array:
        """Returns [B, C] for [B, W]."""
        table = nn.Embed(self.rows, self.num_classes, embedding_init=nn.initializers.zeros)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return jnp.einsum("bw,bwc->bc", weights, table(ngrams)) + bias[None]


class DeepTower(nn.Module):
    """Mean embedding, convolutions' maxima, hidden layers."""

    design: Design
    sizes: TextSizes
    num_classes: int

    @nn.compact
    def __call__(self, tokens: Array, table: Array | None, *, train: bool) -> Array:
        """Returns [B, C] for tokens [B, L] and a pre-trained table [V, E]."""
        design = self.design
        mask = (tokens > 0)[..., None]
        embedded = self._embed(tokens, table) * mask
        features = [embedded.sum(1) / jnp.maximum(mask.sum(1), 1)]
        if design["convolution"]:
            rate = float(design["conv_embedding_dropout"])
            # Whole components of the embeddings are dropped.
            embedded = nn.Dropout(rate, broadcast_dims=(1,), deterministic=not train)(embedded)
        for width in conv_widths(design):
            features.append(self._convolve(embedded, mask, width, train))
        x = jnp.concatenate(features, -1)
        for _ in range(int(design["hidden_layers"])):
            x = nn.Dense(int(design["hidden_size"]), kernel_init=_INIT)(x)
            if design["normalization"] == "batch":
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            elif design["normalization"] == "layer":
                x = nn.LayerNorm(epsilon=1e-5)(x)
            x = _ACTIVATIONS[str(design["hidden_activation"])](x)
            x = nn.Dropout(float(design["hidden_dropout"]), deterministic=not train)(x)
        return nn.Dense(self.num_classes, use_bias=False, kernel_init=_INIT)(x)

    def _embed(self, tokens: Array, table: Array | None) -> Array:
        if table is not None and not is_trained(self.design):
            return jax.lax.stop_gradient(table)[tokens]
        if table is not None:
            rows, size = table.shape
            # A copy, since steps take their state's memory over.
            return nn.Embed(rows, size, embedding_init=lambda *_: jnp.array(table))(tokens)
        hashed = str(self.design["embedding"]).startswith("hashed")
        rows = self.sizes.hashed if hashed else self.sizes.vocabulary

        def init(*args: Any) -> Array:
            return _TABLE_INIT(*args) - 0.1

        return nn.Embed(rows, embedding_size(self.design), embedding_init=init)(tokens)

    def _convolve(self, embedded: Array, mask: Array, width: int, train: bool) -> Array:
        design = self.design
        conv = nn.Conv(
            int(design["conv_filters"]), (width,), padding=[(0, width - 1)], kernel_init=_INIT
        )
        # Windows that begin in the text; the first always, so that the maximum is finite.
        inside = mask.at[:, 0].set(True)
        y = jnp.where(inside, conv(embedded), -jnp.inf).max(1)
        if design["conv_batch_norm"]:
            y = nn.BatchNorm(use_running_average=not train, momentum=0.9)(y)
        y = _ACTIVATIONS[str(design["conv_activation"])](y)
        return nn.Dropout(float(design["conv_dropout"]), deterministic=not train)(y)


class Child(nn.Module):
    """A wide-and-deep classifier."""

    design: Design
    sizes: TextSizes
    num_classes: int

    @nn.compact
    def __call__(self, rows: Rows, table: Array | None, *, train: bool) -> Array:
        """Returns logits [B, C]."""
        wide = WideTower(self.sizes.ngrams, self.num_classes, name="wide")
        deep = DeepTower(self.design, self.sizes, self.num_classes, name="deep")
        return wide(rows.ngrams, rows.weights) + deep(rows.tokens, table, train=train)


class TrainState(train_state.TrainState):
    """Flax's, with batch statistics and the key of dropout."""

    batch_stats: Params
    key: Array


def make_optimizer(design: Design, params: Params) -> optax.GradientTransformation:
    """Returns the optimiser of both towers: L2 on kernels and tables, rates falling to zero."""

    def regularized(tree: Params) -> Params:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key in ("kernel", "embedding"), tree
        )

    def tower(name: str) -> optax.GradientTransformation:
        rate = optax.linear_schedule(float(design[f"{name}_learning_rate"]), 0, num_steps(design))
        decay = optax.add_decayed_weights(float(design[f"{name}_regularization"]), regularized)
        return optax.chain(decay, _OPTIMIZERS[str(design["optimizer"])](rate))

    towers = {name: tower(name) for name in params}
    return optax.multi_transform(towers, {name: name for name in params})


def train_child(design: Design, arrays: Arrays, sizes: TextSizes, seed: int) -> Result:
    """Trains one child from nothing and evaluates it.

    Args:
      design: of the child.
      arrays: its data, on the device.
      sizes: of its tables.
      seed: of its randomness.
    """
    start = time.perf_counter()
    init_key, dropout_key, order_key = jax.random.split(jax.random.key(seed), 3)
    train_step, evaluate = make_steps()
    state = make_state(Child(design, sizes, arrays.num_classes), arrays, init_key, dropout_key)
    compile_seconds = time.perf_counter() - start
    num_rows, loss = arrays.train.labels.size, jnp.float32(0)
    epoch = max(num_rows // BATCH_SIZE, 1)
    for step in range(num_steps(design)):
        if step % epoch == 0:
            if not np.isfinite(loss):
                return Result(None, time.perf_counter() - start, compile_seconds)
            epoch_key = jax.random.fold_in(order_key, step)
            order = np.asarray(jax.random.permutation(epoch_key, num_rows))
        first = step % epoch * BATCH_SIZE
        rows = order.take(np.arange(first, first + BATCH_SIZE), mode="wrap")
        called = time.perf_counter()
        state, loss = train_step(state, arrays, rows)
        if step == 0:
            compile_seconds += time.perf_counter() - called
    jax.block_until_ready(loss)
    called = time.perf_counter()
    accuracy = evaluate(state, arrays)
    compile_seconds += time.perf_counter() - called
    reward = float(accuracy) if np.isfinite(loss) else None
    return Result(reward, time.perf_counter() - start, compile_seconds)


def make_state(model: Child, arrays: Arrays, init_key: Array, dropout_key: Array) -> TrainState:
    """Returns the state of a child before its first step."""
    first = jax.tree.map(lambda x: x[:BATCH_SIZE], arrays.train)
    # Not jitted: what it runs is compiled operation by operation, for the children to come too.
    variables = model.init(init_key, first, arrays.table, train=False)
    return TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        tx=make_optimizer(model.design, variables["params"]),
        batch_stats=variables.get("batch_stats", {}),
        key=dropout_key,
    )


def make_steps() -> tuple[Callable, Callable]:
    """Returns a training step and an evaluation, to be compiled for one child."""

    @functools.partial(jax.jit, donate_argnums=0)
    def train_step(state: TrainState, arrays: Arrays, rows: Array) -> tuple[TrainState, Array]:
        batch = jax.tree.map(lambda x: x[rows], arrays.train)
        key = jax.random.fold_in(state.key, state.step)

        def loss_fn(params: Params) -> tuple[Array, Params]:
            logits, updated = state.apply_fn(
                {"params": params, "batch_stats": state.batch_stats},
                batch,
                arrays.table,
                train=True,
                rngs={"dropout": key},
                mutable=["batch_stats"],
            )
            loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch.labels).mean()
            return loss, updated

        (loss, updated), grads = jax.value_and_grad(loss_fn, has_aux=True)(state.params)
        stats = updated.get("batch_stats", {})
        return state.apply_gradients(grads=grads, batch_stats=stats), loss

    @jax.jit
    def evaluate(state: TrainState, arrays: Arrays) -> Array:
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        logits = state.apply_fn(variables, arrays.validation, arrays.table, train=False)
        return jnp.mean(jnp.argmax(logits, -1) == arrays.validation.labels)

    return train_step, evaluate
