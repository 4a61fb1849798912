"""Transfer: what a controller learned on source tasks, brought to tasks that it has never seen.

Wong & Gesmundo (2017, arXiv:1710.10776, section 4) and Wong et al. (2018, arXiv:1803.02780) start a
new task with the trained policy and a fresh task embedding. Here that is one option of several, and
the sources' logged trials are used too: imitated, and learnt from by a model of rewards.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax

from mnms_jax import replay as replay_lib
from mnms_jax.advantage import init_baseline, rank_advantage
from mnms_jax.controller import make_policy
from mnms_jax.learner import Learner, Metrics, make_ppo_learner
from mnms_jax.losses import entropy_loss, imitation_loss
from mnms_jax.replay import ReplayBank
from mnms_jax.reward_model import RewardModel, fit_reward_model, make_ranker
from mnms_jax.search import Proposal, Search, SearchState, make_search
from mnms_jax.space import SearchSpace
from mnms_jax.types import Array, Choice, Params, Policy, PRNGKey, TaskTraits, UserError

EMBEDDINGS = ("mean", "random", "similar", "inferred")
TRAINED = ("all", "embedding")


class WarmStart(NamedTuple):
    """How a search on new tasks starts from source tasks.

    Attributes:
      embedding: of a new task. "mean": of the sources' embeddings. "random": fresh, as published.
        "similar": a mixture of the sources' by their similarity to the new task. "inferred": a
        mixture that follows the new task's rewards, on top of which the learner moves it.
      trained: what the new tasks' rewards change: "all" weights, or the task's "embedding" alone.
      imitation_steps: of pre-training on the sources' best trials; 0: none.
      ranked: whether a model of the sources' rewards chooses among the policy's samples.
      belief: prior probability that this model tells something of a new task; 1: no guard against
        negative transfer.
    """

    embedding: str = "mean"
    trained: str = "all"
    imitation_steps: int = 200
    ranked: bool = True
    belief: float = 0.5


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
    num_targets: int = 1,
    trials_per_task: int = 2,
    similarity: Array | None = None,
    start: WarmStart = WarmStart(),  # noqa: B008, as a NamedTuple it can't change
    learning_rate: float = 3e-3,
    entropy_weight: float = 0.01,
    imitation_weight: float = 0.1,
    num_updates: int = 4,
    batch_size: int = 32,
) -> tuple[Policy, Search]:
    """Returns the policy over the new tasks, and the search on them that starts from the sources.

    Args:
      key: of all that is random in what is made from the sources.
      space: the search space, of sources and new tasks.
      sources: trials of T tasks.
      params: of the policy that `make_policy` gives for the sources, trained; by default fresh
        ones, which know nothing but what they imitate.
      num_targets: number of new tasks G.
      trials_per_task: trials of a round on each.
      similarity: [G, T], log-weights of the sources in the mixture "similar".
      start: how the search starts.
      learning_rate: see `make_ppo_learner`, as the rest.
      entropy_weight: see there.
      imitation_weight: see there.
      num_updates: see there.
      batch_size: see there.

    Raises:
      UserError: an unknown option, or the embedding "similar" without similarities.
    """
    _check(start, similarity)
    num_sources = sources.rewards.shape[0]
    built = _build(
        space,
        num_sources,
        num_targets,
        trials_per_task,
        start,
        learning_rate,
        entropy_weight,
        imitation_weight,
        num_updates,
        batch_size,
    )
    init_key, model_key, imitation_key = jax.random.split(key, 3)
    fresh = built.policy.init(init_key)
    if params is not None:
        rows = fresh["task_embedding"].at[:num_sources].set(params["task_embedding"])
        fresh = {**params, "task_embedding": rows}
    if start.imitation_steps:
        fresh = built.imitate(imitation_key, fresh, sources)
    known, new = jnp.split(fresh["task_embedding"], [num_sources])
    if start.embedding != "random":
        weights = jnp.zeros((num_targets, num_sources))
        if start.embedding == "similar" and similarity is not None:
            weights = similarity
        new = jax.nn.softmax(weights) @ known
    warm = {**fresh, "task_embedding": jnp.concatenate([known, new])}
    model = built.fit(model_key, sources) if start.ranked else None

    def init(key: PRNGKey) -> SearchState:
        state = built.search.init(key)
        return state._replace(params=warm, knowledge=model)

    return built.targets, built.search._replace(init=init)


class _Built(NamedTuple):
    """What searches with the same options share, compiled once."""

    policy: Policy  # over sources and new tasks
    targets: Policy  # over the new tasks
    search: Search  # that starts from nothing
    imitate: Callable[[PRNGKey, Params, ReplayBank], Params]
    fit: Callable[[PRNGKey, ReplayBank], RewardModel]


@functools.lru_cache(maxsize=16)
def _build(
    space: SearchSpace,
    num_sources: int,
    num_targets: int,
    trials_per_task: int,
    start: WarmStart,
    learning_rate: float,
    entropy_weight: float,
    imitation_weight: float,
    num_updates: int,
    batch_size: int,
) -> _Built:
    policy = make_policy(space, num_sources + num_targets)
    targets = _for_tasks(policy, num_sources)
    learner = make_ppo_learner(
        targets,
        learning_rate=learning_rate,
        entropy_weight=entropy_weight,
        imitation_weight=imitation_weight,
        num_updates=num_updates,
        batch_size=batch_size,
    )
    search = make_search(
        space,
        targets,
        _embedding_only(learner) if start.trained == "embedding" else learner,
        num_tasks=num_targets,
        trials_per_task=trials_per_task,
        ranker=make_ranker(space, belief=start.belief) if start.ranked else None,
    )
    if start.embedding == "inferred":
        search = _infer_embeddings(search, policy, num_sources)

    @jax.jit
    def imitate_sources(key: PRNGKey, params: Params, sources: ReplayBank) -> Params:
        return imitate(key, policy, params, sources, num_steps=start.imitation_steps)

    @jax.jit
    def fit(key: PRNGKey, sources: ReplayBank) -> RewardModel:
        return fit_reward_model(key, space, sources)

    return _Built(policy, targets, search, imitate_sources, fit)


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
    shared = len({*a.words} & {*b.words}) / max(min(len(a.words), len(b.words)), 1)
    return -float(distance + (2 * (1 - shared)) ** 2)


def imitate(
    key: PRNGKey,
    policy: Policy,
    params: Params,
    sources: ReplayBank,
    *,
    num_imitated: int = 10,
    num_steps: int = 200,
    learning_rate: float = 5e-3,
    entropy_weight: float = 0.02,
    batch_size: int = 64,
) -> Params:
    """Trains a policy to propose each source task's best trials.

    Args:
      key: chooses the batches.
      policy: whose first T tasks are the sources.
      params: to start from.
      sources: trials of T tasks.
      num_imitated: how many trials of each.
      num_steps: steps of Adam.
      learning_rate: of Adam.
      entropy_weight: of the entropy bonus, which keeps the policy from repeating them only.
      batch_size: trials in a step.
    """
    models, there = replay_lib.best(sources, num_imitated)
    optimizer = optax.adam(learning_rate)
    evaluate = jax.vmap(policy.evaluate, in_axes=(None, 0, 0))

    def loss_fn(params: Params, rows: Array) -> Array:
        output = evaluate(params, models.actions[rows], models.task_ids[rows])
        imitation = imitation_loss(output.log_probs, there[rows].astype(jnp.float32))
        return imitation + entropy_weight * entropy_loss(output.entropy)

    def step(carry: tuple[Params, Any], key: PRNGKey) -> tuple[tuple[Params, Any], None]:
        params, opt_state = carry
        rows = jax.random.choice(key, len(there), (min(batch_size, len(there)),), replace=False)
        updates, opt_state = optimizer.update(jax.grad(loss_fn)(params, rows), opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), None

    keys = jax.random.split(key, num_steps)
    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), keys)
    return params


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


def _infer_embeddings(search: Search, policy: Policy, num_sources: int) -> Search:
    """Moves the new tasks' embeddings along with the mixtures that their trials speak for."""

    def mixtures(params: Params, replay: ReplayBank) -> Array:
        replay = replay_lib.fill_failures(replay)
        ids = jnp.broadcast_to(jnp.arange(len(replay.size))[:, None], replay.rewards.shape)
        rank = jax.vmap(rank_advantage, in_axes=(None, None, 0, 0))
        ranks = rank(init_baseline(len(replay.size)), replay, ids, replay.rewards)
        advantages = jnp.where(replay.valid, ranks, 0.0)
        infer = jax.vmap(infer_mixture, in_axes=(None, None, None, 0, 0))
        return infer(policy, params, num_sources, replay.actions, advantages)

    def tell(state: SearchState, proposal: Proposal, rewards: Array) -> tuple[SearchState, Metrics]:
        after, metrics = search.tell(state, proposal, rewards)
        known = after.params["task_embedding"][:num_sources]
        moved = mixtures(after.params, after.replay) - mixtures(after.params, state.replay)
        table = after.params["task_embedding"].at[num_sources:].add(moved @ known)
        return after._replace(params={**after.params, "task_embedding": table}), metrics

    return search._replace(tell=jax.jit(tell))


def _for_tasks(policy: Policy, first: int) -> Policy:
    """Returns the policy whose task 0 is the task `first` of another."""
    return Policy(
        policy.init,
        lambda params, key, task_id: policy.sample(params, key, first + task_id),
        lambda params, actions, task_id: policy.evaluate(params, actions, first + task_id),
    )


def _embedding_only(learner: Learner) -> Learner:
    """Returns the learner that leaves all but the task embeddings as they are."""

    def update(key: PRNGKey, params: Params, *rest: Any) -> tuple[Params, Any, Metrics]:
        moved, opt_state, metrics = learner.update(key, params, *rest)
        return {**params, "task_embedding": moved["task_embedding"]}, opt_state, metrics

    return Learner(learner.init, update)


def _check(start: WarmStart, similarity: Array | None) -> None:
    for field, allowed in (("embedding", EMBEDDINGS), ("trained", TRAINED)):
        if getattr(start, field) not in allowed:
            raise UserError(f"{field} {getattr(start, field)!r}: must be one of {allowed}")
    if not 0 < start.belief <= 1:
        raise UserError(f"belief {start.belief}: must be above 0 and at most 1")
    if start.embedding == "similar" and similarity is None:
        raise UserError("embedding 'similar' needs the sources' similarity to the new tasks")
