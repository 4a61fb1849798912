"""Studies as sources: what we exported comes back, and what others made as far as it fits."""

import json

import numpy as np
import optuna
import pytest
from toy import SPACE, make_task

from mnms_jax.optuna_bridge import add_to_optuna, load_studies
from mnms_jax.sources import digest, to_save
from mnms_jax.store import TrialRecord
from mnms_jax.types import UserError

TASKS = ("one", "two")


@pytest.fixture(autouse=True)
def quiet():
    optuna.logging.set_verbosity(optuna.logging.ERROR)


@pytest.fixture
def storage(tmp_path):
    return f"sqlite:///{tmp_path / 'studies.db'}"


def write_search(path, **config):
    """Writes a search with failed, repeated and stopped trials, and returns its log."""
    rng, records = np.random.default_rng(0), []
    for trial in range(12):
        for task in TASKS:
            design = SPACE.decode(rng.integers((3, 2, 3)))
            failed = "diverged" if trial % 5 == 4 else None
            fields = {"seconds": 1.0, "samples": 9, "round": 0, "failed": failed}
            fields["bucket"] = "log" if trial % 4 == 3 else "b"
            fields["stopped"] = trial % 6 == 1
            reward = None if failed else float(rng.random())
            records.append(TrialRecord(task, trial, design, reward, **fields))
    path.mkdir(exist_ok=True)
    about = {"tasks": TASKS, "decisions": SPACE.to_json(), **config}
    (path / "config.json").write_text(json.dumps(about))
    lines = [json.dumps(record._asdict()) + "\n" for record in records]
    (path / "trials.jsonl").write_text("".join(lines))
    return records


def test_an_exported_search_gives_the_same_source_trials(tmp_path, storage):
    records = write_search(tmp_path / "run", reward="auroc")
    write_search(tmp_path / "other", reward="accuracy", seed=1)
    add_to_optuna(tmp_path / "run", storage)
    add_to_optuna(tmp_path / "other", storage)
    found = load_studies(f"{storage}#run", SPACE, {}, "matthews")
    assert found.task_names == ("optuna:run/one", "optuna:run/two") and found.reward == "auroc"
    saved = to_save(SPACE, [make_task(name) for name in TASKS], found.params, records)
    assert saved.trials.size.tolist() == [8, 8]
    for ours, theirs in zip(found.trials, saved.trials, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert found.params["task_embedding"].shape[0] == 2
    assert digest(load_studies(f"{storage}#run", SPACE, {}, "accuracy")) == digest(found)
    assert load_studies(f"{storage}#run/two", SPACE, {}, "x").task_names == ("optuna:run/two",)
    with pytest.raises(UserError, match=r"different rewards \(accuracy, auroc\); name some"):
        load_studies(storage, SPACE, {}, "accuracy")
    with pytest.raises(UserError, match="no study with one objective is called nun"):
        load_studies(f"{storage}#nun", SPACE, {}, "accuracy")


def test_a_search_resumed_by_a_newer_version_has_its_studies(tmp_path, storage):
    write_search(tmp_path / "run", seed=0)
    added = add_to_optuna(tmp_path / "run", storage)
    write_search(tmp_path / "run", seed=0, tell="ordered", rounds_in_flight=1)
    assert add_to_optuna(tmp_path / "run", storage) == dict.fromkeys(added, 0)
    write_search(tmp_path / "run", seed=0, tell="first_done")
    with pytest.raises(UserError, match="has another search"):
        add_to_optuna(tmp_path / "run", storage)


def test_others_studies_count_as_far_as_they_fit(storage, caplog):
    study = optuna.create_study(storage=storage, study_name="mine", direction="minimize")
    distributions = {
        "first": optuna.distributions.IntDistribution(1, 9),
        "b": optuna.distributions.CategoricalDistribution(("yes", "no", 1)),
        "lr": optuna.distributions.FloatDistribution(0.0, 1.0),
    }
    for first, b, value in (
        (1, "yes", 0.25),  # b doesn't matter with a=1, whatever it is
        (2, "yes", 3.0),
        (3, "yes", float("inf")),
        (2, 1, 0.5),  # 1 isn't True
        (2, "no", 0.5),  # as in our space "no" is unknown
        (7, "yes", 0.5),
    ):
        params = {"first": first, "b": b, "lr": 0.5}
        study.add_trial(
            optuna.trial.create_trial(params=params, distributions=distributions, value=value)
        )
    study.ask()  # is never told
    optuna.create_study(storage=storage, study_name="pareto", directions=["minimize", "maximize"])
    with caplog.at_level("INFO", "absl"):
        found = load_studies(storage, SPACE, {"first": "a", "b:yes": "True"}, "accuracy")
    assert found.task_names == ("optuna:mine",) and found.reward == "accuracy"
    assert found.skip_connection is None  # a study has no policy: both kinds can start from it
    assert found.trials.size.tolist() == [3]
    designs = [SPACE.decode(actions) for actions in np.asarray(found.trials.actions[0])]
    assert designs == [{"a": 1}, {"a": 2, "b": True}, {"a": 3, "b": True}]
    np.testing.assert_array_equal(found.trials.rewards[0], [-0.25, -3.0, np.nan])
    assert (
        "study 'mine': 3 of 7 trials can be learned from; decisions that it lacks, taken to have "
        "been their first choice: c; parameters that are no decisions: lr" in caplog.text
    )


def test_mistakes_are_told_in_one_line(tmp_path, storage):
    missing = tmp_path / "typo.db"
    with pytest.raises(UserError, match=rf"--from=optuna:.*: there is no file {missing}"):
        load_studies(f"sqlite:///{missing}", SPACE, {}, "accuracy")
    assert not missing.exists()
    for url in ("nonsense://", "redis://localhost", str(tmp_path)):
        with pytest.raises(UserError, match=f"--from=optuna:{url}: Optuna can't read it"):
            load_studies(url, SPACE, {}, "accuracy")
    for url in ("postgresql://me:hunter2@host/trials", "mysql://me@host/x?password=hunter2"):
        with pytest.raises(UserError, match="its password would stand") as caught:
            load_studies(url, SPACE, {}, "accuracy")
        assert "hunter2" not in str(caught.value)
    (tmp_path / "text.db").write_text("no database")
    with pytest.raises(UserError, match="Optuna can't read it"):
        load_studies(f"sqlite:///{tmp_path / 'text.db'}", SPACE, {}, "accuracy")
    study = optuna.create_study(storage=storage, study_name="mine")
    study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=2)
    with pytest.raises(UserError, match="no trial has a design of this search space; --renamed"):
        load_studies(storage, SPACE, {}, "accuracy")
