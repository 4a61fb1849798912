"""A tuner in a process of its own, which answers to `benchmarks.peer_methods` in JSON lines.

It runs in a virtual environment that has the tuner and nothing of ours: this file imports no other
one. Requests are {"do": "start", ...}, {"do": "ask", ...} and {"do": "tell", ...}, each with the
number of a search; designs are lists of indices of choices.

Command: python peer_worker.py smac
"""

import json
import pathlib
import random
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

Design = list[int]


class Problem(NamedTuple):
    """What a search is told at its start."""

    sizes: Mapping[str, int]  # number of choices of each decision
    ordered: Mapping[str, bool]  # whether they are numbers that ascend
    seed: int
    num_trials: int
    sources: Sequence[Sequence[tuple[Design, float]]]  # trials of other tasks


class Tuner(NamedTuple):
    """A search that is going on; rewards are maximised."""

    ask: Callable[[], Design]
    tell: Callable[[Design, float], Any]


def _match(ask: Callable[[], tuple[Design, Any]], tell: Callable[[Any, float], Any]) -> Tuner:
    """Returns the tuner whose `ask` gives its own trials beside designs, and `tell` wants them."""
    waiting: dict[tuple[int, ...], list[Any]] = {}

    def ask_design() -> Design:
        design, trial = ask()
        waiting.setdefault(tuple(design), []).append(trial)
        return design

    return Tuner(ask_design, lambda design, reward: tell(waiting[tuple(design)].pop(), reward))


def smac(problem: Problem) -> Tuner:
    """Returns SMAC3 as its facade for hyperparameters has it: random forests."""
    import ConfigSpace
    import joblib
    from smac import HyperparameterOptimizationFacade, Scenario
    from smac.runhistory.dataclasses import TrialValue

    space = ConfigSpace.ConfigurationSpace(seed=problem.seed)
    for name, size in problem.sizes.items():
        choices = list(range(size))
        if size == 1:
            space.add(ConfigSpace.Constant(name, 0))
        elif problem.ordered[name]:
            space.add(ConfigSpace.OrdinalHyperparameter(name, choices))
        else:
            space.add(ConfigSpace.CategoricalHyperparameter(name, choices))
    scenario = Scenario(
        space,
        deterministic=True,
        n_trials=problem.num_trials,
        seed=problem.seed,
        output_directory=pathlib.Path(tempfile.mkdtemp(prefix="smac-")),
    )
    optimizer = HyperparameterOptimizationFacade(
        scenario, lambda config, seed=0: 0.0, overwrite=True, logging_level=40
    )

    def ask() -> tuple[Design, Any]:
        # A pool of threads for every few predictions waits for twice the time that it computes.
        with joblib.parallel_config("sequential"):
            trial = optimizer.ask()
        return [int(trial.config[name]) for name in problem.sizes], trial

    return _match(ask, lambda trial, reward: optimizer.tell(trial, TrialValue(cost=-reward)))


def pyglove(problem: Problem) -> Tuner:
    """Returns PyGlove's regularised evolution."""
    import pyglove as pg

    space = pg.Dict({name: pg.oneof(range(size)) for name, size in problem.sizes.items()})
    algorithm = pg.evolution.regularized_evolution(
        population_size=50, tournament_size=15, seed=problem.seed
    )
    algorithm.setup(pg.dna_spec(space))

    def ask() -> tuple[Design, Any]:
        dna = algorithm.propose()
        return [int(number) for number in dna.to_numbers()], dna

    return _match(ask, algorithm.feedback)


def bounding_box(problem: Problem) -> Tuner:
    """Returns Syne Tune's random search in the box that holds the best designs of other tasks."""
    from syne_tune.optimizer.baselines import RandomSearch
    from syne_tune.optimizer.schedulers.transfer_learning.bounding_box import BoundingBox

    space = _syne_tune_space(problem)
    return _syne_tune(
        problem,
        BoundingBox(
            lambda box, metric, do_minimize, seed: RandomSearch(
                box, [metric], do_minimize=do_minimize, random_seed=seed
            ),
            space,
            "cost",
            _syne_tune_evaluations(problem, space),
            do_minimize=True,
            random_seed=problem.seed,
        ),
    )


def quantile(problem: Problem) -> Tuner:
    """Returns Syne Tune's Thompson sampling from a copula of other tasks' rewards."""
    from syne_tune.optimizer.schedulers.single_objective_scheduler import SingleObjectiveScheduler
    from syne_tune.optimizer.schedulers.transfer_learning.quantile_based import (
        quantile_based_searcher,
    )

    space = _syne_tune_space(problem)
    searcher = quantile_based_searcher.QuantileBasedSurrogateSearcher(
        space, _syne_tune_evaluations(problem, space), random_seed=problem.seed
    )
    return _syne_tune(
        problem, SingleObjectiveScheduler(space, "cost", searcher=searcher, do_minimize=True)
    )


def _syne_tune_space(problem: Problem) -> dict[str, Any]:
    from syne_tune import config_space

    return {
        name: config_space.randint(0, size - 1)
        if problem.ordered[name]
        else config_space.choice(list(range(size)))
        for name, size in problem.sizes.items()
    }


def _syne_tune_evaluations(problem: Problem, space: Mapping[str, Any]) -> dict[str, Any]:
    import pandas as pd
    from syne_tune.optimizer.schedulers.transfer_learning import (
        transfer_learning_task_evaluation as evaluation,
    )

    return {
        str(number): evaluation.TransferLearningTaskEvaluations(
            configuration_space=dict(space),
            hyperparameters=pd.DataFrame([design for design, _ in trials], columns=list(space)),
            objectives_names=["cost"],
            objectives_evaluations=-np.array([reward for _, reward in trials])[:, None, None, None],
        )
        for number, trials in enumerate(problem.sources)
    }


def _syne_tune(problem: Problem, scheduler: Any) -> Tuner:
    from syne_tune.optimizer.schedulers.ask_tell_scheduler import AskTellScheduler

    asking = AskTellScheduler(scheduler)

    def ask() -> tuple[Design, Any]:
        trial = asking.ask()
        return [int(trial.config[name]) for name in problem.sizes], trial

    return _match(ask, lambda trial, reward: asking.tell(trial, {"cost": -reward}))


TUNERS = {
    "smac": smac,
    "pyglove": pyglove,
    "bounding_box": bounding_box,
    "quantile": quantile,
}


def serve(make: Callable[[Problem], Tuner]) -> None:
    """Answers requests until they end.

    Some tuners use the process's random state whatever seed they are given: each search has one of
    its own, so that searches that take turns are what they are alone.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # tuners print
    tuners: dict[int, Tuner] = {}
    states: dict[int, Any] = {}
    for line in sys.stdin:
        request = json.loads(line)
        number, reply = request["search"], None
        if request["do"] == "start":
            problem = Problem(**request["problem"])
            random.seed(problem.seed)
            np.random.seed(problem.seed)
            tuners[number] = make(problem)
        else:
            random.setstate(states[number][0])
            np.random.set_state(states[number][1])
            if request["do"] == "ask":
                reply = [tuners[number].ask() for _ in range(request["number"])]
            for design, reward in request.get("trials", ()):
                tuners[number].tell(design, reward)
        states[number] = random.getstate(), np.random.get_state()
        print(json.dumps(reply), file=answers, flush=True)


if __name__ == "__main__":
    serve(TUNERS[sys.argv[1]])
