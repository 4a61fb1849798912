"""A sampler for Optuna's studies that asks our search: `from mnms_jax.optuna_sampler import ...`.

It is no part of `import mnms_jax`, as it needs Optuna: pip install 'mnms_jax[optuna]'.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState

from mnms_jax.controller import make_random_policy
from mnms_jax.learner import make_null_learner
from mnms_jax.ranker import make_ranker
from mnms_jax.replay import ReplayBank
from mnms_jax.search import Search, SearchState, make_search
from mnms_jax.space import Decision, SearchSpace

_FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class _Grid(NamedTuple):
    """What a parameter's values are taken from, in Optuna's internal representation."""

    distribution: BaseDistribution
    values: np.ndarray  # float64 [C], ascending

    def nearest(self, value: Any) -> int:
        """Returns the choice that is nearest to a value."""
        position = self._scale(np.array(self.distribution.to_internal_repr(value)))
        return int(np.abs(self._scale(self.values) - position).argmin())

    def value(self, choice: int) -> Any:
        return self.distribution.to_external_repr(self.values[choice])

    def _scale(self, values: np.ndarray) -> np.ndarray:
        return np.log(values) if getattr(self.distribution, "log", False) else values


class _Setup(NamedTuple):
    """The search of a space."""

    grids: dict[str, _Grid]
    search: Search
    state: SearchState  # without any trial


class MNMSSampler(optuna.samplers.BaseSampler):
    """Samples what all finished trials have in common by the model of rewards of our searches.

    That is `make_ranker`, among random designs and variants of good ones; a controller would need
    several tasks to learn anything that this model doesn't know. All other parameters, those of the
    first trial among them, are drawn at random. Numbers are taken from a grid, so that all
    parameters are choices. Failed and pruned trials count as worse than all others. Nothing but the
    study's finished trials counts, the last 256 if there are more, whoever suggested them.

    Args:
      seed: of all that is random; None: another one each time.
      max_choices: most values of a parameter that is a number, at equal distances, or at equal
        ratios where it is on a logarithmic scale.

    Raises:
      ValueError: max_choices is below 2, or the study has several values to optimise.
    """

    def __init__(self, *, seed: int | None = None, max_choices: int = 16):
        if max_choices < 2:
            raise ValueError(f"max_choices={max_choices}: must be at least 2")
        self._seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
        self._max_choices = max_choices
        self._random = optuna.samplers.RandomSampler(seed=self._seed)
        self._setup: _Setup | None = None

    def reseed_rng(self) -> None:
        """Draws what is random anew, in a thread or process that shares the study."""
        self._random.reseed_rng()

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Returns the parameters of all completed trials that have a choice."""
        del trial
        found = optuna.search_space.IntersectionSearchSpace().calculate(study)
        return {name: x for name, x in found.items() if not x.single()}

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns values for these parameters."""
        if len(study.directions) > 1:
            raise ValueError("MNMSSampler optimises one value; this study has several")
        if not search_space:
            return {}
        grids, search, state = self._make_setup(search_space)
        # Of its own for each trial, so that trials that run at once differ.
        key = jax.random.fold_in(state.key, trial.number)
        state = state._replace(key=key, replay=_fill(state.replay, grids, study))
        actions = np.asarray(search.ask(state).actions[0]).tolist()
        chosen = zip(grids.items(), actions, strict=True)
        return {name: grid.value(choice) for (name, grid), choice in chosen}

    def sample_independent(
        self,
        study: optuna.Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Returns a random value for another parameter."""
        return self._random.sample_independent(study, trial, param_name, param_distribution)

    def _make_setup(self, found: dict[str, BaseDistribution]) -> _Setup:
        """Returns the search of these parameters: the last one if they are the same."""
        grids = {name: _make_grid(x, self._max_choices) for name, x in sorted(found.items())}
        setup = self._setup
        if setup is None or {n: g.distribution for n, g in setup.grids.items()} != found:
            space = SearchSpace(
                Decision(name, tuple(range(len(grid.values)))) for name, grid in grids.items()
            )
            policy, ranker = make_random_policy(space), make_ranker(space)
            search = make_search(
                space, policy, make_null_learner(), num_tasks=1, trials_per_task=1, ranker=ranker
            )
            self._setup = setup = _Setup(grids, search, search.init(jax.random.key(self._seed)))
        return setup


def _fill(replay: ReplayBank, grids: dict[str, _Grid], study: optuna.Study) -> ReplayBank:
    """Returns a bank of the study's last finished trials that have all these parameters."""
    capacity = replay.rewards.shape[1]
    trials = [
        trial
        for trial in study.get_trials(deepcopy=False, states=_FINISHED)
        if grids.keys() <= trial.params.keys()
    ][-capacity:]
    actions, rewards = np.array(replay.actions), np.array(replay.rewards, np.float64)
    for n, trial in enumerate(trials):
        actions[0, n] = [grid.nearest(trial.params[name]) for name, grid in grids.items()]
        there = trial.state == TrialState.COMPLETE and trial.value is not None
        rewards[0, n] = trial.value if there else math.nan
    if study.direction == optuna.study.StudyDirection.MINIMIZE:
        rewards = -rewards
    # The model's numbers are those of accuracies.
    known = rewards[0, : len(trials)][np.isfinite(rewards[0, : len(trials)])]
    if len(known) and known.max() > known.min():
        rewards = (rewards - known.min()) / (known.max() - known.min())
    size = jnp.array([len(trials)], jnp.int32)
    rewards = np.where(np.isfinite(rewards), rewards, np.nan).astype(np.float32)
    return replay._replace(actions=jnp.asarray(actions), rewards=jnp.asarray(rewards), size=size)


def _make_grid(distribution: Any, most: int) -> _Grid:
    if isinstance(distribution, CategoricalDistribution):
        return _Grid(distribution, np.arange(len(distribution.choices), dtype=float))
    low, high, step = distribution.low, distribution.high, distribution.step
    if step and (high - low) / step < most and not distribution.log:
        values = low + step * np.arange(round((high - low) / step) + 1)
    else:
        values = (np.geomspace if distribution.log else np.linspace)(low, high, most)
        if step:
            values = low + step * np.round((values - low) / step)
    # Rounding may put the last one above the highest, which Optuna wouldn't take.
    return _Grid(distribution, np.unique(np.clip(values, low, high)))
