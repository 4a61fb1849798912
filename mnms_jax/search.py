"""A search as pure functions: ask for children to train, tell their rewards."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax import replay as replay_lib
from mnms_jax.advantage import Baseline, init_baseline, update_baseline
from mnms_jax.candidates import Numbers, assume_pending, choose, make_candidates
from mnms_jax.learner import Learner, Metrics
from mnms_jax.ranker import Ranker, Trials
from mnms_jax.replay import Batch, ReplayBank, Suggestions
from mnms_jax.reward_model import Expectations, Knowledge, fit_expectations
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Params, Policy, PRNGKey, UserError

_ASK, _TELL = range(2)  # uses of a round's key


class SearchState(NamedTuple):
    """All that a search knows; a pytree of arrays, to be saved as it is."""

    params: Params
    opt_state: Any
    baseline: Baseline
    replay: ReplayBank
    step: Array  # int32 [], rounds told
    key: PRNGKey  # []
    knowledge: Any = None  # for each task, the ranker's model of its sources; arrays [T, ...]
    suggestions: Suggestions | None = None  # for each task; arrays [T, ...]


class Proposal(NamedTuple):
    """The children of a round."""

    task_ids: Array  # int32 [B]
    actions: Array  # int32 [B, D]
    log_probs: Array  # [B, D], under the policy that sampled them


class Search(NamedTuple):
    """A search over a space for several tasks.

    Attributes:
      init: key -> state.
      ask: state -> the round's proposal. Asking twice gives the same proposal. A second argument
        says what was asked for and isn't told yet, see `pending_trials`.
      tell: state, proposal, rewards -> state, metrics. Rewards are an array or a list of B numbers,
        in the proposal's order; NaN or None: the trial failed. Raises a UserError if the proposal
        is of another search's shape, or there are fewer or more rewards than children.
    """

    init: Callable[[PRNGKey], SearchState]
    ask: Callable[..., Proposal]
    tell: Callable[[SearchState, Proposal, Any], tuple[SearchState, Metrics]]


def make_search(
    space: SearchSpace,
    policy: Policy,
    learner: Learner,
    *,
    num_tasks: int,
    trials_per_task: int = 8,
    replay_capacity: int = 256,
    ranker: Ranker | None = None,
    numbers: Numbers = Numbers(),  # noqa: B008, as a NamedTuple it can't change
    num_suggested: int = 0,
    num_replayed: int = 0,
) -> Search:
    """Returns a search as three jit-compiled pure functions.

    Args:
      space: the search space.
      policy: samples children.
      learner: improves the policy.
      num_tasks: number of tasks T.
      trials_per_task: children that a round trains on every task, so that B is T times this.
      replay_capacity: trials kept of every task; at least a round's.
      ranker: chooses a round's trials from more designs, and none that the replay bank holds or
        that is pending as long as there are others, by what the trials of the search's other tasks
        say too; without one, the policy's samples are the trials.
      numbers: of the designs that the ranker chooses from, for every task.
      num_suggested: among the first so many trials of a task every other one is the state's next
        suggestion, whatever the ranker says.
      num_replayed: tasks after these that have a row in the replay bank too, which is learned from
        and never grows.
    """
    capacity = max(replay_capacity, trials_per_task)
    # Not on a device, so that searches can be made while others are traced.
    task_ids = np.tile(np.arange(num_tasks, dtype=np.int32), trials_per_task)
    sample = jax.vmap(policy.sample, in_axes=(None, 0, 0, None))
    evaluate = jax.vmap(policy.evaluate, in_axes=(None, 0, 0))
    if ranker is not None:
        choose_all = _make_chooser(
            space, policy, ranker, num_tasks, trials_per_task, numbers, num_suggested
        )

    def init(key: PRNGKey) -> SearchState:
        init_key, key = jax.random.split(key)
        params = policy.init(init_key)
        return SearchState(
            params,
            learner.init(params),
            init_baseline(num_tasks + num_replayed),
            replay_lib.init_replay(num_tasks + num_replayed, capacity, space.num_decisions),
            jnp.int32(0),
            key,
        )

    def ask(state: SearchState, pending: ReplayBank | None = None) -> Proposal:
        ids = jnp.asarray(task_ids)
        if ranker is None:
            keys = jax.random.split(_round_key(state, _ASK), num_tasks)
            output = sample(state.params, keys, jnp.arange(num_tasks), trials_per_task)
            output = jax.tree.map(_take_turns, output)
        else:
            output = evaluate(state.params, _take_turns(choose_all(state, pending)), ids)
        return Proposal(ids, output.actions, output.log_probs)

    def tell(state: SearchState, proposal: Proposal, rewards: Array) -> tuple[SearchState, Metrics]:
        batch = Batch(*proposal, rewards=rewards)
        baseline = update_baseline(state.baseline, batch.task_ids, batch.rewards)
        replay = replay_lib.add(state.replay, batch)
        params, opt_state, metrics = learner.update(
            _round_key(state, _TELL), state.params, state.opt_state, baseline, replay, batch
        )
        step = state.step + 1
        state = state._replace(
            params=params, opt_state=opt_state, baseline=baseline, replay=replay, step=step
        )
        if ranker is not None and state.knowledge is not None:
            metrics = {**metrics, **_beliefs(space, ranker, state, num_tasks)}
        return state, metrics

    checked = _check_told(jax.jit(tell), (task_ids.size, space.num_decisions))
    return Search(jax.jit(init), jax.jit(ask), checked)


def _check_told(tell: Callable, shape: tuple[int, int]) -> Callable:
    """Returns what takes lists for rewards too, and checks what it is told.

    Args:
      tell: state, proposal, rewards float32 [B] -> anything.
      shape: of the actions of a proposal, [B, D].
    """

    def checked(
        state: SearchState, proposal: Proposal, rewards: Array | Sequence[float | None]
    ) -> tuple[SearchState, Metrics]:
        if proposal.actions.shape != shape:
            raise UserError(
                f"a proposal of shape {list(proposal.actions.shape)}: this search's are of shape "
                f"{list(shape)} (children, decisions); tell it of its own proposals"
            )
        if isinstance(rewards, list | tuple):
            rewards = [np.nan if reward is None else reward for reward in rewards]
        told = jnp.asarray(rewards, jnp.float32)
        if told.shape != shape[:1]:
            raise UserError(
                f"rewards of shape {list(told.shape)}: must be of shape [{shape[0]}], one for each "
                "child of the proposal in its order, NaN for a trial that failed"
            )
        return tell(state, proposal, told)

    return checked


def pending_trials(
    state: SearchState, proposals: Iterable[Proposal], most: int
) -> ReplayBank | None:
    """Returns the trials, without rewards, of rounds that were asked for and aren't told yet.

    A ranker chooses none of their designs again, and counts on what it expects of them.

    Args:
      state: of a search.
      proposals: the rounds.
      most: trials of a task that there is room for, the same each time so that `ask` is compiled
        once; with 0, nothing is said of them.
    """
    if not most:
        return None
    num_tasks, _, num_decisions = state.replay.actions.shape
    pending = replay_lib.init_replay(num_tasks, most, num_decisions)
    for proposal in proposals:
        unknown = jnp.full(proposal.task_ids.shape, jnp.nan)
        pending = replay_lib.add(pending, Batch(*proposal, rewards=unknown))
    return pending


def _round_key(state: SearchState, use: int) -> PRNGKey:
    return jax.random.fold_in(jax.random.fold_in(state.key, state.step), use)


def _take_turns(by_task: Array) -> Array:
    """Returns arrays of n trials of each task, [T, n, ...], in a round's order, [nT, ...]."""
    return jnp.concatenate(jnp.swapaxes(by_task, 0, 1))


def _trials(replay: ReplayBank, task_id: Array | int) -> Trials:
    return Trials(replay.actions[task_id], replay.rewards[task_id], replay.valid[task_id])


def _of_task(tree: Any, task_id: Array | int) -> Any:
    return jax.tree.map(lambda x: x[task_id], tree)


def _expectations(space: SearchSpace, state: SearchState, num_tasks: int) -> Expectations | None:
    """Returns what the tasks of a search let expect; None if there is one alone."""
    if num_tasks == 1:
        return None
    return fit_expectations(space, jax.tree.map(lambda x: x[:num_tasks], state.replay))


def _most_trials(state: SearchState, num_tasks: int) -> Array:
    """Returns the most trials that the bank holds of one of a search's tasks, int32 []."""
    return jnp.max(jnp.sum(state.replay.valid[:num_tasks], axis=1))


def _known(state: SearchState, others: Expectations | None, task_id: Array | int) -> Knowledge:
    """Returns what is known for a task: of its sources, and of the search's other tasks."""
    if others is not None:
        others = others._replace(scale=others.scale.at[task_id].set(jnp.nan))
    return Knowledge(_of_task(state.knowledge, task_id), others)


def _beliefs(space: SearchSpace, ranker: Ranker, state: SearchState, num_tasks: int) -> Metrics:
    others, most = _expectations(space, state, num_tasks), _most_trials(state, num_tasks)

    def belief_of(task_id: Array) -> Array:
        trials = _trials(state.replay, task_id)
        known = _known(state, others, task_id)
        return ranker.rank(ranker.believe(known, trials, trials.actions[:1], most)).belief

    beliefs = jax.vmap(belief_of)(jnp.arange(num_tasks))
    return {f"belief/{t}": beliefs[t] for t in range(num_tasks)}


def _make_chooser(
    space: SearchSpace,
    policy: Policy,
    ranker: Ranker,
    num_tasks: int,
    number: int,
    numbers: Numbers,
    num_suggested: int,
) -> Callable[[SearchState, ReplayBank | None], Array]:
    """Returns what chooses a round's designs, int32 [T, number, D], by the state and pending."""

    def choose_for(
        state: SearchState,
        pending: ReplayBank | None,
        others: Expectations | None,
        most: Array,
        task_id: Array,
    ) -> Array:
        key = jax.random.fold_in(_round_key(state, _ASK), task_id)
        trials = _trials(state.replay, task_id)
        suggestions = _of_task(state.suggestions, task_id)
        if suggestions is None:
            suggestions = Suggestions(jnp.zeros((0, space.num_decisions), jnp.int32), jnp.int32(0))
        designs, is_own = make_candidates(
            key, space, policy, state.params, task_id, trials, suggestions, numbers
        )
        believe = functools.partial(ranker.believe, _known(state, others, task_id), trials)
        is_tried, num_made = _are_among(designs, trials), state.replay.size[task_id]
        if pending is None:
            beliefs = believe(designs, most, number)
        else:
            own = _trials(pending, task_id)
            everything = jnp.concatenate([designs, own.actions])
            beliefs = believe(everything, most, number + len(own.valid))
            beliefs = assume_pending(ranker, beliefs, len(designs), own.valid)
            is_tried |= _are_among(designs, own)
            num_made += jnp.sum(own.valid)
        return choose(
            *(ranker, beliefs, designs, is_own, is_tried),
            *(num_made, number, suggestions, num_suggested),
        )

    def choose_all(state: SearchState, pending: ReplayBank | None) -> Array:
        others, most = _expectations(space, state, num_tasks), _most_trials(state, num_tasks)
        over_tasks = jax.vmap(choose_for, in_axes=(None, None, None, None, 0))
        return over_tasks(state, pending, others, most, jnp.arange(num_tasks))

    return choose_all


def _are_among(designs: Array, trials: Trials) -> Array:
    """Returns which designs [M, D] were tried, bool [M]."""
    same = jnp.all(designs[:, None] == trials.actions[None], axis=-1)
    return jnp.any(same & trials.valid[None], axis=1)
