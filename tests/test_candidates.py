import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import SPACE

from mnms_jax.candidates import Numbers, add_pending, choose, make_candidates, mutate
from mnms_jax.controller import make_policy
from mnms_jax.replay import Suggestions
from mnms_jax.reward_model import Ranking, Trials
from mnms_jax.space import Decision, SearchSpace

pytestmark = pytest.mark.usefixtures("quick_compiler")

WIDE = SearchSpace([Decision(name, tuple(range(4))) for name in "abcdef"])
NONE = Suggestions(jnp.zeros((0, 6), jnp.int32), jnp.int32(0))


def designs_of(space):
    sizes = [len(decision.choices) for decision in space.decisions]
    every = np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), -1)
    return {tuple(np.where(space.active(row), row, 0).tolist()) for row in every}


def test_a_mutant_differs_in_one_active_decision(key):
    """In the toy space, b hangs on a, and c on b."""
    designs = sorted(designs_of(SPACE))
    children = jax.jit(jax.vmap(lambda key, parent, stranger: mutate(key, SPACE, parent, stranger)))
    for parent in designs:
        keys = jax.random.split(key, 200)
        strangers = jnp.array(designs)[jax.random.randint(key, (200,), 0, len(designs))]
        mutants = np.asarray(children(keys, jnp.tile(jnp.array(parent), (200, 1)), strangers))
        assert {tuple(row) for row in mutants.tolist()} <= set(designs) - {parent}
        was, now = SPACE.active(np.array(parent)), SPACE.active(mutants)
        changed = (mutants != np.array(parent)) & was & now
        lost = was & ~now
        assert ((changed.sum(1) == 1) | lost.any(1)).all()
        # Each choice of another active decision is drawn.
        assert len({tuple(row) for row in mutants.tolist()}) >= was.sum()


def no_trials(capacity=5):
    return Trials(
        jnp.zeros((capacity, 6), jnp.int32), jnp.zeros(capacity), jnp.zeros(capacity, bool)
    )


def candidates(key, numbers, trials=None, suggestions=NONE):
    """Returns designs and which of them no source brought."""
    policy = make_policy(WIDE, 2)
    found = make_candidates(
        key,
        WIDE,
        policy,
        policy.init(key),
        jnp.int32(1),
        no_trials() if trials is None else trials,
        suggestions,
        numbers,
    )
    return map(np.asarray, found)


def distance(designs, parents):
    return (designs[:, None] != np.asarray(parents)[None]).sum(-1).min(1)


def test_mutants_are_of_the_best_trials_and_of_what_was_good_elsewhere(key):
    rewards = jnp.array([0.1, jnp.nan, 0.9, 0.8, 0.0])
    actions = jnp.array([[0] * 6, [1] * 6, [2] * 6, [3] * 6, [0, 1, 2, 3, 0, 1]])
    trials = Trials(actions, rewards, jnp.array([True, True, True, True, False]))
    suggestions = jnp.array([[0, 0, 0, 1, 1, 1], [3, 2, 1, 0, 3, 2]])
    theirs = Suggestions(suggestions, jnp.int32(1))
    found, is_own = candidates(key, Numbers(5, 8, 300), trials, theirs)
    assert found.shape == (2 + 5 + 8 + 300, 6)
    np.testing.assert_array_equal(found[:2], suggestions)
    np.testing.assert_array_equal(is_own, np.arange(len(found)) >= 2 + 5 + 150)
    (brought,), drawn, mutants = suggestions[:1], found[157:165], found[165:]
    assert (distance(found[7:157], [brought]) == 1).all()
    near = {tuple(p): (distance(mutants, [p]) == 1).sum() for p in np.asarray(actions).tolist()}
    assert near[(2,) * 6] > 20 and near[(3,) * 6] > 20 and near[(0,) * 6] > 20
    assert near[(1,) * 6] < 20 and near[(0, 1, 2, 3, 0, 1)] < 20  # failed; no trial
    # All others are mutants of random designs, in place of trials that aren't there.
    assert (distance(mutants, [*actions[:1], *actions[2:4], *drawn]) <= 1).all()
    # Sources without any reward bring none: these are of the task's own designs too.
    found, _ = candidates(key, Numbers(5, 8, 300), trials, theirs._replace(number=jnp.int32(0)))
    assert (distance(found[7:157], [*actions[:1], *actions[2:4], *drawn]) <= 1).all()


def test_without_trials_or_suggestions_there_are_samples_and_random_designs(key):
    found, _ = candidates(key, Numbers(30, 20, 10))
    assert found.shape == (60, 6)
    assert len(np.unique(found, axis=0)) > 50
    again, _ = candidates(key, Numbers(30, 20, 10))
    np.testing.assert_array_equal(found, again)


def suggest(designs):
    designs = jnp.asarray(designs, jnp.int32).reshape(-1, 1)
    return Suggestions(designs, jnp.int32(len(designs)))


def pick(rank, designs, trials, *rest, is_own=True, num_made=None):
    """Chooses among designs whose features are twice their choices."""
    known = trials._replace(features=2.0 * trials.actions)
    own = jnp.broadcast_to(is_own, len(designs))
    made = jnp.sum(trials.valid) if num_made is None else num_made
    return choose(rank, designs, own, 2.0 * designs, known, made, *rest)


def rank_by(scores):
    """Returns a ranker with these scores, by design, whatever was tried."""
    table = jnp.asarray(scores)

    def rank(trials, designs, features):
        scores = table[designs[:, 0]]
        return Ranking(scores, None, scores, 0.0)

    return rank


def test_the_best_new_designs_are_chosen_once_each():
    designs = jnp.array([[0], [1], [2], [1], [3]])
    rank = rank_by([0.1, 0.9, 0.5, 0.7])
    tried = Trials(jnp.array([[3], [0]]), jnp.zeros(2), jnp.array([True, False]))
    # The 3 was tried; the 0 was not; the second 1 repeats the first.
    assert pick(rank, designs, tried, 3, suggest([]), 0).tolist() == [[1], [2], [0]]
    assert pick(rank, designs, tried, 4, suggest([]), 0).tolist()[:3] == [[1], [2], [0]]


def test_every_other_of_the_first_trials_is_the_next_suggestion():
    designs = jnp.array([[0], [1], [2], [3], [4], [1], [5]])
    rank = rank_by([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    nothing = Trials(jnp.zeros((4, 1), jnp.int32), jnp.zeros(4), jnp.zeros(4, bool))
    first = suggest(designs[:3])
    chosen = pick(rank, designs, nothing, 6, first, 4)
    assert chosen.ravel().tolist() == [0, 5, 1, 4, 3, 2]
    # Rounds of one trial go on where the last one ended; the 0 was tried by chance.
    tried = nothing._replace(valid=jnp.array([True, True, False, False]))
    assert pick(rank, designs, tried, 1, first, 4).tolist() == [[1]]
    three = nothing._replace(valid=jnp.array([True, True, True, False]))
    assert pick(rank, designs, three, 1, first, 4).tolist() == [[5]]
    # No suggestion is left.
    assert pick(rank, designs[:2], tried, 1, suggest(designs[:1]), 4).tolist() == [[1]]
    # What fills up is never chosen: here the 1 and the 2, until it comes again behind.
    filled = Suggestions(designs[:3], jnp.int32(1))
    assert pick(rank, designs, nothing, 3, filled, 4).ravel().tolist() == [0, 5, 4]
    none = Suggestions(designs[:3], jnp.int32(0))
    assert pick(rank, designs, nothing, 3, none, 4).ravel().tolist() == [5, 4, 3]


def test_what_is_pending_counts_as_tried_with_what_is_expected_of_it():
    designs = jnp.array([[0], [1], [2], [3], [4]])
    rank = rank_by([0.1, 0.2, 0.3, 0.4, 0.5])
    tried = Trials(jnp.array([[4], [0]]), jnp.array([0.7, 0.0]), jnp.array([True, False]))
    tried = tried._replace(features=2.0 * tried.actions)
    pending = Trials(
        jnp.array([[0], [3], [1]]), jnp.full(3, jnp.nan), jnp.array([True, True, False])
    )
    trials = add_pending(rank, tried, pending._replace(features=2.0 * pending.actions))
    assert trials.valid.tolist() == [True, True, True, False, False]
    assert trials.real.tolist() == [True, False, False, False, False]
    assert trials.actions[:3].ravel().tolist() == [4, 0, 3]
    assert trials.features[:3].ravel().tolist() == [8.0, 0.0, 6.0]
    np.testing.assert_allclose(trials.rewards[:3], [0.7, 0.1, 0.4])
    # Neither is chosen again; and the turns of suggestions go on behind them.
    own = jnp.ones(len(designs), bool)
    made = jnp.int32(3)
    chosen = choose(rank, designs, own, 2.0 * designs, trials, made, 2, suggest(designs[:2]), 4)
    assert chosen.ravel().tolist() == [2, 1]


def test_after_ten_trials_every_other_one_is_by_the_tasks_own_trials_alone():
    designs = jnp.arange(20)[:, None]

    def rank(trials, designs, features):
        """Sources like large numbers, the task's own trials small ones."""
        return Ranking(1.0 * designs[:, 0], -1.0 * designs[:, 0], jnp.zeros(len(designs)), 0.0)

    nothing = Trials(jnp.zeros((14, 1), jnp.int32), jnp.zeros(14), jnp.zeros(14, bool))
    chosen = pick(rank, designs, nothing, 14, suggest([]), 0).ravel().tolist()
    assert chosen == [*range(19, 9, -1), 9, 0, 8, 1]
    # What sources brought it doesn't choose among, as long as there is anything else.
    is_own = designs[:, 0] % 10 == 2
    chosen = pick(rank, designs, nothing, 14, suggest([]), 0, is_own=is_own).ravel().tolist()
    assert chosen == [*range(19, 9, -1), 9, 2, 8, 7]
    # They go on taking turns when the bank is full, in rounds of one and three.
    full = Trials(jnp.arange(5, 9)[:, None], jnp.zeros(4), jnp.ones(4, bool))
    for number in (1, 3):
        rounds = [
            pick(rank, designs, full, number, suggest([]), 0, num_made=jnp.int32(made))
            for made in range(40, 46, number)
        ]
        assert (jnp.concatenate(rounds).ravel() < 5).tolist() == [False, True] * 3


def test_when_all_were_tried_the_best_of_them_is_tried_again():
    designs = jnp.array([[4], [0], [1], [2]])
    tried = Trials(jnp.arange(5)[:, None], jnp.zeros(5), jnp.ones(5, bool))
    filler = Suggestions(designs[:1], jnp.int32(0))
    chosen = pick(rank_by([0.1, 0.5, 0.3, 0.4, 0.9]), designs, tried, 2, filler, 0)
    assert chosen.ravel().tolist() == [1, 1]


def test_a_design_is_ranked_as_if_those_before_it_had_earned_what_was_expected():
    seen = []

    def rank(trials, designs, features):
        """Prefers large numbers, but not next to what is there already."""
        seen.append(trials)
        beside = jnp.abs(designs - trials.actions[None, :, 0]) == 1
        scores = designs[:, 0] - 10 * jnp.any(beside & trials.valid[None], 1)
        return Ranking(scores, None, designs[:, 0] / 10, 0.0)

    nothing = Trials(jnp.zeros((1, 1), jnp.int32), jnp.zeros(1), jnp.zeros(1, bool))
    with jax.disable_jit():
        chosen = pick(rank, jnp.array([[1], [2], [3], [4]]), nothing, 2, suggest([]), 0)
    assert chosen.tolist() == [[4], [2]]
    assert [trials.valid.tolist() for trials in seen] == [[False] * 3, [True, False, False]]
    assert seen[1].actions[0].tolist() == [4] and not seen[1].real.any()
    np.testing.assert_allclose(seen[1].rewards[0], 0.4)
    assert seen[1].features[0].tolist() == [8.0]  # those of its design
