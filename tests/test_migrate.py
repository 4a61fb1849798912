import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.controller import make_policy
from mnms_jax.migrate import match_spaces, migrate_params, migrate_trials
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.transfer import make_bank
from mnms_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compiler")

OLD = SearchSpace(
    [
        Decision("units", (64, 128)),
        Decision("layers", (0, 1, 2)),
        Decision("rate", (0.1, 0.01), {"layers": (1, 2)}),
    ]
)
# Renamed decision and choice, a choice gone, another added, a decision gone, another added.
NEW = SearchSpace(
    [
        Decision("layers", (2, 1, 0, 5)),
        Decision("hidden_size", ("large", 64, 256)),
        Decision("batch_norm", (False, True)),
    ]
)
RENAMED = {"units": "hidden_size", "units:128": "large"}


def test_what_still_means_the_same_is_found():
    match = match_spaces(OLD, NEW, RENAMED)
    assert match.decisions.tolist() == [1, 0, -1]
    assert match.choices.tolist() == [[2, 1, 0, -1], [1, 0, -1, -1], [-1, -1, -1, -1]]
    assert match_spaces(OLD, NEW, {}).decisions.tolist() == [1, -1, -1]
    same = match_spaces(OLD, OLD, {})
    assert same.decisions.tolist() == [0, 1, 2]
    assert same.choices.tolist() == [[0, 1, -1], [0, 1, 2], [0, 1, -1]]


def test_true_is_not_one():
    old, new = SearchSpace([Decision("a", (1, 0))]), SearchSpace([Decision("a", (False, True))])
    assert match_spaces(old, new, {}).choices.tolist() == [[-1, -1]]


def test_known_rows_are_kept_and_the_others_fresh(key):
    match = match_spaces(OLD, NEW, RENAMED)
    params = make_policy(OLD, 2).init(key)
    fresh = make_policy(NEW, 2).init(jax.random.key(1))
    moved = migrate_params(match, params, fresh)
    assert jax.tree.map(jnp.shape, moved) == jax.tree.map(jnp.shape, fresh)
    for d, (before, choices) in enumerate(zip(match.decisions, match.choices, strict=True)):
        for c, old in enumerate(choices):
            source, (i, j) = (params, (before, old)) if old >= 0 else (fresh, (d, c))
            np.testing.assert_array_equal(
                moved["action_embedding"][d, c], source["action_embedding"][i, j]
            )
            np.testing.assert_array_equal(
                moved["head_kernel"][d, :, c], source["head_kernel"][i, :, j]
            )
            assert moved["head_bias"][d, c] == source["head_bias"][i, j]
    for name in ("task_embedding", "first_input"):
        np.testing.assert_array_equal(moved[name], params[name])
    output = make_policy(NEW, 2).sample(moved, key, jnp.int32(1), 1)
    assert np.isfinite(output.log_probs).all()


def test_an_unchanged_space_changes_nothing(key):
    params = make_policy(OLD, 2).init(key)
    fresh = make_policy(OLD, 2).init(jax.random.key(1))
    moved = migrate_params(match_spaces(OLD, OLD, {}), params, fresh)
    sample = make_policy(OLD, 2).sample
    for a, b in zip(
        sample(moved, key, jnp.int32(0), 3), sample(params, key, jnp.int32(0), 3), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def test_a_policy_of_other_sizes_is_refused(key):
    params = make_policy(OLD, 2, hidden_size=8).init(key)
    with pytest.raises(UserError, match="it was made with other sizes"):
        migrate_params(match_spaces(OLD, OLD, {}), params, make_policy(OLD, 2).init(key))


def test_trials_whose_designs_are_gone_are_dropped():
    trials = make_bank(
        OLD,
        [
            [
                ({"units": 64, "layers": 0}, 0.1),
                ({"units": 128, "layers": 2, "rate": 0.1}, None),
                ({"units": 128, "layers": 1, "rate": 0.01}, 0.3),
            ],
            [({"units": 64, "layers": 1, "rate": 0.1}, 0.4)],
        ],
    )
    moved = migrate_trials(match_spaces(OLD, NEW, RENAMED), OLD, NEW, trials)
    assert moved.size.tolist() == [3, 1]
    # layers counts 2, 1, 0, 5; hidden_size large, 64, 256; batch_norm was not there.
    assert moved.actions[0].tolist() == [[2, 1, 0], [0, 0, 0], [1, 0, 0]]
    np.testing.assert_array_equal(moved.rewards[0], np.float32([0.1, np.nan, 0.3]))
    fewer = SearchSpace([Decision("units", (128,)), *OLD.decisions[1:]])
    kept = migrate_trials(match_spaces(OLD, fewer, {}), OLD, fewer, trials)
    assert kept.size.tolist() == [2, 0]
    assert kept.rewards[0, 1] == np.float32(0.3)


@pytest.mark.parametrize(
    ("renamed", "message"),
    [
        ({"unit": "hidden_size"}, "'unit' isn't in the old space; did you mean 'units'"),
        ({"units": "hiden_size"}, "did you mean 'hidden_size'"),
        ({"units:65": "large"}, "'65': 'units' had 64, 128"),
        ({**RENAMED, "units:128": "larg"}, "'units:128' can't become 'larg'; did you mean 'large'"),
        ({"units": "layers"}, "'units' and 'layers' can't both become 'layers'"),
        ({**RENAMED, "rate": "hidden_size"}, "'units' and 'rate' can't both become 'hidden_size'"),
        ({"layers:0": "2"}, "'0' and '2' can't both become '2'"),
    ],
)
def test_wrong_names(renamed, message):
    with pytest.raises(UserError, match=message):
        match_spaces(OLD, NEW, renamed)
