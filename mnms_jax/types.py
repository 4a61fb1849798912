"""Aliases and NamedTuples shared by all modules.

Shape letters used throughout: B trials in a round, D decisions, C most choices of a decision,
T tasks, N rows (of data, or of a replay bank), L tokens in a text, V rows of an embedding table.
"""

from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

Array: TypeAlias = jax.Array
PRNGKey: TypeAlias = jax.Array
Params: TypeAlias = Any
AnyArray: TypeAlias = Any  # a jax.Array inside compiled code, often a NumPy array outside
Choice: TypeAlias = str | int | float | bool

# What may be chosen among: here, so that `--help` needn't import what makes them.
LEARNERS = ("ppo", "reinforce", "trpo", "urex")
EMBEDDINGS = ("mean", "random", "similar", "inferred")
TRAINED = ("all", "embedding")


class UserError(ValueError):
    """A mistake that the user can mend; experiments show its message without a traceback."""


class Split(NamedTuple):
    """Labelled examples.

    Attributes:
      inputs: N texts, a tuple; images, uint8 [N, H, W, C]; or records, columns of N values by name.
      labels: int32 [N], indices into the task's class names.
    """

    inputs: Any
    labels: np.ndarray


class Task(NamedTuple):
    """A classification data set, split once and for all.

    Attributes:
      name: of the task; its trials' randomness comes from it, among others.
      splits: "train", "validation" and "test".
      class_names: in the order of the labels.
      kind: "text", "image" or "record"; or a name of your own for inputs of your own.
    """

    name: str
    splits: Mapping[str, Split]
    class_names: tuple[str, ...]
    kind: str = "text"

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class TaskTraits(NamedTuple):
    """What can be said of a task before any trial on it, from its training examples."""

    num_examples: int
    num_classes: int
    mean_words: float  # of a text; pixels of an image, columns of a record
    majority_share: float  # of the commonest class
    words: tuple[str, ...]  # the commonest ones; none, but of texts


class PolicyOutput(NamedTuple):
    """One rollout of the policy (unbatched; inactive decisions hold zeros)."""

    actions: Array  # int32 [D]
    log_probs: Array  # [D]
    entropy: Array  # [D]


class Policy(NamedTuple):
    """A controller's policy as pure functions, of one task; callers vmap.

    Attributes:
      init: key -> params.
      sample: params, key, task_id [], static number M -> M rollouts, each array with a first axis.
      evaluate: params, actions [D], task_id [] -> the rollout that takes these actions.
    """

    init: Callable[[PRNGKey], Params]
    sample: Callable[[Params, PRNGKey, Array, int], PolicyOutput]
    evaluate: Callable[[Params, Array, Array], PolicyOutput]


class WarmStart(NamedTuple):
    """How a search on new tasks starts from source tasks.

    Attributes:
      embedding: of a new task. "mean": of the sources' embeddings. "random": fresh, as published.
        "similar": a mixture of the sources' by their similarity to the new task. "inferred": a
        mixture that follows the new task's rewards, on top of which the learner moves it.
      trained: what the targets' rewards change: "all" weights, or the tasks' "embedding" alone.
      imitation_steps: of pre-training on the sources' best trials; 0: none.
      ranked: whether a model of the sources' and the task's rewards chooses, among samples of the
        policy, random designs, the sources' best ones, and variants of good ones.
      suggested: of a task's first so many trials, every other one is the sources' best design that
        wasn't tried yet, whatever the model says of it. So suggestions that are worth nothing cost
        at most half of these trials. Without the model there are none.
      belief: prior probability that this model tells something of a new task; 1: no guard against
        negative transfer.
      replay: whether the sources' trials are learned from all along, so that the policy does not
        forget them.
    """

    embedding: str = "mean"
    trained: str = "all"
    imitation_steps: int = 200
    ranked: bool = True
    suggested: int = 10
    belief: float = 0.5
    replay: bool = False


class OptimizerSettings(NamedTuple):
    """How one group of a child's parameters is trained.

    Attributes:
      name: "sgd", "adam" or "adagrad".
      learning_rate: at the beginning.
      regularization: weight of L2 on matrices and tables.
      schedule: of the learning rate: "linear" or "cosine", both to 0, or "constant".
    """

    name: str
    learning_rate: float
    regularization: float
    schedule: str = "linear"


class ChildSpec(NamedTuple):
    """A design, sorted by what it changes.

    Children of one architecture share one compiled program; all the rest is a traced input.

    Attributes:
      architecture: whatever changes shapes or the graph; `ChildFamily.make_model` takes it.
      preprocessing: how the task's inputs are prepared, for the function that gives the trainer its
        data; None if there is one way only.
      hyperparameters: pytree of NumPy scalars and small arrays, of the same shapes and types for
        all designs of an architecture, that the model reads.
      optimizers: one for each group of parameters, by their top-level name.
      num_samples: training examples seen, counted with repeats.
      unpadded: the architecture without unused units, whose parameters are counted for rewards that
        have `params` in them; None: it is `architecture`.
      unused: numbers among its parameters that the design has no use for, which don't count either.
    """

    architecture: Hashable
    preprocessing: Hashable
    hyperparameters: Any
    optimizers: Mapping[str, OptimizerSettings]
    num_samples: int
    unpadded: Hashable = None
    unused: int = 0


class ChildModel(NamedTuple):
    """A child as pure functions of its architecture (one batch; variables as Flax has them).

    Attributes:
      init: seed (uint32 []), batch, constants, hyperparameters -> variables.
      apply: variables, batch, constants, hyperparameters, seed (uint32 [], of the dropout),
        training (bool []) -> logits [B, num_classes], batch statistics, changed when training.
    """

    init: Callable[[Array, Any, Any, Any], Params]
    apply: Callable[[Params, Any, Any, Any, Array, AnyArray], tuple[Array, Params]]


class ChildFamily(NamedTuple):
    """A kind of child: what can be decided, and the models that result.

    Attributes:
      space: the SearchSpace.
      make_spec: design, choices of the active decisions by name -> spec.
      make_model: architecture, number of classes -> model.
    """

    space: Any
    make_spec: Callable[[Mapping[str, Choice]], ChildSpec]
    make_model: Callable[[Hashable, int], ChildModel]


class ChildData(NamedTuple):
    """One task's data as the program of one architecture takes it.

    Rows to train on come first and those to evaluate on after them, both padded. Each place in a
    batch takes rows from a stratum of its own (training/program.py): rows may be sorted, and those
    of a stratum are in random order.

    Attributes:
      inputs: pytree of arrays [N, ...].
      labels: int32 [N].
      num_train: int32 [], rows to train on, from row 0.
      first_evaluation: int32 [], the first row to evaluate on.
      num_evaluation: int32 [], rows to evaluate on.
      num_classes: int32 [], of this task; logits beyond are masked.
      constants: pytree of arrays without rows, e.g. a pre-trained table.
    """

    inputs: Any
    labels: AnyArray
    num_train: AnyArray
    first_evaluation: AnyArray
    num_evaluation: AnyArray
    num_classes: AnyArray
    constants: Any
