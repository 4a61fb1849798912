import itertools

import numpy as np
import pytest
from toy import SPACE

from mnms_jax.space import Decision, SearchSpace, nearest
from mnms_jax.types import UserError


def all_canonical(space):
    sizes = [range(len(decision.choices)) for decision in space.decisions]
    for actions in map(np.array, itertools.product(*sizes)):
        if not actions[~space.active(actions)].any():
            yield actions


def test_masks_and_conditions():
    np.testing.assert_array_equal(
        SPACE.action_mask, [[True, True, True], [True, True, False], [True, True, True]]
    )
    assert SPACE.parents.tolist() == [[False] * 3, [True, False, False], [False, True, False]]
    assert SPACE.conditions[1, 0].tolist() == [False, True, True]
    assert SPACE.conditions[2, 1].tolist() == [False, True, False]


def test_a_decision_is_inactive_with_its_parent():
    # b's first choice is True, under which c is inactive; with a=1 even b=False can't revive it.
    assert SPACE.active([0, 1, 2]).tolist() == [True, False, False]
    assert SPACE.active([1, 1, 2]).tolist() == [True, True, True]
    assert SPACE.active([[1, 0, 2], [1, 1, 2]]).tolist() == [[True, True, False], [True] * 3]


def test_decode_and_encode_are_inverse_on_every_design():
    designs = [SPACE.decode(actions) for actions in all_canonical(SPACE)]
    assert len(designs) == 1 + 2 + 2 * 3
    for actions, design in zip(all_canonical(SPACE), designs, strict=True):
        np.testing.assert_array_equal(SPACE.encode(design), actions)
    assert designs[0] == {"a": 1}
    assert {"a": 3, "b": False, "c": "z"} in designs


def test_inactive_values_are_ignored_so_that_equal_designs_encode_equally():
    np.testing.assert_array_equal(SPACE.encode({"a": 1, "b": False, "c": "z"}), [0, 0, 0])


def test_choices_of_other_types_are_not_mixed_up():
    space = SearchSpace([Decision("a", (1, True, 0, False))])
    assert [space.decode([i])["a"] for i in range(4)] == [1, True, 0, False]
    assert [space.encode({"a": value})[0] for value in (1, True, 0, False)] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("design", "message"),
    [
        ({"a": 1, "bb": 2}, "unknown decision 'bb'"),
        ({"a": 4}, r"4 is no choice of 'a', which has \(1, 2, 3\)"),
        ({"a": 2}, "decision 'b' is missing"),
    ],
)
def test_encode_refuses(design, message):
    with pytest.raises(UserError, match=message):
        SPACE.encode(design)


@pytest.mark.parametrize(
    ("actions", "message"), [([0, 0], r"shape \(2,\)"), ([3, 0, 0], "action 3")]
)
def test_decode_refuses(actions, message):
    with pytest.raises(UserError, match=message):
        SPACE.decode(actions)


@pytest.mark.parametrize(
    ("decisions", "message"),
    [
        ([], "at least one decision"),
        ([Decision("a", (1,)), Decision("a", (2,))], "two decisions are called 'a'"),
        ([Decision("a", ())], "choices must be a tuple with at least one"),
        ([Decision("a", "xy")], "must be a tuple with at least one choice, not 'xy'"),
        ([Decision("a", (1, 2)), Decision("b", (1,), {"a": 1})], "a must be a tuple"),
        ([Decision("a", (1, 1))], "a choice twice"),
        ([Decision("layers", (1,)), Decision("b", (1,), {"layer": (1,)})], "did you mean 'layers'"),
        ([Decision("a", (1,), {"b": (1,)}), Decision("b", (1,))], "doesn't stand before it"),
        ([Decision("a", (1, 2)), Decision("b", (1,), {"a": (3,)})], "3 is no choice of 'a'"),
    ],
)
def test_bad_spaces_are_refused(decisions, message):
    with pytest.raises(UserError, match=message):
        SearchSpace(decisions)


def test_fingerprint_and_json():
    again = SearchSpace.from_json(SPACE.to_json())
    assert again.decisions == SPACE.decisions
    assert again.fingerprint == SPACE.fingerprint
    changes = [
        [*SPACE.decisions[:2], Decision("c", ("x", "z", "y"), {"b": (False,)})],
        [*SPACE.decisions[:2], Decision("c", ("x", "y", "z"))],
        [*SPACE.decisions[:2], Decision("d", ("x", "y", "z"), {"b": (False,)})],
        SPACE.decisions[:2],
    ]
    prints = {SearchSpace(decisions).fingerprint for decisions in changes}
    assert len(prints | {SPACE.fingerprint}) == 5


def test_diff_names_every_change():
    assert SPACE.diff(SPACE) == []
    other = SearchSpace(
        [Decision("a", (1, 2, 4)), Decision("d", (0,)), Decision("c", ("x", "y", "z"))]
    )
    assert SPACE.diff(other) == [
        "decision 'b' is gone",
        "decision 'd' is new",
        "choices of 'a': (1, 2, 3) became (1, 2, 4)",
        "active_if of 'c': {'b': (False,)} became None",
    ]
    plain = SearchSpace([Decision("a", (1,)), Decision("b", (1,))])
    swapped = SearchSpace(plain.decisions[::-1])
    assert plain.diff(swapped) == ["the order of the decisions is another"]


def test_nearest():
    assert nearest("vader_moive", ["vader_movie", "trec6"]) == "; did you mean 'vader_movie'?"
    assert nearest("zzz", ["a", "b"]) == "; known: a, b"
