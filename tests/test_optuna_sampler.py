import math

import numpy as np
import optuna
import pytest
from optuna.distributions import (
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)

from mnms_jax.optuna_sampler import MNMSSampler, _make_grid


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


def objective(trial):
    """Has its least value, 0, at x = 1, rate = .01, layers = 3 and kind = "b"."""
    x = trial.suggest_float("x", -5, 5)
    rate = trial.suggest_float("rate", 1e-4, 1, log=True)
    layers = trial.suggest_int("layers", 1, 8)
    kind = trial.suggest_categorical("kind", ["a", "b", "c"])
    value = (x - 1) ** 2 / 10 + (math.log10(rate) + 2) ** 2 / 2 + abs(layers - 3) / 3
    return value + {"a": 1, "b": 0, "c": 2}[kind]


@pytest.mark.parametrize(
    ("distribution", "values"),
    [
        (CategoricalDistribution(["a", None, 2]), ["a", None, 2]),
        (IntDistribution(1, 3), [1, 2, 3]),
        (IntDistribution(0, 100, step=10), [0, 30, 70, 100]),
        (IntDistribution(1, 1000, log=True), [1, 10, 100, 1000]),
        (FloatDistribution(0, 3), [0, 1, 2, 3]),
        (FloatDistribution(0, 1, step=0.5), [0, 0.5, 1]),
        (FloatDistribution(0, 0.3, step=0.1), [0, 0.1, 0.2, 0.3]),  # 3 * 0.1 is above 0.3
        (FloatDistribution(1e-3, 1, log=True), [1e-3, 1e-2, 1e-1, 1]),
    ],
    ids=["categories", "ints", "stepped", "log ints", "floats", "few", "tenths", "log floats"],
)
def test_grids(distribution, values):
    grid = _make_grid(distribution, 4)
    found = [grid.value(choice) for choice in range(len(grid.values))]
    assert found == (pytest.approx(values) if isinstance(values[0], float | int) else values)
    assert [grid.nearest(value) for value in found] == list(range(len(found)))
    for value in found:
        assert distribution._contains(distribution.to_internal_repr(value))


def test_it_finds_better_values_than_random_search():
    best = {}
    for sampler in (MNMSSampler, optuna.samplers.RandomSampler):
        values = []
        for seed in range(6):
            study = optuna.create_study(sampler=sampler(seed=seed))
            study.optimize(objective, n_trials=30)
            values.append(study.best_value)
        best[sampler] = np.mean(values)
    assert best[MNMSSampler] < 0.75 * best[optuna.samplers.RandomSampler]


def test_failed_and_pruned_trials_seeds_and_parameters_that_come_and_go():
    def troubled(trial):
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            trial.suggest_int("only a", 1, 5)
        x = trial.suggest_int("x", 0, 9)
        trial.suggest_float("fixed", 1, 1)
        if x == 0:
            raise optuna.TrialPruned
        if x == 1:
            raise ValueError
        return math.inf if x == 2 else float(x)

    runs = []
    for _ in range(2):
        study = optuna.create_study(direction="maximize", sampler=MNMSSampler(seed=3))
        study.enqueue_trial({"kind": "a", "x": 0, "only a": 1})
        study.enqueue_trial({"kind": "b", "x": 1})
        study.enqueue_trial({"kind": "b", "x": 4})
        study.optimize(troubled, n_trials=12, catch=(ValueError,))
        runs.append([trial.params for trial in study.trials])
        states = {trial.state.name for trial in study.trials}
        assert {"COMPLETE", "PRUNED", "FAIL"} <= states
    assert runs[0] == runs[1]


def test_several_values_are_refused():
    study = optuna.create_study(directions=["minimize", "maximize"], sampler=MNMSSampler(seed=0))
    with pytest.raises(ValueError, match="optimises one value"):
        study.optimize(lambda trial: (trial.suggest_int("x", 0, 3), 0.0), n_trials=3)
    with pytest.raises(ValueError, match="max_choices=1"):
        MNMSSampler(max_choices=1)
