import jax
import numpy as np
import pytest
from toy import SPACE, make_task

from mnms_jax.controller import make_policy
from mnms_jax.saved_controller import SavedController, save_controller
from mnms_jax.sources import bank_of_records, digest, load_sources, similarities, to_save
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.store import TrialRecord
from mnms_jax.tasks.traits import task_traits
from mnms_jax.transfer import make_bank
from mnms_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compiler")

ONE, TWO, NEW = make_task("one", 200), make_task("two", 90, num_classes=3), make_task("new", 80)


def record(task, trial, design, reward, **kwargs):
    fields = {"failed": None, "seconds": 1.0, "samples": 10, "bucket": "b", "round": 0, **kwargs}
    return TrialRecord(task, trial, design, reward, **fields)


@pytest.fixture
def saved(key):
    trials = [[({"a": 1}, 0.5), ({"a": 2, "b": True}, 0.6)], [({"a": 3, "b": True}, None)]]
    return SavedController(
        ("one", "two"),
        SPACE,
        make_policy(SPACE, 2).init(key),
        make_bank(SPACE, trials),
        (task_traits(ONE), task_traits(TWO)),
    )


def test_a_search_folder_and_a_controller_folder_are_both_taken(saved, tmp_path):
    save_controller(tmp_path / "run" / "controller", saved)
    for path in (tmp_path / "run", tmp_path / "run" / "controller"):
        loaded = load_sources(path, SPACE, {})
        assert loaded.task_names == ("one", "two")
        assert digest(loaded) == digest(saved)
    with pytest.raises(UserError, match=r"holds no controller; there are some in .*/run$"):
        load_sources(tmp_path, SPACE, {})
    with pytest.raises(UserError, match="'x' isn't in the old space"):  # which is the same
        load_sources(tmp_path / "run", SPACE, {"x": "a"})
    (tmp_path / "trials.jsonl").touch()
    with pytest.raises(UserError, match="its search hasn't ended"):
        load_sources(tmp_path, SPACE, {})


def test_a_changed_space_is_told_and_what_means_the_same_is_kept(saved, tmp_path, caplog):
    save_controller(tmp_path, saved)
    space = SearchSpace(
        [
            Decision("a", (2, 1)),
            Decision("b", (True, False), {"a": (2,)}),
            Decision("d", (0, 1)),
        ]
    )
    with caplog.at_level("WARNING", "absl"):
        loaded = load_sources(tmp_path, space, {})
    assert "decision 'c' is gone" in caplog.text and "decision 'd' is new" in caplog.text
    assert "4 of 6 choices are known, 1 of 3 trials have designs that are gone" in caplog.text
    assert loaded.space is space
    assert loaded.trials.size.tolist() == [2, 0]
    assert loaded.trials.actions[0].tolist() == [[1, 0, 0], [0, 0, 0]]
    assert loaded.params["head_bias"].shape == (3, 2)


def test_another_space_altogether_is_refused(saved, tmp_path):
    save_controller(tmp_path, saved)
    with pytest.raises(UserError, match=r"no decision in common \(it has a, b, c\)"):
        load_sources(tmp_path, SearchSpace([Decision("z", (1, 2))]), {})


def test_a_space_of_which_no_trial_is_left_is_refused(saved, tmp_path):
    save_controller(tmp_path, saved)
    space = SearchSpace([Decision("a", (7, 8)), Decision("b", (True, False))])
    with pytest.raises(UserError, match="none of its 3 trials has a design of this one"):
        load_sources(tmp_path, space, {})


def test_what_is_saved_holds_the_finished_trials_of_all_tasks(saved, key):
    records = [
        record("new", 0, {"a": 1}, 0.4),
        record("new", 1, {"a": 2, "b": True}, 0.5, stopped=True),
        record("new", 2, {"a": 1}, 0.4, bucket="log"),
        record("new", 3, {"a": 3, "b": True}, None, failed="diverged"),
        record("new", 4, {"a": 3, "b": False, "c": "y"}, 0.7),
    ]
    alone = to_save(SPACE, [NEW], make_policy(SPACE, 1).init(key), records)
    assert alone.task_names == ("new",) and alone.trials.size.tolist() == [3]
    params = make_policy(SPACE, 3).init(key)
    both = to_save(SPACE, [NEW], params, records, saved)
    assert both.task_names == ("one", "two", "new")
    assert both.trials.size.tolist() == [2, 1, 3]
    assert both.trials.actions.shape == (3, 3, 3)
    np.testing.assert_array_equal(both.trials.rewards[2], np.float32([0.4, np.nan, 0.7]))
    assert both.traits[2] == task_traits(NEW)
    assert digest(both) != digest(saved)


def test_records_become_rows_by_task():
    records = [record("b", 0, {"a": 1}, 0.1), record("a", 0, {"a": 1}, 0.2)]
    bank = bank_of_records(SPACE, ("a", "b", "c"), records)
    assert bank.size.tolist() == [1, 1, 0]
    np.testing.assert_allclose(jax.numpy.ravel(bank.rewards), [0.2, 0.1, 0.0], rtol=1e-6)


def test_similarities_to_every_source(saved):
    found = similarities([task_traits(task) for task in (NEW, TWO)], saved.traits)
    assert found.shape == (2, 2)
    assert found[1, 1] == 0 and found[1, 0] < 0 and np.isfinite(found).all()


def test_a_task_that_went_on_has_one_row_with_all_its_trials(saved, key):
    params = make_policy(SPACE, 3).init(key)
    records = [
        record("new", 0, {"a": 1}, 0.1),
        record("one", 0, {"a": 3, "b": True}, 0.7),
        record("two", 0, {"a": 1}, 0.2),
        record("two", 1, {"a": 2, "b": False, "c": "z"}, 0.3),
        record("two", 2, {"a": 2, "b": True}, 0.4),
    ]
    after = to_save(SPACE, (NEW, TWO, ONE), params, records, saved)
    assert after.task_names == ("one", "two", "new")
    assert [traits.num_classes for traits in after.traits] == [2, 3, 2]
    assert after.trials.size.tolist() == [3, 4, 1]
    np.testing.assert_allclose(after.trials.rewards[0, :3], [0.5, 0.6, 0.7], rtol=1e-6)
    np.testing.assert_allclose(after.trials.rewards[1], [np.nan, 0.2, 0.3, 0.4], rtol=1e-6)
    assert after.trials.actions[1, 3].tolist() == SPACE.encode({"a": 2, "b": True}).tolist()
