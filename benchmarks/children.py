"""The children that are trained: those that ways of training are compared on, and small ones."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

import mnms_jax as mnms
from mnms_jax.types import AnyArray, Choice

BATCH_SIZE = 128
PRESET = "cpu"
Design = Mapping[str, Choice]


class Rows(NamedTuple):
    """Encoded texts of a split with their labels."""

    tokens: AnyArray  # int32 [N, L] words, or [N, W] hashed n-grams; 0 is padding
    ngrams: AnyArray  # int32 [N, W]
    weights: AnyArray  # [N, W], TF-IDF
    labels: AnyArray  # int32 [N]


class Arrays(NamedTuple):
    """All that a child is trained and evaluated on, without padded rows."""

    train: Rows
    validation: Rows
    table: AnyArray | None  # [V, E], pre-trained vectors, if the design names any; E is padded
    num_classes: int


class Result(NamedTuple):
    """What training a child gave."""

    reward: float | None  # validation accuracy; None when training diverged
    seconds: float
    compile_seconds: float  # in the first calls of a child's functions; 0 where there are none


class Work(NamedTuple):
    """What the children to train need, tasks taking turns: child i is for task i mod T."""

    family: mnms.ChildFamily
    inputs: mnms.TextInputs
    requests: list[mnms.Request]


def small_family() -> mnms.ChildFamily:
    """Returns text children that train in a fraction of a second; some of them diverge."""
    family = mnms.make_text_family("cpu", {})
    choices: dict[str, tuple] = {
        "embedding": ("random32", "hashed32"),
        "lowercase": (True,),
        "strip": (True,),
        "convolution": (False,),
        "hidden_layers": (0,),
        "optimizer": ("adam", "sgd"),
        "deep_learning_rate": (0.005, 0.01, 0.05, 1e30),
        "deep_regularization": (0.0, 1e-4, 1e-3),
        "wide_learning_rate": (0.005, 0.01, 0.05),
        "wide_regularization": (0.0, 1e-4),
        "samples": (2560, 5120, 10240, 20480),
    }
    decisions = [d for d in family.space.decisions if d.name in choices]
    space = mnms.SearchSpace(d._replace(choices=choices[d.name]) for d in decisions)
    return family._replace(space=space)


def make_work(tasks: Sequence[mnms.Task], num_children: int, seed: int) -> Work:
    """Returns children drawn uniformly from the preset's search space, the same for every way."""
    family = mnms.make_text_family(PRESET)
    inputs = mnms.TextInputs(tasks, mnms.PRESETS[PRESET], {"glove50": mnms.glove50()})
    rng = np.random.default_rng(seed)
    requests = []
    for i in range(num_children):
        actions = [rng.integers(len(decision.choices)) for decision in family.space.decisions]
        task_id = i % len(tasks)
        design = family.space.decode(actions)
        requests.append(mnms.Request(task_id, tasks[task_id].name, i, design))
    return Work(family, inputs, requests)


def nth_request(requests: Sequence[mnms.Request], index: int) -> mnms.Request:
    """Returns child `index`; beyond the last, the same designs again with new trial numbers."""
    return requests[index % len(requests)]._replace(trial=index)


def num_steps(design: Design) -> int:
    """Returns the batches that a child sees."""
    return -(-int(design["samples"]) // BATCH_SIZE)


def embedding_size(design: Design) -> int:
    """Returns the length E of a design's embeddings, which ends the name: `random32`."""
    return int("".join(filter(str.isdigit, str(design["embedding"]))))


def conv_widths(design: Design) -> range:
    """Returns the widths of a design's convolutions."""
    return range(2, 1 + (int(design["conv_max_ngram"]) if design["convolution"] else 1))


def is_trained(design: Design) -> bool:
    """Returns whether a design trains its embeddings."""
    return bool(design.get("fine_tune", True))


def kind_of(design: Design) -> str:
    """Returns what mostly decides a child's cost."""
    table = "trained" if is_trained(design) else "frozen"
    if design["convolution"]:
        return f"{table} conv"
    return f"{table} hidden" if design["hidden_layers"] else f"{table} linear"


def arrays_of(family: mnms.ChildFamily, inputs: mnms.TextInputs, request: mnms.Request) -> Arrays:
    """Returns a child's data as somebody without this library would hold it: tokens and a table.

    The data of a design whose embeddings are trained is taken, since ours holds but the pooled
    embeddings where they are frozen.
    """
    design = dict(request.design)
    if "fine_tune" in design:
        design["fine_tune"] = True
    data = inputs.child_data(request.task_id, family.make_spec(design))
    batch = data.inputs
    tokens = batch.tokens.values

    def rows(first: AnyArray, count: AnyArray) -> Rows:
        part = slice(int(first), int(first + count))
        return Rows(*(x[part] for x in (tokens, batch.ngrams, batch.weights, data.labels)))

    validation = rows(data.first_evaluation, data.num_evaluation)
    return Arrays(rows(0, data.num_train), validation, data.constants, int(data.num_classes))


def num_tokens(arrays: Arrays) -> float:
    """Returns the mean length of the training texts, without padding."""
    return float(np.mean(np.sum(np.asarray(arrays.train.tokens) > 0, 1)))


def step_flops(design: Design, tokens: float, num_classes: int) -> float:
    """Returns the useful floating-point operations of one training step.

    Counted are the matrix products of the deep tower (convolutions, hidden layers, head), thrice:
    forward, and for the gradients of inputs and of weights. Look-ups in tables, pooling, the wide
    tower, activations and updates count nothing.

    Args:
      design: of the child.
      tokens: mean length of its sequences, without padding.
      num_classes: of the task.
    """
    size = features = embedding_size(design)
    forward = 0.0
    for width in conv_widths(design):
        filters = int(design["conv_filters"])
        forward += tokens * width * size * filters  # a window begins at every token
        features += filters
    for _ in range(int(design["hidden_layers"])):
        forward += features * int(design["hidden_size"])
        features = int(design["hidden_size"])
    forward += features * num_classes
    return 3 * 2 * BATCH_SIZE * forward
