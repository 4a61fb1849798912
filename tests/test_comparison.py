import csv
import itertools
import math

import numpy as np
import pytest
from scipy import stats

from mnms_jax.comparison import (
    ALL_TASKS,
    Difference,
    Mean,
    Result,
    TimeToThreshold,
    Trials,
    censored_median,
    compare,
    expected_best,
    mean_interval,
    trial_counts,
    trials_to_threshold,
    write_csv,
)
from mnms_jax.types import UserError

NAN, INF = np.nan, np.inf


def test_expected_best_by_hand_and_by_all_subsets():
    # Pairs of 1, 2, 3 have the maxima 2, 3 and 3.
    assert expected_best(np.array([3.0, 1.0, 2.0]), 2) == pytest.approx(8 / 3)
    # Three draws with replacement from 0 and 1 are all 0 once in eight.
    assert expected_best(np.array([0.0, 1.0]), 3) == pytest.approx(7 / 8)
    pool = np.array([0.3, 0.1, 0.1, 0.9, 0.5, 0.2, 0.7])
    maxima = [max(subset) for subset in itertools.combinations(pool, 4)]
    assert expected_best(pool, 4) == pytest.approx(np.mean(maxima))
    maxima = [max(draws) for draws in itertools.product(pool[:3], repeat=5)]
    assert expected_best(pool[:3], 5) == pytest.approx(np.mean(maxima))


def test_expected_best_is_never_beyond_the_maximum_and_takes_large_pools():
    assert expected_best(np.full(7, 0.3), 3) <= 0.3
    assert expected_best(np.arange(5.0), 5) == 4.0
    # The expected maximum of k of 1..n is k (n + 1) / (k + 1).
    assert expected_best(np.arange(1.0, 1001), 200) == pytest.approx(200 * 1001 / 201)


def test_trials_to_threshold_and_those_that_are_censored():
    best = np.array([[0.1, 0.5, 0.5], [0.1, 0.2, 0.3], [0.6, 0.6, 0.6]])
    trials, censored = trials_to_threshold(best, np.array(0.5))
    assert trials.tolist() == [2, 3, 1] and censored.tolist() == [False, True, False]
    trials, censored = trials_to_threshold(best, np.array([0.2, 0.3, 0.7]))
    assert trials.tolist() == [2, 3, 3] and censored.tolist() == [False, False, True]


@pytest.mark.parametrize(
    ("trials", "censored", "expected"),
    [
        ([9, 3, 5], [0, 0, 0], 5),
        ([3, 10, 10], [0, 1, 1], INF),
        ([10, 2, 4, 10], [1, 0, 0, 1], 4),
        ([10, 10], [0, 1], 10),
        ([10], [1], INF),
    ],
)
def test_the_median_with_censoring_is_that_of_kaplan_and_meier(trials, censored, expected):
    censored = np.array(censored, bool)
    assert censored_median(np.array(trials), censored) == expected
    data = stats.CensoredData(
        uncensored=np.array(trials)[~censored], right=np.array(trials)[censored]
    )
    survival = stats.ecdf(data).sf
    done = survival.quantiles[survival.probabilities <= 0.5 + 1e-9]
    # Where the curve never falls to a half, or a censored time ends it, there is no median.
    reached = [t for t in done if t in np.array(trials)[~censored]]
    assert (min(reached) if reached else INF) == expected


def test_the_interval_is_students():
    values = np.array([0.3, 0.1, 0.7, 0.4, 0.2])
    mean, low, high = mean_interval(values)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert mean == pytest.approx(0.34)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    mean, low, high = mean_interval(values[:1])
    assert mean == 0.3 and math.isnan(low) and math.isnan(high)


# Two tasks of very different scales, two methods, three seeds, ten trials; the rest stays low.
REWARDS = np.zeros((2, 2, 3, 10))
REWARDS[0, 0, :, :2] = [[0.2, 0.4], [0.3, 0.1], [NAN, 0.2]]  # random on "a"
REWARDS[0, 1, :, :2] = [[0.1, 0.5], [0.6, 0.1], [0.3, 0.4]]  # mine on "a"
REWARDS[1, 0, :, :2] = [[10, 20], [NAN, NAN], [30, 40]]
REWARDS[1, 1, :, :2] = [[50, 20], [10, 40], [70, 80]]
TRIALS = Trials(("a", "b"), ("random", "mine"), (5, 6, 7), REWARDS)


@pytest.fixture(scope="module")
def comparison():
    return compare(TRIALS, ["mine"], threshold_trials=30)


def test_results_have_a_row_a_task_method_seed_and_number_of_trials(comparison):
    assert Result._fields == (
        *("task", "method", "seed", "trials"),
        *("best_reward", "trials_to_threshold", "censored"),
    )
    # The pool has 30 trials, so the threshold is its maximum.
    assert set(comparison.thresholds) == {"random"}
    assert comparison.thresholds["random"].tolist() == pytest.approx([0.4, 40])
    assert comparison.results[0] == ("a", "random", 5, 10, 0.4, 2, 0)
    assert comparison.results[1] == ("a", "random", 6, 10, 0.3, 10, 1)
    assert comparison.results[4] == ("a", "mine", 6, 10, 0.6, 1, 0)
    assert comparison.results[-1] == ("b", "mine", 7, 10, 80.0, 1, 0)
    assert len(comparison.results) == 2 * 2 * 3


def test_failed_trials_count_as_the_lowest_and_leave_no_best_reward():
    rewards = np.full((1, 1, 2, 10), 0.5)
    rewards[0, 0, 1] = NAN
    rewards[0, 0, 0, 0] = 0.25
    found = compare(Trials(("a",), ("random",), (0, 1), rewards), [])
    assert [row.best_reward for row in found.results] == [0.5, None]
    assert found.best[0, 0, 1].tolist() == [0.25] * 10
    with pytest.raises(UserError, match="all trials failed on a"):
        compare(Trials(("a",), ("random",), (0, 1), rewards * NAN), [])


def test_differences_are_paired_by_seed(comparison):
    # Regret: (top - best) / (top - median of random); both medians are 0, the tops .6 and 80.
    best = {"random": ([0.4, 0.3, 0.2], [20, 0, 40]), "mine": ([0.5, 0.6, 0.4], [50, 40, 80])}
    regret = {
        name: np.mean([1 - np.array(a) / 0.6, 1 - np.array(b) / 80], axis=0)
        for name, (a, b) in best.items()
    }
    rows = {(r.task, r.measure): r for r in comparison.differences}
    assert set(rows) == {
        (task, measure)
        for task in (ALL_TASKS, "a", "b")
        for measure in ("best reward gained", "regret saved")
    }
    saved = rows[ALL_TASKS, "regret saved"]
    expected = stats.ttest_rel(regret["random"], regret["mine"]).confidence_interval(0.95)
    assert saved[:3] == (ALL_TASKS, "mine", "random") and saved.trials == 10
    assert saved.mean == pytest.approx(np.mean(regret["random"] - regret["mine"]))
    assert (saved.low, saved.high) == pytest.approx((expected.low, expected.high))
    gained = rows["b", "best reward gained"]
    assert gained.mean == pytest.approx((30 + 40 + 40) / 3)
    row = next(r for r in comparison.means if r[:3] == (ALL_TASKS, "mine", "regret"))
    assert row.mean == pytest.approx(regret["mine"].mean())


def test_times_to_threshold(comparison):
    rows = {(r.task, r.method): r[2:] for r in comparison.times}
    goal = ("random", 30)
    assert rows["a", "random"] == (*goal, pytest.approx(0.4), INF, 2, 3)
    # Seeds need 2, 1 and 2 trials on "a", and 1, 2 and 1 on "b".
    assert rows["a", "mine"] == (*goal, pytest.approx(0.4), 2, 0, 3)
    assert rows[ALL_TASKS, "mine"] == (*goal, None, 1, 0, 6)


def test_times_to_what_the_cold_search_ends_with():
    rewards = np.concatenate([REWARDS, REWARDS[:, :1]], axis=1)
    rewards[:, 2, :, 2:] = np.array([[0.45], [70]])[:, :, None]
    rewards[:, 2, 0, 9] = [0.9, 100]
    names = ("random", "mine", "cold")
    found = compare(Trials(("a", "b"), names, (5, 6, 7), rewards), ["mine"])
    # The mean of .9, .45 and .45, and that of 100, 70 and 70.
    assert found.thresholds["cold"].tolist() == pytest.approx([0.6, 80])
    rows = {(r.task, r.method): r[2:] for r in found.times if r.reference == "cold"}
    goal = ("cold", 10)
    assert rows["a", "cold"] == (*goal, pytest.approx(0.6), INF, 2, 3)
    assert rows["b", "mine"] == (*goal, pytest.approx(80), INF, 2, 3)
    # Seed 6 has .6 at once on "a"; seed 7 needs two trials for 80 on "b".
    assert rows[ALL_TASKS, "mine"] == (*goal, None, INF, 4, 6)
    assert {r.censored for r in found.results} == {0, 1}
    equal = np.full((1, 2, 3, 10), 0.1)  # whose mean is rounded up
    found = compare(Trials(("a",), ("random", "cold"), (0, 1, 2), equal), [])
    assert [r.censored for r in found.times] == [0] * 8


def test_a_task_on_which_nothing_matters_has_no_regret():
    found = compare(Trials(("a",), ("random",), (0,), np.full((1, 1, 1, 10), 0.7)), [])
    assert found.regret.tolist() == np.zeros((1, 1, 1, 10)).tolist()
    assert found.results[0].trials_to_threshold == 1


def test_trial_counts_go_up_to_the_budget():
    assert trial_counts(100) == (10, 25, 50, 100)
    assert trial_counts(60) == (10, 25, 50)
    assert trial_counts(4) == (4,)


def test_csv_files_read_back(tmp_path, comparison):
    path = tmp_path / "x.csv"
    write_csv(path, TimeToThreshold, comparison.times)
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == TimeToThreshold._fields
    assert [float(row["median_trials"]) for row in rows] == [
        r.median_trials for r in comparison.times
    ]
    assert rows[0]["threshold"] == ""
    write_csv(path, Difference, [])
    assert path.read_text() == ",".join(Difference._fields) + "\n"
    write_csv(path, Mean, [Mean('<a>,"b"', "m", "regret", 10, 0.1, NAN, INF)])
    assert path.read_text().splitlines()[1] == '"<a>,""b""",m,regret,10,0.1,nan,inf'
