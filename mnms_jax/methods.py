"""Ways to search one new task: transfer, its variants, and what it has to beat."""

import functools
import importlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax import replay as replay_lib
from mnms_jax.controller import make_policy, make_random_policy
from mnms_jax.evolution import make_evolution
from mnms_jax.learner import make_null_learner, make_ppo_learner
from mnms_jax.ranker import make_ranker
from mnms_jax.replay import ReplayBank
from mnms_jax.search import Proposal, Search, SearchState, make_search
from mnms_jax.space import SearchSpace, nearest
from mnms_jax.transfer import WarmStart, make_transfer_search
from mnms_jax.types import AnyArray, Array, PRNGKey, UserError


class Sources(NamedTuple):
    """What a search of one new task is told of other tasks."""

    trials: ReplayBank  # of T tasks
    similarity: Array | None = None  # [T], as `make_transfer_search` takes it; None: unknown


# Space, sources, trials a round B, key -> search.
MakeSearch = Callable[[SearchSpace, Sources, int, PRNGKey], Search]

_TRIED_OF_EACH = 20  # trials of each source whose designs the portfolio has
_ENQUEUED_OF_EACH = 2  # so that Optuna's own search begins after some ten trials
_NEED = "the methods tpe and tpe_enqueued need it (or leave them out)"
_CAPACITY = 4096  # trials that Optuna is told


class Method(NamedTuple):
    """A way to search one new task, whose id in the search is 0.

    Attributes:
      name: of the method; also that of its folder.
      make: makes the search from the sources.
      uses_sources: whether it reads them; the others are told of no trials.
      uses_similarity: whether it needs the tasks' similarity to their sources.
    """

    name: str
    make: MakeSearch
    uses_sources: bool = False
    uses_similarity: bool = False


def make_methods(names: Sequence[str]) -> tuple[Method, ...]:
    """Returns methods by name.

    - random: uniformly random designs.
    - cold: a controller that starts from nothing, trained by PPO, with a model of the task's
      rewards.
    - policy: that controller without the model.
    - evolution: regularised evolution, see `make_evolution`.
    - portfolio: the sources' best designs, see `best_designs`; then random ones.
    - tpe: Optuna's tree-structured Parzen estimator.
    - tpe_enqueued: the same, after the first few of the portfolio.
    - transfer: `make_transfer_search` with its defaults. The others change one thing each, but for
      transfer_policy, which without a model has no suggestions and no guard either:
      transfer_random, transfer_similar and transfer_inferred the new task's embedding,
      transfer_frozen trains it alone, transfer_unguarded believes the sources,
      transfer_unsuggested tries only what the model chooses, transfer_policy has no model of
      rewards, transfer_model no imitation, and transfer_replay learns from the sources' trials all
      along.

    Raises:
      UserError: an unknown name, or Optuna is needed and isn't installed.
    """
    for name in names:
        if name not in _METHODS:
            raise UserError(f"method {name!r} is unknown{nearest(name, _METHODS)}")
        if name.startswith("tpe"):
            import_optuna(_NEED)
    return tuple(_METHODS[name] for name in names)


# The same search serves all tasks and seeds, so that it is compiled once.
@functools.lru_cache(maxsize=4)
def _make_random(space: SearchSpace, trials_per_round: int) -> Search:
    return make_search(
        space,
        make_random_policy(space),
        make_null_learner(),
        num_tasks=1,
        trials_per_task=trials_per_round,
        replay_capacity=_CAPACITY,
    )


@functools.lru_cache(maxsize=4)
def make_cold_search(
    space: SearchSpace, trials_per_task: int, num_tasks: int = 1, ranked: bool = True
) -> Search:
    """Returns the search of a controller that starts from nothing, trained by PPO.

    With `ranked`, a model of the task's rewards, and of the others' as far as they fit, chooses
    among its samples and other designs.
    """
    policy = make_policy(space, num_tasks)
    # As many updates a trial as with rounds of eight trials: with more, it settles too early.
    learner = make_ppo_learner(policy, num_updates=trials_per_task)
    return make_search(
        space,
        policy,
        learner,
        num_tasks=num_tasks,
        trials_per_task=trials_per_task,
        ranker=make_ranker(space) if ranked else None,
    )


@functools.lru_cache(maxsize=4)
def _make_evolution(space: SearchSpace, trials_per_round: int) -> Search:
    return make_evolution(space, trials_per_task=trials_per_round)


def make_transfer_method(name: str, start: WarmStart, **parts: Any) -> Method:
    """Returns a search of one new task by `make_transfer_search`, with these of its arguments."""

    def make(space: SearchSpace, sources: Sources, trials_per_round: int, key: PRNGKey) -> Search:
        similarity = None if sources.similarity is None else sources.similarity[None]
        return make_transfer_search(
            key,
            space,
            sources.trials,
            trials_per_task=trials_per_round,
            similarity=similarity,
            start=start,
            **parts,
        )[1]

    return Method(name, make, True, uses_similarity=start.embedding == "similar")


def _make_portfolio(
    space: SearchSpace, sources: Sources, trials_per_round: int, key: PRNGKey
) -> Search:
    random = _make_random(space, trials_per_round)
    if not len(sources.trials.size):
        return random
    designs, number = replay_lib.best_designs(sources.trials, _TRIED_OF_EACH, key)

    def ask(state: SearchState) -> Proposal:
        proposal = random.ask(state)
        index = state.step * trials_per_round + jnp.arange(trials_per_round)
        chosen = designs[jnp.minimum(index, len(designs) - 1)]
        actions = jnp.where((index < number)[:, None], chosen, proposal.actions)
        return proposal._replace(actions=actions)

    # Not compiled: it is cheap, and would be compiled anew for each task's sources.
    return Search(random.init, ask, random.tell)


def _make_tpe(
    space: SearchSpace,
    sources: Sources,
    trials_per_round: int,
    key: PRNGKey,
    enqueued_of_each: int = 0,
) -> Search:
    """Returns Optuna's TPE as a search; `ask` can't be compiled.

    Its state is that of random search: the trials so far. Each round, a new study is told them, so
    that asking twice gives the same proposal as with any other search.
    """
    optuna = import_optuna(_NEED)
    random = _make_random(space, trials_per_round)
    first: np.ndarray = np.zeros((0, space.num_decisions))
    if enqueued_of_each:
        designs, number = replay_lib.best_designs(sources.trials, enqueued_of_each, key)
        first = np.asarray(designs[: int(number)])
    choices = {
        decision.name: optuna.distributions.CategoricalDistribution(range(len(decision.choices)))
        for decision in space.decisions
    }

    def told(actions: np.ndarray, reward: float) -> Any:
        params, failed = _active_params(space, actions), np.isnan(reward)
        states = optuna.trial.TrialState
        return optuna.trial.create_trial(
            state=states.FAIL if failed else states.COMPLETE,
            params=params,
            distributions={name: choices[name] for name in params},
            value=None if failed else reward,
        )

    def ask(state: SearchState) -> Proposal:
        round_key = jax.random.fold_in(state.key, state.step)
        study = _make_study(optuna, int(jax.random.bits(round_key)))
        size = int(state.replay.size[0])
        actions, rewards = np.asarray(state.replay.actions[0]), state.replay.rewards[0].tolist()
        study.add_trials(list(map(told, actions[:size], rewards[:size])))
        start = int(state.step) * trials_per_round
        for design in first[start : start + trials_per_round]:
            study.enqueue_trial(_active_params(space, design))
        actions = np.stack([_suggest(space, study.ask()) for _ in range(trials_per_round)])
        unknown = jnp.zeros((trials_per_round, space.num_decisions))
        return Proposal(jnp.zeros(trials_per_round, jnp.int32), jnp.asarray(actions), unknown)

    return Search(random.init, ask, random.tell)


def _make_study(optuna: Any, seed: int) -> Any:
    with warnings.catch_warnings():
        # Some of these options are experimental in older versions.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed,
            multivariate=True,
            group=True,  # decisions that are active together are modelled together
            constant_liar=True,  # for several trials in flight
        )
    return optuna.create_study(direction="maximize", sampler=sampler)


def _suggest(space: SearchSpace, trial: Any) -> np.ndarray:
    """Returns a design, int32 [D], asking only for the decisions that are active in it."""
    actions = np.zeros(space.num_decisions, np.int32)
    for d, decision in enumerate(space.decisions):
        if space.active(actions)[d]:  # depends on earlier decisions alone
            actions[d] = trial.suggest_categorical(decision.name, range(len(decision.choices)))
    return actions


def _active_params(space: SearchSpace, actions: AnyArray) -> dict[str, int]:
    active = space.active(actions)
    return {space.names[d]: int(actions[d]) for d in np.flatnonzero(active)}


def import_optuna(need: str) -> Any:
    """Returns the package.

    Raises:
      UserError: it isn't installed; the message says what the need is.
    """
    try:
        optuna = importlib.import_module("optuna")
    except ImportError:
        raise UserError(
            f"Optuna isn't installed, and {need}: pip install 'mnms_jax[optuna]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    return optuna


_METHODS = {
    method.name: method
    for method in (
        Method("random", lambda space, sources, number, key: _make_random(space, number)),
        Method("cold", lambda space, sources, number, key: make_cold_search(space, number)),
        Method(
            "policy",
            lambda space, sources, number, key: make_cold_search(space, number, ranked=False),
        ),
        Method("evolution", lambda space, sources, number, key: _make_evolution(space, number)),
        Method("portfolio", _make_portfolio, uses_sources=True),
        Method("tpe", _make_tpe),
        Method(
            "tpe_enqueued",
            functools.partial(_make_tpe, enqueued_of_each=_ENQUEUED_OF_EACH),
            uses_sources=True,
        ),
        *(
            make_transfer_method(name, start)
            for name, start in (
                ("transfer", WarmStart()),
                ("transfer_random", WarmStart(embedding="random")),
                ("transfer_similar", WarmStart(embedding="similar")),
                ("transfer_inferred", WarmStart(embedding="inferred")),
                ("transfer_frozen", WarmStart(trained="embedding")),
                ("transfer_unsuggested", WarmStart(suggested=0)),
                ("transfer_unguarded", WarmStart(belief=1.0)),
                ("transfer_policy", WarmStart(ranked=False)),
                ("transfer_model", WarmStart(imitation_steps=0)),
                ("transfer_replay", WarmStart(replay=True)),
            )
        ),
    )
}
