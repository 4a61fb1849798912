"""What several methods' trials on several tasks say: pure numbers, paired by seed."""

import csv
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import special

from mnms_jax.types import UserError

TRIAL_COUNTS = (10, 25, 50, 100, 200)
ALL_TASKS = "mean over tasks"


class Trials(NamedTuple):
    """Rewards of T tasks, M methods, S seeds and N trials each."""

    task_names: tuple[str, ...]
    method_names: tuple[str, ...]
    seeds: tuple[int, ...]
    rewards: np.ndarray  # float64 [T, M, S, N], maximised; NaN: failed
    reward: str = "reward"  # what they are, a formula as in `parse_reward`


class Result(NamedTuple):
    """One search at one number of trials."""

    task: str
    method: str
    seed: int
    trials: int
    best_reward: float | None  # so far; None: all failed
    trials_to_threshold: int  # random search's; the whole budget when censored
    censored: int  # 1: the threshold wasn't reached within the budget


class Mean(NamedTuple):
    """A method's mean over seeds, with its 95 % interval."""

    task: str
    method: str
    measure: str  # "best reward" or "regret"
    trials: int
    mean: float
    low: float
    high: float


class Difference(NamedTuple):
    """How much better a method is than a rival, paired by seed, with the 95 % interval."""

    task: str
    method: str
    rival: str
    measure: str  # "best reward gained" or "regret saved"
    trials: int
    mean: float  # above 0: the method is better
    low: float
    high: float


class TimeToThreshold(NamedTuple):
    """A method's median number of trials until it has what another's number of trials is worth."""

    task: str
    method: str
    reference: str  # the other method: "random" or "cold"
    reference_trials: int
    threshold: float | None  # reward; None over tasks
    median_trials: float  # infinite: more than half of the searches are censored
    censored: int
    searches: int


class Comparison(NamedTuple):
    """All figures, and the curves behind them."""

    trials: Trials
    thresholds: dict[str, np.ndarray]  # float64 [T] by reference: "random", and "cold" if it ran
    best: np.ndarray  # float64 [T, M, S, N], best reward so far
    regret: np.ndarray  # float64 [T, M, S, N]; 0: the best reward ever, 1: random's median
    results: tuple[Result, ...]
    means: tuple[Mean, ...]
    differences: tuple[Difference, ...]
    times: tuple[TimeToThreshold, ...]


def check_each_once(what: str, values: Sequence[Any]) -> None:
    """Checks what is to be compared.

    Raises:
      UserError: there is nothing, or something twice.
    """
    if not values or len(set(values)) < len(values):
        raise UserError(f"{what} {', '.join(map(str, values))}: name at least one, each once")


def compare(
    trials: Trials, contenders: Sequence[str], *, threshold_trials: int = 200
) -> Comparison:
    """Compares methods, of which one is called "random".

    Failed trials count as the lowest reward that was seen on their task. A task's first threshold
    is `expected_best` of that many of its random trials, those of all seeds together; the other
    is the mean best of its searches called "cold", if there are any, after all their trials. Its
    regret is (top - best so far) / (top - median of the random trials), top being the best reward
    that any method has seen: tasks' rewards are comparable only so.

    Args:
      trials: of all methods.
      contenders: methods to set against every other.
      threshold_trials: number of random trials that the first threshold is worth.

    Raises:
      UserError: all trials of a task failed.
    """
    if (failed := np.isnan(trials.rewards).all(axis=(1, 2, 3))).any():
        raise UserError(f"all trials failed on {trials.task_names[int(failed.argmax())]}")
    lowest = np.nanmin(trials.rewards, axis=(1, 2, 3), keepdims=True)
    rewards = np.where(np.isnan(trials.rewards), lowest, trials.rewards)
    pools = rewards[:, trials.method_names.index("random")].reshape(len(rewards), -1)
    best = np.maximum.accumulate(rewards, axis=-1)
    thresholds = {"random": np.array([expected_best(pool, threshold_trials) for pool in pools])}
    worth = {"random": threshold_trials}
    if "cold" in trials.method_names:
        cold = best[:, trials.method_names.index("cold"), :, -1]
        # Rounded up beyond the maximum, the mean would never be reached.
        thresholds["cold"] = np.minimum(cold.mean(axis=1), cold.max(axis=1))
        worth["cold"] = best.shape[-1]
    top = rewards.max(axis=(1, 2, 3), keepdims=True)
    span = top - np.median(pools, axis=1)[:, None, None, None]
    regret = (top - best) / np.where(span > 0, span, 1)
    counts = trial_counts(rewards.shape[-1])
    reached = {
        name: trials_to_threshold(best, own[:, None, None]) for name, own in thresholds.items()
    }
    return Comparison(
        trials,
        thresholds,
        best,
        regret,
        tuple(_results(trials, counts, *reached["random"])),
        tuple(_means(trials, counts, {"best reward": best, "regret": regret})),
        tuple(
            _differences(
                trials, contenders, counts, {"best reward gained": best, "regret saved": -regret}
            )
        ),
        tuple(
            row
            for name, own in thresholds.items()
            for row in _times(trials, name, worth[name], own, *reached[name])
        ),
    )


def trial_counts(budget: int) -> tuple[int, ...]:
    """Returns the numbers of trials at which methods are compared; the budget if it is small."""
    return tuple(count for count in TRIAL_COUNTS if count <= budget) or (budget,)


def expected_best(pool: np.ndarray, number: int) -> float:
    """Returns the expected maximum of a number of draws from a pool of rewards [P], exactly.

    The draws are without replacement when the pool has that many, else with replacement.
    """
    ascending = np.sort(pool)
    rank = np.arange(len(pool) + 1)
    if len(pool) >= number:
        # All draws are among the k lowest with probability C(k, number) / C(P, number).
        log_ways = special.gammaln(rank + 1) - special.gammaln(np.maximum(rank - number, 0) + 1)
        below = np.where(rank >= number, np.exp(log_ways - log_ways[-1]), 0.0)
    else:
        below = (rank / len(pool)) ** number
    # Rounded up beyond the maximum, it would never be reached.
    return float(min(np.sum(ascending * np.diff(below)), ascending[-1]))


def trials_to_threshold(best: np.ndarray, thresholds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns how many trials were needed, int [...], and whether they were too few, bool [...].

    Args:
      best: best reward so far, [..., N].
      thresholds: to be reached, broadcast against [...].

    Returns:
      The number of trials, N where the threshold isn't reached; and whether it isn't (censored).
    """
    reached = best >= np.asarray(thresholds)[..., None]
    censored = np.logical_not(reached.any(axis=-1))
    return np.where(censored, best.shape[-1], reached.argmax(axis=-1) + 1), censored


def censored_median(trials: np.ndarray, censored: np.ndarray) -> float:
    """Returns the Kaplan-Meier median: the first time at which half or more are done.

    Searches are censored at the end of the budget alone, where nobody is left: the estimate is the
    share that is done, and the median infinite when more than half are censored.
    """
    times = np.sort(np.where(censored, np.inf, trials), axis=None)
    return float(times[(len(times) - 1) // 2])


def mean_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the mean over the first axis and the ends of its 95 % Student interval.

    Both ends are NaN when there is one value alone.
    """
    mean, size = values.mean(axis=0), len(values)
    if size < 2:
        return mean, np.full_like(mean, np.nan), np.full_like(mean, np.nan)
    half = special.stdtrit(size - 1, 0.975) * values.std(axis=0, ddof=1) / np.sqrt(size)
    return mean, mean - half, mean + half


def write_csv(path: pathlib.Path, kind: Any, rows: Sequence[tuple]) -> None:
    """Writes rows under the names of their NamedTuple's fields; nothing stands for None."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(kind._fields)
        writer.writerows(rows)


def _results(
    trials: Trials, counts: Sequence[int], reached: np.ndarray, censored: np.ndarray
) -> list[Result]:
    best = np.fmax.accumulate(trials.rewards, axis=-1)  # NaN until a trial succeeds
    return [
        Result(
            task,
            method,
            seed,
            count,
            None if np.isnan(best[t, m, s, count - 1]) else float(best[t, m, s, count - 1]),
            int(reached[t, m, s]),
            int(censored[t, m, s]),
        )
        for t, task in enumerate(trials.task_names)
        for m, method in enumerate(trials.method_names)
        for s, seed in enumerate(trials.seeds)
        for count in counts
    ]


def _by_task(trials: Trials, values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns values [T, S] by name: the mean over tasks, which is paired by seed, then each."""
    return [(ALL_TASKS, values.mean(axis=0)), *zip(trials.task_names, values, strict=True)]


def _interval(values: np.ndarray) -> tuple[float, float, float]:
    mean, low, high = mean_interval(values)
    return float(mean), float(low), float(high)


def _means(trials: Trials, counts: Sequence[int], measures: dict[str, np.ndarray]) -> list[Mean]:
    return [
        Mean(task, method, measure, count, *_interval(row))
        for measure, values in measures.items()
        for m, method in enumerate(trials.method_names)
        for count in counts
        for task, row in _by_task(trials, values[:, m, :, count - 1])
    ]


def _differences(
    trials: Trials,
    contenders: Sequence[str],
    counts: Sequence[int],
    measures: dict[str, np.ndarray],
) -> list[Difference]:
    names = trials.method_names
    return [
        Difference(task, method, rival, measure, count, *_interval(row))
        for measure, values in measures.items()
        for method in contenders
        for rival in names
        if rival != method
        for count in counts
        for task, row in _by_task(
            trials,
            (values[:, names.index(method)] - values[:, names.index(rival)])[..., count - 1],
        )
    ]


def _times(
    trials: Trials,
    reference: str,
    reference_trials: int,
    thresholds: np.ndarray,
    reached: np.ndarray,
    censored: np.ndarray,
) -> list[TimeToThreshold]:
    groups: list[tuple[str, float | None, Any]] = [(ALL_TASKS, None, slice(None))]
    groups += [(task, float(thresholds[t]), t) for t, task in enumerate(trials.task_names)]
    rows = []
    for task, threshold, where in groups:
        for m, method in enumerate(trials.method_names):
            numbers, late = reached[where, m].ravel(), censored[where, m].ravel()
            median = censored_median(numbers, late)
            goal = (reference, reference_trials, threshold)
            rows.append(TimeToThreshold(task, method, *goal, median, int(late.sum()), late.size))
    return rows
