"""A small text child, and data for it, that several tests share."""

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.children.ragged import Ragged
from mnms_jax.children.text import TextBatch, make_text_family, make_text_model

CONVOLUTION = {
    "convolution": True,
    "conv_activation": "relu",
    "conv_batch_norm": False,
    "conv_max_ngram": 3,
    "conv_dropout": 0.0,
    "conv_filters": 16,
    "conv_embedding_dropout": 0.0,
}


def text_design(**changes):
    design = {
        "embedding": "glove50",
        "fine_tune": False,
        "lowercase": True,
        "strip": True,
        "convolution": False,
        "hidden_layers": 0,
        "optimizer": "sgd",
        "deep_learning_rate": 0.001,
        "deep_regularization": 0.0,
        "wide_learning_rate": 0.001,
        "wide_regularization": 0.0,
        "samples": 10_000,
    }
    return {**design, **changes}


def ragged(tokens):
    return Ragged(tokens, tokens.shape[1:])


def make_inputs(architecture, num_rows=6, length=5):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, architecture.rows, (num_rows, length)).astype(np.int32)
    tokens[:, 3:] = 0
    table = rng.normal(size=(architecture.rows, architecture.size)).astype(np.float32)
    table[0] = 0
    pooled = table[tokens[:, :3]].mean(1)
    ngrams = rng.integers(0, architecture.ngrams, (num_rows, 2 * length)).astype(np.int32)
    weights = rng.uniform(size=ngrams.shape).astype(np.float32)
    batch = TextBatch(
        pooled if architecture.pooled else None,
        None if architecture.pooled else ragged(tokens),
        ngrams,
        weights,
    )
    table = table if architecture.pretrained and not architecture.pooled else None
    return jax.tree.map(jnp.asarray, (batch, table))


def make_child(**changes):
    """Returns the spec, the model (two classes), a batch, the table and the variables."""
    spec = make_text_family("cpu").make_spec(text_design(**changes))
    model = make_text_model(spec.architecture, 2)
    batch, table = make_inputs(spec.architecture)
    variables = model.init(jnp.uint32(1), batch, table, spec.hyperparameters)
    return spec, model, batch, table, variables


def evaluate(child, **inputs):
    """Returns the logits of a child with other inputs than its own."""
    spec, model, batch, table, variables = child
    hyper, batch = spec.hyperparameters, batch._replace(**inputs)
    return model.apply(variables, batch, table, hyper, jnp.uint32(0), False)[0]
