"""What became of a trial: a trained child's metrics and its reward."""

from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np
from scipy import special

from mnms_jax.reward import ACCURACY, measure, parse_reward
from mnms_jax.training.program import BATCH_SIZE, Outcome, evaluated_logits
from mnms_jax.types import ChildData, ChildFamily, ChildModel, ChildSpec, Params


class TrialResult(NamedTuple):
    """What became of a trial.

    Attributes:
      reward: by default the validation accuracy; None when failed.
      failed: the reason, or None.
      seconds: of training, without compilation.
      samples: training examples seen.
      bucket: the compiled program, in words.
      rungs: accuracies at the rungs on the way.
      stopped: at the last of these rungs, not being good enough.
      metrics: all that rewards can be made of, by name, as far as defined.
    """

    reward: float | None
    failed: str | None
    seconds: float
    samples: int
    bucket: str
    rungs: Sequence[float] = ()
    stopped: bool = False
    metrics: Mapping[str, float] = {}


class Judge:
    """Says what became of trials.

    Args:
      family: the kind of child.
      reward: formula, see `parse_reward`.
    """

    def __init__(self, family: ChildFamily, reward: str):
        self._family = family
        self._reward = parse_reward(reward)
        self._num_params: dict[tuple[Hashable, int], int] = {}

    def __call__(
        self, outcome: Outcome, spec: ChildSpec, data: ChildData, seconds: float
    ) -> TrialResult:
        """Returns what a child's outcome, on the host, says of its trial.

        A child that was stopped early is judged by what it was then.

        Args:
          outcome: of its training.
          spec: its design.
          data: that it was trained on.
          seconds: that this took.
        """
        steps, most = int(outcome.num_steps), int(num_steps(spec.num_samples))
        rungs = tuple(outcome.rungs[np.isfinite(outcome.rungs)].tolist())
        label = str(spec.architecture)
        result = TrialResult(None, None, seconds, steps * BATCH_SIZE, label, rungs)
        if not np.isfinite(outcome.accuracy):
            return result._replace(failed=f"diverged: not finite after step {steps} of {most}")
        metrics = self._measure(outcome, spec, data)
        reward, failed = self._reward(metrics)
        stopped = not failed and steps < most
        return result._replace(reward=reward, failed=failed, stopped=stopped, metrics=metrics)

    def _measure(self, outcome: Outcome, spec: ChildSpec, data: ChildData) -> dict[str, float]:
        number, num_classes = int(data.num_evaluation), int(data.num_classes)
        labels = np.asarray(data.labels)[int(data.first_evaluation) :][:number]
        logits = evaluated_logits(np.asarray(outcome.logits), number)[:, :num_classes]
        return {
            **measure(labels, special.softmax(logits, axis=1)),
            ACCURACY: float(outcome.accuracy),  # as the program rounds it
            "params": self._count_params(spec, data),
            "samples": int(outcome.num_steps) * BATCH_SIZE,
        }

    def _count_params(self, spec: ChildSpec, data: ChildData) -> int:
        """Returns how many numbers training sets, padding of units and classes left out."""
        architecture = spec.architecture if spec.unpadded is None else spec.unpadded
        key = (architecture, int(data.num_classes))
        if key not in self._num_params:
            shapes = variable_shapes(self._family.make_model(*key), spec, data)["params"]
            self._num_params[key] = sum(x.size for x in jax.tree.leaves(shapes))
        return self._num_params[key] - spec.unused


def variable_shapes(model: ChildModel, spec: ChildSpec, data: ChildData) -> Params:
    """Returns the shapes and dtypes of a child's variables."""
    batch = jax.tree.map(lambda rows: rows[:BATCH_SIZE], data.inputs)
    return jax.eval_shape(model.init, np.uint32(0), batch, data.constants, spec.hyperparameters)


def num_steps(num_samples: int) -> np.int32:
    """Returns how many batches have at least so many rows."""
    return np.int32(-(-num_samples // BATCH_SIZE))
