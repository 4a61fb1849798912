import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import SPACE

from mnms_jax.candidates import Numbers, assume_pending, choose, make_candidates, mutate
from mnms_jax.controller import make_policy
from mnms_jax.ranker import Ranker, Ranking, Trials
from mnms_jax.replay import Suggestions
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
    children = jax.jit(jax.vmap(lambda *args: mutate(args[0], SPACE, *args[1:])))
    for parent in designs:
        chances = jax.random.uniform(key, (200, 4))
        strangers = jnp.array(designs)[jax.random.randint(key, (200,), 0, len(designs))]
        mutants = np.asarray(children(chances, jnp.tile(jnp.array(parent), (200, 1)), strangers))
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


def pick(ranker, designs, tried, number, suggestions, num_suggested, is_own=True, num_made=None):
    """Chooses from designs of one decision, some of which were tried."""
    is_tried = jnp.isin(designs[:, 0], jnp.array(tried, jnp.int32))
    own = jnp.broadcast_to(is_own, len(designs))
    made = jnp.int32(len(tried) if num_made is None else num_made)
    beliefs = ranker.believe(None, None, designs)
    return choose(ranker, beliefs, designs, own, is_tried, made, number, suggestions, num_suggested)


def ranker_by(scores, alone=None):
    """Returns a ranker with these scores, by design, whatever was tried."""
    table = jnp.asarray(scores)

    def rank(designs):
        scores = table[designs[:, 0]]
        return Ranking(scores, None if alone is None else alone * scores, scores, 0.0)

    return Ranker(lambda known, trials, designs: designs, rank, lambda designs, index: designs)


def test_the_best_new_designs_are_chosen_once_each():
    designs = jnp.array([[0], [1], [2], [1], [3]])
    ranker = ranker_by([0.1, 0.9, 0.5, 0.7])
    # The 3 was tried; the second 1 repeats the first.
    assert pick(ranker, designs, [3], 3, suggest([]), 0).tolist() == [[1], [2], [0]]
    assert pick(ranker, designs, [3], 4, suggest([]), 0).tolist()[:3] == [[1], [2], [0]]


def test_every_other_of_the_first_trials_is_the_next_suggestion():
    designs = jnp.array([[0], [1], [2], [3], [4], [1], [5]])
    ranker = ranker_by([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    first = suggest(designs[:3])
    chosen = pick(ranker, designs, [], 6, first, 4)
    assert chosen.ravel().tolist() == [0, 5, 1, 4, 3, 2]
    # Rounds of one trial go on where the last one ended; the 0 was tried by chance.
    assert pick(ranker, designs, [0], 1, first, 4, num_made=2).tolist() == [[1]]
    assert pick(ranker, designs, [0], 1, first, 4, num_made=3).tolist() == [[5]]
    # No suggestion is left.
    assert pick(ranker, designs[:2], [0], 1, suggest(designs[:1]), 4, num_made=2).tolist() == [[1]]
    # What fills up is never chosen: here the 1 and the 2, until it comes again behind.
    filled = Suggestions(designs[:3], jnp.int32(1))
    assert pick(ranker, designs, [], 3, filled, 4).ravel().tolist() == [0, 5, 4]
    none = Suggestions(designs[:3], jnp.int32(0))
    assert pick(ranker, designs, [], 3, none, 4).ravel().tolist() == [5, 4, 3]


def test_what_is_pending_is_assumed_if_it_counts():
    assumed = Ranker(None, None, lambda beliefs, index: beliefs.at[index].add(1))
    valid = jnp.array([True, False, True])
    assert assume_pending(assumed, jnp.zeros(6), 2, valid).tolist() == [0, 0, 1, 0, 1, 0]


def test_after_ten_trials_every_other_one_is_by_the_tasks_own_trials_alone():
    designs = jnp.arange(20)[:, None]
    # Sources like large numbers, the task's own trials small ones.
    ranker = ranker_by(jnp.arange(20.0), alone=-1)
    chosen = pick(ranker, designs, [], 14, suggest([]), 0).ravel().tolist()
    assert chosen == [*range(19, 9, -1), 9, 0, 8, 1]
    # What sources brought it doesn't choose among, as long as there is anything else.
    is_own = designs[:, 0] % 10 == 2
    chosen = pick(ranker, designs, [], 14, suggest([]), 0, is_own=is_own).ravel().tolist()
    assert chosen == [*range(19, 9, -1), 9, 2, 8, 7]
    # They go on taking turns when the bank is full, in rounds of one and three.
    for number in (1, 3):
        rounds = [
            pick(ranker, designs, [5, 6, 7, 8], number, suggest([]), 0, num_made=made)
            for made in range(40, 46, number)
        ]
        assert (jnp.concatenate(rounds).ravel() < 5).tolist() == [False, True] * 3


def test_when_all_were_tried_the_best_of_them_is_tried_again():
    designs = jnp.array([[4], [0], [1], [2]])
    filler = Suggestions(designs[:1], jnp.int32(0))
    ranker = ranker_by([0.1, 0.5, 0.3, 0.4, 0.9])
    chosen = pick(ranker, designs, range(5), 2, filler, 0)
    assert chosen.ravel().tolist() == [1, 1]


def test_a_design_is_ranked_as_if_those_before_it_had_earned_what_was_expected():
    designs = jnp.array([[1], [2], [3], [4]])

    def rank(assumed):
        """Prefers large numbers, but not next to what is there already."""
        beside = jnp.abs(designs - designs[None, :, 0]) == 1
        scores = designs[:, 0] - 10 * jnp.any(beside & assumed[None], 1)
        return Ranking(scores, None, scores, 0.0)

    def assume(assumed, index):
        return assumed.at[index].set(True)

    ranker = Ranker(lambda known, trials, designs: jnp.zeros(4, bool), rank, assume)
    assert pick(ranker, designs, [], 2, suggest([]), 0).tolist() == [[4], [2]]
    # What is believed of more designs than there are to choose from is left out.
    assert pick(ranker, designs[:2], [], 1, suggest([]), 0).tolist() == [[2]]
