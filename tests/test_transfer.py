import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import SPACE

from mnms_jax.controller import choice_frequencies, make_policy
from mnms_jax.learner import imitate
from mnms_jax.replay import best
from mnms_jax.reward_model import fit_reward_model
from mnms_jax.search import pending_trials
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.transfer import (
    WarmStart,
    infer_mixture,
    make_bank,
    make_transfer_search,
    task_similarity,
)
from mnms_jax.types import TaskTraits, UserError

pytestmark = pytest.mark.usefixtures("quick_compiler")

WIDE = SearchSpace([Decision(name, (0, 1, 2, 3)) for name in "abcd"])
VALUES = np.random.default_rng(3).uniform(size=(4, 4))


def reward(design):
    return float(sum(VALUES[d][design[name]] for d, name in enumerate("abcd"))) / 4


def make_sources(num_tasks=2, number=60, shuffled=False):
    rng = np.random.default_rng(0)
    trials = []
    for _ in range(num_tasks):
        designs = [WIDE.decode(rng.integers(4, size=4)) for _ in range(number)]
        rewards = np.array([reward(design) for design in designs])
        trials.append(
            list(zip(designs, rng.permutation(rewards) if shuffled else rewards, strict=True))
        )
    return make_bank(WIDE, trials)


def run(search, rounds, key):
    """Returns the state, the rewards in order, the designs tried and the last metrics."""
    state = search.init(key)
    rewards, tried, metrics = [], [], {}
    for _ in range(rounds):
        proposal = search.ask(state)
        found = [reward(WIDE.decode(row)) for row in np.asarray(proposal.actions)]
        state, metrics = search.tell(state, proposal, jnp.asarray(found, jnp.float32))
        rewards += found
        tried += map(tuple, np.asarray(proposal.actions).tolist())
    return state, rewards, tried, metrics


def test_a_bank_holds_each_tasks_trials():
    bank = make_bank(
        SPACE,
        [[({"a": 1}, 0.5), ({"a": 2, "b": True}, None)], [({"a": 3, "b": False, "c": "z"}, 1)]],
    )
    assert bank.size.tolist() == [2, 1]
    assert bank.actions[:, 0].tolist() == [[0, 0, 0], [2, 1, 2]]
    assert bank.rewards[0, 0] == 0.5 and np.isnan(bank.rewards[0, 1])
    assert make_bank(SPACE, [[]]).valid.sum() == 0
    with pytest.raises(UserError, match="'q'"):
        make_bank(SPACE, [[({"q": 1}, 0.5)]])


def test_imitation_makes_the_best_designs_likely(key):
    sources = make_sources()
    policy = make_policy(WIDE, 2)
    params = policy.init(key)
    after = jax.jit(lambda p, s: imitate(key, policy, p, s, num_imitated=5))(params, sources)
    models, _ = best(sources, 5)
    evaluate = jax.vmap(policy.evaluate, in_axes=(None, 0, 0))
    before, now = (
        evaluate(p, models.actions, models.task_ids).log_probs.sum(1).mean()
        for p in (params, after)
    )
    assert float(before) == pytest.approx(4 * np.log(1 / 4), abs=0.3)
    assert float(now) > np.log(1 / 5) - 1.5  # 0.2 each is all that five designs can have


@pytest.mark.parametrize("embedding", ["mean", "random", "similar", "inferred"])
def test_where_a_new_tasks_embedding_starts(embedding, key):
    similarity = jnp.array([[-50.0, 0.0]])
    start = WarmStart(embedding=embedding, imitation_steps=0, ranked=False)
    known = {**make_policy(WIDE, 2).init(key)}
    _, search = make_transfer_search(
        key, WIDE, make_sources(), params=known, similarity=similarity, start=start
    )
    rows = search.init(key).params["task_embedding"]
    np.testing.assert_array_equal(rows[:2], known["task_embedding"])
    expected = {"similar": rows[1]}.get(embedding, rows[:2].mean(0))
    assert np.allclose(rows[2], expected, atol=1e-6) == (embedding != "random")


def test_the_embedding_alone_can_be_trained(key):
    start = WarmStart(trained="embedding", imitation_steps=0, ranked=False)
    _, search = make_transfer_search(key, WIDE, make_sources(), start=start)
    before = dict(search.init(key).params)
    after = dict(run(search, 3, key)[0].params)
    changed = {
        name: not np.array_equal(before[name], after[name]) for name in before if name != "cell"
    }
    assert changed.pop("task_embedding") and not any(changed.values())
    jax.tree.map(np.testing.assert_array_equal, before["cell"], after["cell"])
    np.testing.assert_array_equal(before["task_embedding"][:2], after["task_embedding"][:2])


def test_the_mixture_follows_the_rewards(key):
    policy = make_policy(SPACE, 2, init_scale=1.0)
    params = policy.init(key)
    frequencies = [choice_frequencies(policy, SPACE, params, key, t)[0] for t in range(2)]
    favourite = int(np.argmax(frequencies[1] - frequencies[0]))  # of the second source
    designs = jnp.array([[favourite, 0, 0]] * 3 + [[(favourite + 1) % 3, 0, 0]] * 3)
    good = jnp.array([1.0] * 3 + [-1.0] * 3)
    weights = [infer_mixture(policy, params, 2, designs, sign * good) for sign in (0, 1, -1)]
    np.testing.assert_allclose(weights[0], [0.5, 0.5], atol=1e-6)
    assert float(weights[1][1]) > 0.5 > float(weights[2][1])
    assert [float(w.sum()) for w in weights] == pytest.approx([1, 1, 1])


def test_an_inferred_embedding_moves_with_the_rewards(key):
    start = WarmStart(embedding="inferred", ranked=False, imitation_steps=60)
    policy, search = make_transfer_search(key, WIDE, make_sources(), start=start)
    state, *_ = run(search, 3, key)
    before = search.init(key).params["task_embedding"]
    assert np.isfinite(state.params["task_embedding"]).all()
    assert not np.array_equal(before[2], state.params["task_embedding"][2])
    assert policy.sample(state.params, key, jnp.int32(0), 3).actions.shape == (3, 4)


def test_sources_help_at_once_and_useless_ones_are_found_out(key):
    """Four searches of 24 trials in a space of 256 designs, whose best has a reward of about .8."""
    rewards, tried, beliefs = {}, {}, {}
    for name, shuffled in (("good", False), ("useless", True)):
        _, search = make_transfer_search(key, WIDE, make_sources(number=100, shuffled=shuffled))
        _, rewards[name], tried[name], metrics = run(search, 12, key)
        beliefs[name] = float(metrics["belief/0"])
    top = VALUES.max(1).mean()
    assert max(rewards["good"][:6]) > top - 0.06
    assert np.mean(rewards["good"][:6]) > np.mean(rewards["useless"][:6])
    assert beliefs["useless"] < 0.2 and beliefs["useless"] < beliefs["good"]
    assert max(rewards["useless"]) > top - 0.1  # found all the same
    for designs in tried.values():
        assert len(set(designs)) == len(designs)  # no design twice


@pytest.mark.parametrize("trials_per_task", [1, 2, 3])
def test_every_other_of_the_first_trials_is_a_sources_best_design(key, trials_per_task):
    sources = make_sources(number=40)
    _, search = make_transfer_search(
        key, WIDE, sources, trials_per_task=trials_per_task, start=WarmStart(suggested=6)
    )
    _, _, tried, _ = run(search, 9 // trials_per_task, key)
    wanted = [np.asarray(sources.actions[t])[np.argsort(-sources.rewards[t])] for t in range(2)]
    # A best design that the model chose before its turn is left out, and the next one takes it.
    best = [tuple(row) for own in wanted for row in own[:5].tolist()]
    assert all(design in best for design in tried[:6:2])
    first = {tuple(own[0].tolist()) for own in wanted}
    assert first <= set(tried[:6]) and tried[0] in first


def test_the_sources_best_designs_are_suggested_behind_what_is_pending(key):
    _, search = make_transfer_search(key, WIDE, make_sources())
    state, asked = search.init(key), []
    for number in range(3):
        state = state._replace(step=jnp.int32(number))
        asked.append(search.ask(state, pending_trials(state, asked, 4)))
    designs = [tuple(row) for proposal in asked for row in proposal.actions.tolist()]
    assert len(set(designs)) == 6
    suggested = [tuple(row) for row in state.suggestions.designs[0].tolist()]
    assert designs[::2] == [d for d in suggested if d not in designs[1::2]][:3]


def test_a_warm_start_repeats_itself(key):
    found = [run(make_transfer_search(key, WIDE, make_sources())[1], 3, key) for _ in range(2)]
    jax.tree.map(np.testing.assert_array_equal, found[0][0].params, found[1][0].params)
    assert found[0][2] == found[1][2]


def test_a_source_goes_on_with_its_embedding_and_its_trials(key):
    sources = make_sources(num_tasks=2, number=30)
    start = WarmStart(imitation_steps=0)
    known = make_policy(WIDE, 2).init(key)
    policy, search = make_transfer_search(
        key, WIDE, sources, params=known, targets=(None, 1), start=start
    )
    state = search.init(key)
    rows = state.params["task_embedding"]
    assert rows.shape[0] == 3  # the sources' and one more
    assert state.replay.size.tolist() == [0, 30]
    np.testing.assert_array_equal(state.replay.actions[1, :30], sources.actions[1])
    np.testing.assert_array_equal(state.replay.rewards[1, :30], sources.rewards[1])
    assert state.baseline.seen.tolist() == [0, 30]
    asked = policy.evaluate(state.params, sources.actions[1, 0], jnp.int32(1))
    own = make_policy(WIDE, 2).evaluate(known, sources.actions[1, 0], jnp.int32(1))
    np.testing.assert_allclose(asked.log_probs, own.log_probs, rtol=1e-5)
    np.testing.assert_allclose(state.replay.log_probs[1, 0], own.log_probs, rtol=1e-5)
    state, _, tried, metrics = run(search, 2, key)
    assert state.replay.size.tolist() == [4, 34] and {"belief/0", "belief/1"} <= set(metrics)
    again = {tuple(row) for row in np.asarray(sources.actions[1]).tolist()}
    assert not again & set(tried[1::2])  # nothing that it tried before


def test_a_new_task_beside_ones_that_go_on_learns_from_them(key):
    """A task that goes on has a model of the others' trials, and not of its own again."""
    sources = make_sources(num_tasks=2, number=40)
    good = jnp.sort(sources.rewards[1])[::-1]
    _, search = make_transfer_search(key, WIDE, sources, targets=(0, None, 1))
    state = search.init(key)
    fit = functools.partial(fit_reward_model, jax.random.split(key, 4)[1], WIDE)
    for i, own in enumerate([0, None, 1]):
        bank = sources if own is None else sources._replace(size=sources.size.at[own].set(0))
        model = jax.tree.map(lambda x: x[i], state.knowledge)  # noqa: B023
        np.testing.assert_allclose(model.scale, fit(bank).scale, rtol=1e-5)
        np.testing.assert_allclose(model.head_mean, fit(bank).head_mean, atol=1e-2)
    assert state.suggestions.designs.shape == (3, 40, 4)
    assert int(state.suggestions.number[1]) > int(state.suggestions.number[0])
    # The first suggestion for the task that goes on is the other one's best design.
    first = reward(WIDE.decode(np.asarray(state.suggestions.designs[0, 0])))
    assert first == pytest.approx(float(good[0]))
    _, rewards, _, metrics = run(search, 3, key)
    assert {"belief/0", "belief/1", "belief/2"} <= set(metrics)
    assert max(rewards[1::3]) > VALUES.max(1).mean() - 0.1


def test_sources_without_any_reward_suggest_nothing(key):
    failed = make_bank(WIDE, [[(WIDE.decode([3, 3, 3, 3]), None)] * 4, []])
    _, search = make_transfer_search(key, WIDE, failed, start=WarmStart(imitation_steps=0))
    state, _, tried, metrics = run(search, 6, key)
    assert state.suggestions.number.tolist() == [0]
    assert len(set(tried)) == 12 and tried[0] != (3, 3, 3, 3)
    assert np.isnan(state.knowledge.scale[0]) and np.isfinite(metrics["belief/0"])


def test_a_task_that_goes_on_alone_has_no_model_of_others(key):
    sources = make_sources(num_tasks=1, number=20)
    _, search = make_transfer_search(key, WIDE, sources, targets=(0,))
    state, _, _, metrics = run(search, 2, key)
    assert state.knowledge is None and "belief/0" not in metrics
    assert state.params["task_embedding"].shape[0] == 1


def test_with_replay_the_sources_are_not_forgotten(key):
    """The target's best designs are the source's worst."""
    sources = make_sources(num_tasks=1, number=60)

    def reward_on_source(replay):
        start = WarmStart(imitation_steps=300, ranked=False, replay=replay)
        _, search = make_transfer_search(key, WIDE, sources, start=start, trials_per_task=8)
        state, tell, ask = search.init(key), search.tell, search.ask
        policy, found = make_policy(WIDE, 2), []
        for round_index in range(41):
            if round_index in (0, 40):
                probability = choice_frequencies(policy, WIDE, state.params, key, 0)
                found.append(float(np.sum(probability * VALUES)) / 4)
            proposal = ask(state)
            rewards = [1 - reward(WIDE.decode(row)) for row in np.asarray(proposal.actions)]
            state, _ = tell(state, proposal, jnp.asarray(rewards, jnp.float32))
        return found

    (first, kept), (start, forgotten) = reward_on_source(True), reward_on_source(False)
    assert first == start > VALUES.mean() + 0.1
    assert kept > first - 0.05 > forgotten


def test_similar_tasks_are_alike():
    one = TaskTraits(8000, 2, 20.0, 0.5, ("good", "bad", "film"))
    assert task_similarity(one, one) == 0
    # Ten times the rows: 1. Twice the classes: 1. Four times the words: 1.
    for change in ({"num_examples": 800}, {"num_classes": 4}, {"mean_words": 80.0}):
        assert task_similarity(one, one._replace(**change)) == pytest.approx(-1)
        assert task_similarity(one._replace(**change), one) == pytest.approx(-1)
    other_words = one._replace(words=("x", "y", "film"))
    assert task_similarity(one, other_words) == pytest.approx(-((2 * 2 / 3) ** 2))


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (WarmStart(embedding="maen"), "embedding 'maen'"),
        (WarmStart(trained="none"), "trained 'none'"),
        (WarmStart(belief=0.0), "belief 0"),
        (WarmStart(embedding="similar"), "needs the sources' similarity"),
        (WarmStart(suggested=-1), "suggested -1: must be at least 0"),
    ],
)
def test_wrong_options(start, message, key):
    with pytest.raises(UserError, match=message):
        make_transfer_search(key, WIDE, make_sources(), start=start)


@pytest.mark.parametrize("targets", [(2,), (-1,), (0, 0)])
def test_wrong_targets(targets, key):
    with pytest.raises(UserError, match="sources from 0 to 1, each once"):
        make_transfer_search(key, WIDE, make_sources(), targets=targets)
