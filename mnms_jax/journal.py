"""What the log of a search says while it is written: known designs, and rounds that are whole."""

import collections
import json
from collections.abc import Mapping, Sequence

import numpy as np

from mnms_jax.store import TrialLog, TrialRecord
from mnms_jax.training.fit import Request
from mnms_jax.training.judge import TrialResult
from mnms_jax.types import Choice, UserError

_LEAST_AT_RUNG = 8  # children that came to a rung before it stops any


class Journal:
    """A log, and what follows from it; the same for a search that goes on as for one that began it.

    Args:
      log: of the search.
      trials_per_round: of a whole round.
      in_order: rounds are told in the order of their numbers, else in that in which they became
        whole here.
    """

    def __init__(self, log: TrialLog, trials_per_round: int, *, in_order: bool = True):
        self.log = log
        self.trials_per_round = trials_per_round
        self.in_order = in_order
        # By design, the trial that first had it, and its result.
        self.known: dict[str, tuple[int, TrialResult]] = {}
        self._records: dict[tuple[str, int], TrialRecord] = {}  # by task and trial
        self._sizes: collections.Counter[int] = collections.Counter()  # trials by round
        self._whole: list[int] = []  # rounds, by the place of their last trial
        for record in log.records:
            result = TrialResult(*(getattr(record, name) for name in TrialResult._fields))
            self.known.setdefault(identity(record.task, record.decisions), (record.trial, result))
            self._note(record)

    @property
    def told(self) -> list[int]:
        """The rounds that a search has told, or will tell next, in this order."""
        if not self.in_order:
            return self._whole
        return [n for place, n in enumerate(sorted(self._whole)) if n == place]

    def size(self, round_index: int) -> int:
        """Returns how many trials of a round are there."""
        return self._sizes[round_index]

    def find(self, request: Request) -> TrialRecord | None:
        """Returns the trial of a request, if it is there.

        Raises:
          UserError: it has another design.
        """
        record = self._records.get((request.task_name, request.trial))
        if record is not None:
            check_logged(record, request)
        return record

    def add(self, request: Request, round_index: int) -> None:
        """Logs a trial, the result of whose design is known."""
        trial, result = self.known[identity(request.task_name, request.design)]
        if trial != request.trial:  # a repeat costs nothing
            result = result._replace(seconds=0.0, samples=0, bucket="log")
        design = dict(request.design)
        record = TrialRecord(
            request.task_name, request.trial, design, **result._asdict(), round=round_index
        )
        self.log.append(record)
        self._note(record)

    def _note(self, record: TrialRecord) -> None:
        self._records[record.task, record.trial] = record
        self._sizes[record.round] += 1
        if self._sizes[record.round] == self.trials_per_round:
            self._whole.append(record.round)


def rung_accuracies(
    records: Sequence[TrialRecord],
    task_name: str,
    round_index: int,
    share: float,
) -> list[float]:
    """Returns what a task's children of a round must reach at each rung to go on.

    At a rung, the share of a task's children that were the worst there is stopped. Only rounds
    before count, so that it doesn't matter in which order a round's children are trained.

    Args:
      records: the log.
      task_name: the task.
      round_index: the round.
      share: of the children to stop, in [0, 1); 0 stops none.
    """
    if not share:
        return []
    trained = [r for r in records if r.task == task_name and r.round < round_index and r.samples]
    num_rungs = max((len(r.rungs) for r in trained), default=0)
    accuracies = [[r.rungs[k] for r in trained if len(r.rungs) > k] for k in range(num_rungs)]
    return [
        float(np.quantile(a, share)) if len(a) >= _LEAST_AT_RUNG else -np.inf for a in accuracies
    ]


def identity(task_name: str, design: Mapping[str, Choice]) -> str:
    """Returns what is the same for two trials of the same design on the same task."""
    return json.dumps([task_name, dict(design)])


def check_logged(record: TrialRecord, request: Request) -> None:
    """Checks that a trial in the log is the one that the search makes again.

    Raises:
      UserError: it has another design.
    """
    if record.decisions != dict(request.design):
        raise UserError(
            f"trial {record.trial} of {record.task} in the log has another design than this "
            "search gives it; the log was edited, or written by another version"
        )
