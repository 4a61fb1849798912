"""Transfer: what a controller learned on source tasks, brought to tasks that it has never seen.

Wong & Gesmundo (2017, arXiv:1710.10776, section 4) and Wong et al. (2018, arXiv:1803.02780) start a
new task with the trained policy and a fresh task embedding. Here that is one option of several, and
the sources' logged trials are used too: imitated, and learnt from by a model of rewards.
"""

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax import replay as replay_lib
from mnms_jax.advantage import init_baseline, rank_advantage, update_baseline
from mnms_jax.controller import make_policy
from mnms_jax.learner import Learner, Metrics, imitate, make_learner
from mnms_jax.ranker import make_ranker
from mnms_jax.replay import ReplayBank, best_designs
from mnms_jax.reward_model import RewardModel, fit_reward_model
from mnms_jax.search import Proposal, Search, SearchState, make_search
from mnms_jax.space import SearchSpace
from mnms_jax.types import (
    EMBEDDINGS,
    TRAINED,
    AnyArray,
    Array,
    Choice,
    Params,
    Policy,
    PRNGKey,
    TaskTraits,
    UserError,
    WarmStart,
)

_BEST_OF_EACH = 20  # best trials of each source that a new task's ranker chooses among
_REPLAY_CAPACITY = 256  # trials of a task, unless a source has more that are learned from


_WARM_PPO = functools.partial(make_learner, "ppo", warm=True)


def make_bank(
    space: SearchSpace, trials: Sequence[Sequence[tuple[Mapping[str, Choice], float | None]]]
) -> ReplayBank:
    """Returns each task's trials, designs with rewards (None: failed), as a replay bank.

    Who proposed the designs isn't known: their log-probabilities are 0.
    """
    capacity = max([1, *(len(own) for own in trials)])
    actions = np.zeros((len(trials), capacity, space.num_decisions), np.int32)
    rewards = np.zeros((len(trials), capacity), np.float32)
    for t, own in enumerate(trials):
        for n, (design, reward) in enumerate(own):
            actions[t, n] = space.encode(design)
            rewards[t, n] = np.nan if reward is None else reward
    sizes = np.array([len(own) for own in trials], np.int32)
    log_probs = jnp.zeros(actions.shape)
    return ReplayBank(jnp.asarray(actions), log_probs, jnp.asarray(rewards), jnp.asarray(sizes))


def make_transfer_search(
    key: PRNGKey,
    space: SearchSpace,
    sources: ReplayBank,
    *,
    params: Params | None = None,
    targets: Sequence[int | None] = (None,),
    trials_per_task: int = 2,
    similarity: AnyArray | None = None,
    start: WarmStart = WarmStart(),  # noqa: B008, as a NamedTuple it can't change
    make_policy: Callable[[SearchSpace, int], Policy] = make_policy,
    make_learner: Callable[[Policy], Learner] = _WARM_PPO,
) -> tuple[Policy, Search]:
    """Returns the policy over the targets, and the search on them that starts from the sources.

    The parameters of its states have the sources' task embeddings first, then the new tasks'.

    Args:
      key: of all that is random in what is made from the sources.
      space: the search space, of sources and targets.
      sources: trials of T tasks.
      params: of the policy that `make_policy` gives for the sources, trained; by default fresh
        ones, which know nothing but what they imitate.
      targets: the G tasks to search on. None is a new one; a number is the source of that number,
        whose search goes on: with its embedding, its trials, and a model of the others' rewards.
      trials_per_task: trials of a round on each.
      similarity: [G, T], log-weights of the sources in the mixture "similar".
      start: how the search starts.
      make_policy: makes the policy for a number of tasks.
      make_learner: makes what trains it.

    Raises:
      UserError: an unknown option or target, or the embedding "similar" without similarities.
    """
    num_sources = sources.rewards.shape[0]
    _check(start, similarity, targets, num_sources)
    rows = _policy_rows(targets, num_sources)
    is_new = np.array([target is None for target in targets])
    replayed: list[int] = []
    if start.replay:
        replayed = [t for t in np.flatnonzero(np.asarray(sources.size)).tolist() if t not in rows]
    goes_on = bool(replayed) or not is_new.all()
    most = sources.rewards.shape[1] if goes_on else 0
    capacity = max(_REPLAY_CAPACITY, trials_per_task, most)
    layout = _Layout(num_sources, rows, tuple(replayed), trials_per_task, capacity)
    built = _build(space, layout, start, make_policy, make_learner)
    init_key, model_key, imitation_key, order_key = jax.random.split(key, 4)
    warm = built.policy.init(init_key)
    if params is not None:
        table = warm["task_embedding"].at[:num_sources].set(params["task_embedding"])
        warm = {**params, "task_embedding": table}
    if start.imitation_steps:
        warm = built.imitate(imitation_key, warm, sources)
    if start.embedding != "random":
        weights = jnp.zeros((is_new.sum(), num_sources))
        if start.embedding == "similar" and similarity is not None:
            weights = jnp.asarray(similarity)[is_new]
        table = warm["task_embedding"]
        new = jax.nn.softmax(weights) @ table[:num_sources]
        warm = {**warm, "task_embedding": table.at[num_sources:].set(new)}
    knowledge = suggestions = None
    if start.ranked and (num_sources > 1 or is_new.any()):
        others = {target: _without(sources, target) for target in targets}
        known = {
            target: (built.fit(model_key, bank), best_designs(bank, _BEST_OF_EACH, order_key))
            for target, bank in others.items()
        }
        knowledge, suggestions = jax.tree.map(
            lambda *parts: jnp.stack(parts), *(known[target] for target in targets)
        )

    def init(key: PRNGKey) -> SearchState:
        state = built.search.init(key)._replace(
            params=warm, knowledge=knowledge, suggestions=suggestions
        )
        return built.recall(state, sources) if goes_on else state

    return built.targets, built.search._replace(init=init)


def _without(sources: ReplayBank, task_id: int | None) -> ReplayBank:
    """Returns the bank with one task's row empty."""
    return sources if task_id is None else sources._replace(size=sources.size.at[task_id].set(0))


class _Layout(NamedTuple):
    """Which tasks a search has, as rows of its policy; T and more are new tasks."""

    num_sources: int  # T
    targets: tuple[int, ...]
    replayed: tuple[int, ...]
    trials_per_task: int
    capacity: int  # of the replay bank

    @property
    def num_new(self) -> int:
        return sum(row >= self.num_sources for row in self.targets)

    @property
    def learned(self) -> tuple[int, ...]:
        """Rows of the replay bank: the targets come first."""
        return self.targets + self.replayed


class _Built(NamedTuple):
    """What searches with the same options share, compiled once."""

    policy: Policy  # over sources and new tasks
    targets: Policy  # over the tasks that are learned from, the targets first
    search: Search  # that starts from nothing
    imitate: Callable[[PRNGKey, Params, ReplayBank], Params]
    fit: Callable[[PRNGKey, ReplayBank], RewardModel]
    recall: Callable[[SearchState, ReplayBank], SearchState]


def _policy_rows(targets: Sequence[int | None], num_sources: int) -> tuple[int, ...]:
    new = itertools.count(num_sources)
    return tuple(next(new) if target is None else target for target in targets)


@functools.lru_cache(maxsize=16)
def _build(
    space: SearchSpace,
    layout: _Layout,
    start: WarmStart,
    make_policy: Callable[[SearchSpace, int], Policy],
    make_learner: Callable[[Policy], Learner],
) -> _Built:
    policy = make_policy(space, layout.num_sources + layout.num_new)
    targets = _for_tasks(policy, layout.learned)
    learner = make_learner(targets)
    search = make_search(
        space,
        targets,
        _embedding_only(learner) if start.trained == "embedding" else learner,
        num_tasks=len(layout.targets),
        trials_per_task=layout.trials_per_task,
        replay_capacity=layout.capacity,
        ranker=make_ranker(space, belief=start.belief) if start.ranked else None,
        num_suggested=start.suggested,
        num_replayed=len(layout.replayed),
    )
    if start.embedding == "inferred":
        search = _infer_embeddings(search, policy, layout)

    @jax.jit
    def imitate_sources(key: PRNGKey, params: Params, sources: ReplayBank) -> Params:
        return imitate(key, policy, params, sources, num_steps=start.imitation_steps)

    @jax.jit
    def fit(key: PRNGKey, sources: ReplayBank) -> RewardModel:
        return fit_reward_model(key, space, sources)

    @jax.jit
    def recall(state: SearchState, sources: ReplayBank) -> SearchState:
        return _recall(state, sources, targets, layout)

    return _Built(policy, targets, search, imitate_sources, fit, recall)


def _recall(
    state: SearchState, sources: ReplayBank, policy: Policy, layout: _Layout
) -> SearchState:
    """Puts the trials of the sources that are learned from into a state's replay bank.

    They count as the policy's own at the start, as those that proposed them aren't known.
    """
    num_rows = layout.num_sources + layout.num_new
    empty = replay_lib.init_replay(num_rows, layout.capacity, sources.actions.shape[-1])
    whole = jax.tree.map(lambda x, y: x.at[tuple(map(slice, y.shape))].set(y), empty, sources)
    bank = jax.tree.map(lambda x: x[np.array(layout.learned)], whole)
    ids = jnp.arange(len(layout.learned))
    over_trials = jax.vmap(policy.evaluate, in_axes=(None, 0, None))
    output = jax.vmap(over_trials, in_axes=(None, 0, 0))(state.params, bank.actions, ids)
    rewards = jnp.where(bank.valid, bank.rewards, jnp.nan).reshape(-1)
    baseline = update_baseline(state.baseline, jnp.repeat(ids, layout.capacity), rewards)
    return state._replace(replay=bank._replace(log_probs=output.log_probs), baseline=baseline)


def task_similarity(a: TaskTraits, b: TaskTraits) -> float:
    """Returns how alike two tasks are before any trial: 0 at most, and less where they differ.

    Sizes, lengths and numbers of classes count by their ratio, as logarithms to the base 10, 4 and
    2; of the words, those that only one of the tasks has among its commonest.
    """
    ratios = (
        (a.num_examples, b.num_examples, 10),
        (a.mean_words, b.mean_words, 4),
        (a.num_classes, b.num_classes, 2),
    )
    distance = sum((np.log(x / y) / np.log(base)) ** 2 for x, y, base in ratios)
    distance += (5 * (a.majority_share - b.majority_share)) ** 2
    fewest = min(len(a.words), len(b.words))
    shared = len({*a.words} & {*b.words}) / fewest if fewest else a.words == b.words
    return -float(distance + (2 * (1 - shared)) ** 2)


def infer_mixture(
    policy: Policy, params: Params, num_sources: int, actions: Array, advantages: Array
) -> Array:
    """Returns how much each source's embedding suits a task, by the task's trials: [T], sum 1.

    Each trial counts for the sources under whose embeddings its design is likely, by how good it
    is: exponential weights over experts that are seen through what they would have proposed
    (Auer et al. 2002).

    Args:
      policy: whose first T tasks are the sources.
      params: its parameters.
      num_sources: T.
      actions: int32 [N, D], designs tried on the task.
      advantages: [N] in [-1, 1]; 0 where a row holds no trial.
    """
    chex.assert_rank([actions, advantages], [2, 1])
    over_designs = jax.vmap(policy.evaluate, in_axes=(None, 0, None))
    over_tasks = jax.vmap(over_designs, in_axes=(None, None, 0))
    log_probs = over_tasks(params, actions, jnp.arange(num_sources)).log_probs.sum(-1)  # [T, N]
    return jax.nn.softmax(jax.nn.softmax(log_probs, axis=0) @ advantages)


def _infer_embeddings(search: Search, policy: Policy, layout: _Layout) -> Search:
    """Moves the new tasks' embeddings along with the mixtures that their trials speak for."""
    new = np.array([i for i, row in enumerate(layout.targets) if row >= layout.num_sources])

    def mixtures(params: Params, replay: ReplayBank) -> Array:
        replay = jax.tree.map(lambda x: x[new], replay_lib.fill_failures(replay))
        ids = jnp.broadcast_to(jnp.arange(len(new))[:, None], replay.rewards.shape)
        rank = jax.vmap(rank_advantage, in_axes=(None, None, 0, 0))
        ranks = rank(init_baseline(len(new)), replay, ids, replay.rewards)
        advantages = jnp.where(replay.valid, ranks, 0.0)
        infer = jax.vmap(infer_mixture, in_axes=(None, None, None, 0, 0))
        return infer(policy, params, layout.num_sources, replay.actions, advantages)

    def tell(state: SearchState, proposal: Proposal, rewards: Array) -> tuple[SearchState, Metrics]:
        after, metrics = search.tell(state, proposal, rewards)
        known = after.params["task_embedding"][: layout.num_sources]
        moved = mixtures(after.params, after.replay) - mixtures(after.params, state.replay)
        table = after.params["task_embedding"].at[layout.num_sources :].add(moved @ known)
        return after._replace(params={**after.params, "task_embedding": table}), metrics

    return search._replace(tell=jax.jit(tell)) if len(new) else search


def _for_tasks(policy: Policy, rows: tuple[int, ...]) -> Policy:
    """Returns the policy whose task i is the task `rows[i]` of another."""
    task_ids = np.array(rows, np.int32)

    def row(task_id: Array) -> Array:
        return jnp.asarray(task_ids)[task_id]

    return Policy(
        policy.init,
        lambda params, key, task_id, number: policy.sample(params, key, row(task_id), number),
        lambda params, actions, task_id: policy.evaluate(params, actions, row(task_id)),
    )


def _embedding_only(learner: Learner) -> Learner:
    """Returns the learner that leaves all but the task embeddings as they are."""

    def update(key: PRNGKey, params: Params, *rest: Any) -> tuple[Params, Any, Metrics]:
        moved, opt_state, metrics = learner.update(key, params, *rest)
        return {**params, "task_embedding": moved["task_embedding"]}, opt_state, metrics

    return Learner(learner.init, update)


def _check(
    start: WarmStart, similarity: AnyArray | None, targets: Sequence[int | None], num_sources: int
) -> None:
    known = [target for target in targets if target is not None]
    if len(set(known)) < len(known) or not set(known) <= set(range(num_sources)):
        raise UserError(f"targets {targets}: sources from 0 to {num_sources - 1}, each once")
    for field, allowed in (("embedding", EMBEDDINGS), ("trained", TRAINED)):
        if getattr(start, field) not in allowed:
            raise UserError(f"{field} {getattr(start, field)!r}: must be one of {allowed}")
    if start.suggested < 0:
        raise UserError(f"suggested {start.suggested}: must be at least 0")
    if not 0 < start.belief <= 1:
        raise UserError(f"belief {start.belief}: must be above 0 and at most 1")
    if start.embedding == "similar" and similarity is None:
        raise UserError("embedding 'similar' needs the sources' similarity to the new tasks")
