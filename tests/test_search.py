import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from toy import SPACE

from mnms_jax.advantage import ADVANTAGES, rank_advantage
from mnms_jax.controller import make_policy, make_random_policy
from mnms_jax.learner import (
    make_null_learner,
    make_ppo_learner,
    make_reinforce_learner,
    make_trpo_learner,
    make_urex_learner,
)
from mnms_jax.losses import entropy_loss, imitation_loss, ppo_loss
from mnms_jax.ranker import Ranker, Ranking, make_ranker
from mnms_jax.replay import Batch, add, best, sample
from mnms_jax.search import SearchState, make_search, pending_trials
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.types import LEARNERS, UserError

pytestmark = pytest.mark.usefixtures("quick_compiler")

NUM_TASKS = 2
# The reward of a design by task: what is best on one task is worst on the other.
WEIGHTS = jnp.array([[[0.0, 0.5, 0.9], [0.0, 0.1, 0.0], [0.0, 0.0, 0.1]]])
MAKE = {
    "ppo": make_ppo_learner,
    "reinforce": make_reinforce_learner,
    "trpo": make_trpo_learner,
    "urex": make_urex_learner,
}
SETTINGS = {
    "ppo": {"learning_rate": 5e-3},
    "reinforce": {"learning_rate": 3e-2},
    "trpo": {"max_divergence": 0.2},
    "urex": {"learning_rate": 3e-2},
}
TABLE = jnp.concatenate([WEIGHTS, 0.5 - WEIGHTS / 2])


def rewards_of(proposal):
    values = TABLE[proposal.task_ids[:, None], jnp.arange(3)[None], proposal.actions]
    return jnp.sum(values, 1)


@functools.cache
def build(learner="ppo", advantage="rank", **kwargs):
    if learner == "random":
        policy, chosen = make_random_policy(SPACE), make_null_learner()
    else:
        policy = make_policy(SPACE, NUM_TASKS)
        chosen = MAKE[learner](policy, advantage=ADVANTAGES[advantage], **kwargs)
    return policy, make_search(SPACE, policy, chosen, num_tasks=NUM_TASKS, trials_per_task=8)


@functools.cache
def compiled(search, rounds):
    """Returns the search as one scan from a state."""

    def step(state, _):
        proposal = search.ask(state)
        rewards = rewards_of(proposal)
        state, _ = search.tell(state, proposal, rewards)
        return state, rewards.mean()

    return jax.jit(lambda state: jax.lax.scan(step, state, None, rounds))


def run(search, rounds, seed=0):
    """Returns the final state and each round's mean reward."""
    return compiled(search, rounds)(search.init(jax.random.key(seed)))


@pytest.mark.parametrize(
    ("learner", "advantage"),
    [*((learner, "rank") for learner in LEARNERS), ("ppo", "relative"), ("ppo", "std")],
)
def test_the_controller_learns_both_tasks(learner, advantage):
    policy, search = build(learner, advantage, **SETTINGS[learner])
    state, rewards = run(search, 60)
    _, uniform = run(build("random")[1], 60)
    assert float(rewards[-10:].mean()) > float(uniform.mean()) + 0.15
    taken = [
        policy.sample(state.params, jax.random.key(1), jnp.int32(t), 200).actions[:, 0]
        for t in range(NUM_TASKS)
    ]
    assert float(jnp.mean(taken[0] == 2)) > 0.6  # a=3 is best on task 0 alone
    assert float(jnp.mean(taken[1] == 0)) > 0.6


def test_random_search_never_changes():
    _, search = build("random")
    state, rewards = run(search, 5)
    assert state.params == {} and state.step == 5
    assert rewards.shape[0] == 5


def test_rewards_may_be_a_list_of_any_numbers():
    _, search = build()
    state = search.init(jax.random.key(0))
    proposal = search.ask(state)
    told = [0.5, None, np.int64(1), *[0] * 13]
    expected, _ = search.tell(state, proposal, jnp.array([0.5, jnp.nan, 1.0, *[0.0] * 13]))
    for rewards in (told, tuple(told), np.array(told, float)):
        found, _ = search.tell(state, proposal, rewards)
        chex.assert_trees_all_equal(found.replay, expected.replay)


@pytest.mark.parametrize(
    "rewards", [[0.5], np.zeros((16, 1)), 0.5, np.zeros(17)], ids=lambda x: f"{np.shape(x)}"
)
def test_other_rewards_than_the_proposals_are_refused_by_shape(rewards):
    _, search = build()
    state = search.init(jax.random.key(0))
    shape = re.escape(str(list(np.shape(rewards))))
    with pytest.raises(UserError, match=rf"^rewards of shape {shape}: must be of shape \[16\]"):
        search.tell(state, search.ask(state), rewards)


def test_another_searchs_proposal_is_refused_by_shape():
    _, search = build()
    policy = make_random_policy(SPACE)
    other = make_search(SPACE, policy, make_null_learner(), num_tasks=1, trials_per_task=3)
    proposal = other.ask(other.init(jax.random.key(0)))
    with pytest.raises(UserError, match=r"of shape \[3, 3\]: this search's are of shape \[16, 3\]"):
        search.tell(search.init(jax.random.key(0)), proposal, jnp.zeros(16))


def test_asking_twice_gives_the_same_and_telling_changes_it():
    _, search = build()
    state = search.init(jax.random.key(0))
    first, second = search.ask(state), search.ask(state)
    np.testing.assert_array_equal(first.actions, second.actions)
    assert first.task_ids.tolist() == [0, 1] * 8
    state, metrics = search.tell(state, first, rewards_of(first))
    assert set(metrics) == {"policy_loss", "policy_entropy", "imitation_loss"}
    assert search.ask(state).actions.tolist() != first.actions.tolist()
    assert state.replay.size.tolist() == [8, 8]
    np.testing.assert_allclose(state.replay.log_probs[0, :8], first.log_probs[::2])


def test_a_search_is_a_function_of_its_key():
    _, search = build()
    same = [run(search, 3, s)[0] for s in (0, 0, 1)]
    leaves = [jax.tree.leaves(state.params) for state in same]
    assert all((a == b).all() for a, b in zip(leaves[0], leaves[1], strict=True))
    assert not all((a == b).all() for a, b in zip(leaves[0], leaves[2], strict=True))


@pytest.mark.parametrize("learner", ["ppo", "reinforce"])
def test_failed_trials_teach_to_avoid_them(learner):
    _, search = build(learner, learning_rate=2e-2)
    state = search.init(jax.random.key(0))
    for _ in range(40):
        proposal = search.ask(state)
        failed = proposal.actions[:, 0] == 0
        state, metrics = search.tell(state, proposal, jnp.where(failed, jnp.nan, 0.5))
        assert all(np.isfinite(value) for value in metrics.values())
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))
    actions = search.ask(state).actions
    assert float(jnp.mean(actions[:, 0] == 0)) < 0.1


def test_an_update_is_a_step_along_the_sum_of_its_losses():
    policy, search = build(num_updates=1, batch_size=4)
    state = search.init(jax.random.key(0))
    for _ in range(3):  # so that ratios are not one
        before, proposal = state, search.ask(state)
        state, metrics = search.tell(state, proposal, rewards_of(proposal))
    update_key = jax.random.fold_in(jax.random.fold_in(before.key, before.step), 1)
    batch = sample(state.replay, jax.random.split(update_key, 1)[0], 4)
    models, there = best(state.replay, 10)
    assert there.all()

    def losses(params):
        evaluate = jax.vmap(policy.evaluate, (None, 0, 0))
        output = evaluate(params, batch.actions, batch.task_ids)
        advantages = rank_advantage(state.baseline, state.replay, batch.task_ids, batch.rewards)
        imitated = evaluate(params, models.actions, models.task_ids).log_probs
        return {
            "policy_loss": ppo_loss(output.log_probs, batch.log_probs, advantages),
            "policy_entropy": -entropy_loss(output.entropy),
            "imitation_loss": imitation_loss(imitated, jnp.ones(20)),
        }

    def loss(params):
        terms = losses(params)
        return terms["policy_loss"] - 0.01 * terms["policy_entropy"] + 0.3 * terms["imitation_loss"]

    for name, value in losses(before.params).items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-2))
    grads = jax.grad(loss)(before.params)
    updates, _ = optimizer.update(grads, before.opt_state, before.params)
    for told, expected in zip(
        jax.tree.leaves(state.params),
        jax.tree.leaves(optax.apply_updates(before.params, updates)),
        strict=True,
    ):
        np.testing.assert_allclose(told, expected, atol=1e-4)


def test_all_trials_failed():
    _, search = build()
    state = search.init(jax.random.key(0))
    proposal = search.ask(state)
    state, _ = search.tell(state, proposal, jnp.full(16, jnp.nan))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state.params))


def test_searches_vmap_over_seeds():
    _, search = build()
    states, rewards = jax.vmap(lambda seed: run(search, 4, seed))(jnp.arange(3))
    assert rewards.shape == (3, 4)
    alone, _ = run(search, 4, 1)
    np.testing.assert_array_equal(states.replay.actions[1], alone.replay.actions)


def test_a_round_may_be_larger_than_the_bank():
    policy = make_policy(SPACE, 1)
    search = make_search(
        SPACE,
        policy,
        make_ppo_learner(policy),
        num_tasks=1,
        trials_per_task=9,
        replay_capacity=4,
    )
    state = search.init(jax.random.key(0))
    proposal = search.ask(state)
    state, _ = search.tell(state, proposal, jnp.arange(9.0))
    np.testing.assert_array_equal(state.replay.rewards[0], np.arange(9.0))
    np.testing.assert_array_equal(state.replay.actions[0], proposal.actions)


@pytest.mark.parametrize("related", [True, False])
def test_a_task_learns_from_the_others_trials_as_far_as_they_fit(related, key):
    space = SearchSpace([Decision(name, tuple(range(5))) for name in "abcd"])
    search = make_search(
        space,
        make_random_policy(space),
        make_null_learner(),
        num_tasks=2,
        trials_per_task=2,
        ranker=make_ranker(space),
    )
    designs = jax.random.randint(key, (60, 4), 0, 5)
    rewards = jnp.sum(designs, 1) / 16
    own = designs[:10] if related else 4 - designs[:10]  # what is good there is bad here
    state = search.init(key)
    for task_id, actions, told in ((0, designs, rewards), (1, own, rewards[:10])):
        ids = jnp.full(len(told), task_id)
        state = state._replace(
            replay=add(state.replay, Batch(ids, actions, jnp.zeros(actions.shape), told))
        )
    proposal = search.ask(state)
    likeness = jnp.sum(proposal.actions[proposal.task_ids == 1], 1) / 16
    assert likeness.mean() > 0.7 if related else likeness.mean() < 0.3  # .5 by chance


def ranked():
    """Returns a random policy, and a search of three trials a task and round with a ranker."""
    policy, ranker = make_random_policy(SPACE), make_ranker(SPACE)
    learner = make_null_learner()
    return policy, make_search(
        SPACE, policy, learner, num_tasks=NUM_TASKS, trials_per_task=3, ranker=ranker
    )


def test_no_design_is_asked_for_again_while_it_is_pending():
    _, search = ranked()
    state = search.init(jax.random.key(0))
    first = search.ask(state, pending_trials(state, [], 6))
    state, _ = search.tell(state, first, rewards_of(first))
    asked = []
    for number in range(2):
        state = state._replace(step=jnp.int32(number + 1))
        asked.append(search.ask(state, pending_trials(state, asked, 6)))
    for task_id in range(NUM_TASKS):
        designs = [
            row for p in (first, *asked) for row in p.actions[p.task_ids == task_id].tolist()
        ]
        assert len(set(map(tuple, designs))) == 9  # all that there are


def test_what_is_pending_is_assumed_where_the_next_round_is_chosen():
    """By a ranker of large numbers that are two decisions or more from what was assumed."""
    space = SearchSpace([Decision(name, tuple(range(5))) for name in "abcd"])

    def believe(known, trials, designs, most, room):
        return designs, jnp.full((room, 4), -1), 0

    def assume(beliefs, index):
        designs, assumed, number = beliefs
        return designs, assumed.at[number].set(designs[index]), number + 1

    def rank(beliefs):
        designs, assumed, _ = beliefs
        beside = jnp.any(jnp.sum(designs[:, None] != assumed[None], -1) < 2, 1)
        return Ranking(jnp.sum(designs, 1) - 100 * beside, None, jnp.zeros(len(designs)), 0.0)

    learner, ranker = make_null_learner(), Ranker(believe, rank, assume)
    search = make_search(
        space, make_random_policy(space), learner, num_tasks=2, trials_per_task=3, ranker=ranker
    )
    state, asked = search.init(jax.random.key(0)), []
    for number in range(3):
        state = state._replace(step=jnp.int32(number))
        asked.append(search.ask(state, pending_trials(state, asked, 8)))
    for task_id in range(2):
        chosen = np.concatenate([p.actions[p.task_ids == task_id] for p in asked])
        apart = np.sum(chosen[:, None] != chosen[None], -1) + 4 * np.eye(9)
        assert apart.min() >= 2
        assert chosen.sum(1).min() >= 8  # the half of all designs


def test_with_a_ranker_no_design_is_tried_twice_until_all_were():
    policy, search = ranked()
    state, tried = search.init(jax.random.key(0)), [[], []]
    for _ in range(4):
        proposal = search.ask(state)
        assert proposal.task_ids.tolist() == [0, 1] * 3
        for task_id, actions in zip(proposal.task_ids, proposal.actions.tolist(), strict=True):
            tried[int(task_id)].append(tuple(actions))
        state, metrics = search.tell(state, proposal, rewards_of(proposal))
    for designs in tried:
        assert len(set(designs[:9])) == 9  # all that there are
        assert set(designs[9:]) <= set(designs[:9])
    assert "belief/0" not in metrics  # there are no sources to believe
    # The log-probabilities are those of whoever drew the design.
    again = jax.vmap(policy.evaluate, in_axes=(None, 0, 0))({}, proposal.actions, proposal.task_ids)
    np.testing.assert_allclose(proposal.log_probs, again.log_probs, rtol=1e-6)


def test_a_state_is_saved_under_the_names_that_older_folders_have():
    # Others would make checkpoints unreadable.
    assert SearchState._fields == (
        *("params", "opt_state", "baseline", "replay", "step", "key"),
        *("knowledge", "suggestions"),
    )
