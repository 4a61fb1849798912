"""What trials say about decisions, and embeddings about tasks: pure numbers."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mnms_jax.store import TrialRecord
from mnms_jax.types import Choice

Choices = Mapping[str, Sequence[Choice]]  # by decision
_LEAST = 10  # trials below which nothing is said of importance
_WINDOWS = 40  # most, into which trials are cut


class Importance(NamedTuple):
    """How much a task's rewards depend on each decision."""

    means: np.ndarray  # [D], loss of R2 when the decision's choices are shuffled
    deviations: np.ndarray  # [D], over the shufflings
    explained: float  # R2 of the forest on trials that its trees haven't seen


def decision_importance(records: Sequence[TrialRecord], choices: Choices) -> Importance | None:
    """Returns the permutation importance of decisions (Breiman 2001, "Random forests", section 10).

    A forest of 100 trees predicts a task's rewards from its designs, choices by their number, and
    -1 where a decision isn't active. An importance is how much worse its R2 becomes on the same
    trials when the choices of one decision are shuffled among them, in the mean over 5 shufflings.

    Args:
      records: of one task. Failed trials and repeats don't count.
      choices: of the D decisions.

    Returns:
      None when fewer than ten trials are left, or all have the same reward.
    """
    from sklearn.ensemble import RandomForestRegressor  # which takes a second
    from sklearn.inspection import permutation_importance

    known = [r for r in records if r.reward is not None and r.is_whole]
    rewards = np.array([r.reward for r in known])
    if len(known) < _LEAST or np.ptp(rewards) == 0:
        return None
    designs = np.array([[place(r, name, choices) for name in choices] for r in known])
    forest = RandomForestRegressor(100, oob_score=True, random_state=0).fit(designs, rewards)
    found = permutation_importance(forest, designs, rewards, n_repeats=5, random_state=0)
    return Importance(found.importances_mean, found.importances_std, float(forest.oob_score_))


def place(record: TrialRecord, name: str, choices: Choices) -> int:
    """Returns the number of the choice that a trial took for a decision; -1: not active."""
    if name not in record.decisions:
        return -1
    value = record.decisions[name]
    # Types count: True == 1.
    return [(type(c), c) for c in choices[name]].index((type(value), value))


def choice_shares(
    records: Sequence[TrialRecord], choices: Choices
) -> tuple[list[str], dict[str, np.ndarray]]:
    """Returns the share of a task's trials that took each choice, window by window.

    Args:
      records: of one task, in order.
      choices: by decision.

    Returns:
      The W windows' first and last trials, e.g. "0-7": rounds, or several rounds where there are
      many. And by decision shares [C, W]; a column's sum is below 1 where the decision wasn't
      active in all trials.
    """
    rounds = sorted({record.round for record in records})
    width = -(-len(rounds) // _WINDOWS)
    windows = [
        [r for r in records if r.round in rounds[i : i + width]]
        for i in range(0, len(rounds), width or 1)
    ]
    labels = [f"{window[0].trial}-{window[-1].trial}" for window in windows]
    shares = {}
    for name, values in choices.items():
        taken = [np.array([place(r, name, choices) for r in window]) for window in windows]
        shares[name] = np.array([[np.mean(row == c) for row in taken] for c in range(len(values))])
    return labels, shares


def principal_plane(vectors: np.ndarray) -> tuple[np.ndarray, float]:
    """Returns vectors [T, K] on their first two principal axes, [T, 2], and these axes' share.

    The share is of the variance; all of it where the vectors are equal.
    """
    centred = vectors - vectors.mean(axis=0)
    left, scale, _ = np.linalg.svd(centred, full_matrices=False)
    plane = np.zeros((len(vectors), 2))
    plane[:, : min(2, len(scale))] = (left * scale)[:, :2]
    total = float(np.sum(scale**2))
    return plane, float(np.sum(scale[:2] ** 2)) / total if total else 1.0


def cosine_similarities(vectors: np.ndarray) -> np.ndarray:
    """Returns the cosines of the angles between vectors [T, K], as [T, T]; 0 for a zero vector."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = vectors / np.where(lengths > 0, lengths, 1)
    return unit @ unit.T
