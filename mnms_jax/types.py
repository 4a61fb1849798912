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
    """Labelled examples."""

    # N texts, a tuple; images, uint8 [N, H, W, C]; or records, columns of N values by name.
    inputs: Any
    labels: np.ndarray  # int32 [N], indices into the task's class names


class Task(NamedTuple):
    """A classification data set, split once and for all."""

    name: str
    splits: Mapping[str, Split]  # "train", "validation" and "test"
    class_names: tuple[str, ...]
    kind: str = "text"  # or "image" or "record"

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
    """A controller's policy as pure functions (unbatched; callers vmap)."""

    init: Callable[[PRNGKey], Params]
    sample: Callable[[Params, PRNGKey, Array], PolicyOutput]  # params, key, task_id []
    evaluate: Callable[[Params, Array, Array], PolicyOutput]  # params, actions [D], task_id []


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
    """How one group of a child's parameters is trained."""

    name: str  # "sgd", "adam" or "adagrad"
    learning_rate: float
    regularization: float  # weight of L2 on matrices and tables
    schedule: str = "linear"  # of the learning rate: "linear", "cosine", both to 0, or "constant"


class ChildSpec(NamedTuple):
    """A design, sorted by what it changes.

    Children of one architecture share one compiled program; all the rest is a traced input.
    """

    architecture: Hashable  # shapes and graph
    preprocessing: Hashable  # how the task's inputs are prepared
    hyperparameters: Any  # pytree of scalars and small arrays that the model reads
    optimizers: Mapping[str, OptimizerSettings]  # by top-level name of the parameters
    num_samples: int  # training examples seen, counted with repeats
    unpadded: Hashable = None  # the architecture that has no unused units; None: it is the same
    unused: int = 0  # numbers among its parameters that the design has no use for


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
    """A kind of child: what can be decided, and the models that result."""

    space: Any  # SearchSpace
    make_spec: Callable[[Mapping[str, Choice]], ChildSpec]  # design by name -> spec
    make_model: Callable[[Hashable, int], ChildModel]  # architecture, number of classes


class ChildData(NamedTuple):
    """One task's data as the program of one architecture takes it.

    Rows to train on come first and those to evaluate on after them, both padded. Each place in a
    batch takes rows from a stratum of its own (training/program.py): rows may be sorted, and those
    of a stratum are in random order.
    """

    inputs: Any  # pytree of arrays [N, ...]
    labels: AnyArray  # int32 [N]
    num_train: AnyArray  # int32 [], from row 0
    first_evaluation: AnyArray  # int32 [], row
    num_evaluation: AnyArray  # int32 []
    num_classes: AnyArray  # int32 [], of this task; logits beyond are masked
    constants: Any  # pytree of arrays without rows, e.g. a pre-trained table
