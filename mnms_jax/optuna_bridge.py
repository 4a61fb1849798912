"""Trials of a search as Optuna studies, and trials of studies as what a search starts from."""

import datetime
import json
import pathlib
import urllib.parse
from collections.abc import Mapping
from typing import Any

import jax
from absl import logging

from mnms_jax.config import DESCRIPTIVE, RESUMABLE
from mnms_jax.controller import make_policy
from mnms_jax.methods import import_optuna
from mnms_jax.reward import ACCURACY, LARGEST
from mnms_jax.saved_controller import SavedController
from mnms_jax.space import SearchSpace
from mnms_jax.store import TrialLog, TrialRecord, differences, read_config
from mnms_jax.transfer import make_bank
from mnms_jax.types import Choice, TaskTraits, UserError

_SEARCH = "mnms_search"  # the study's attribute that says which search it has
PREFIX = "optuna:"  # of sources that are studies
_UNKNOWN = TaskTraits(1, 1, 1.0, 1.0, ())  # of a task of which there are trials alone


def add_to_optuna(path: pathlib.Path, storage: Any, name: str = "") -> dict[str, int]:
    """Adds a search's trials to a study for each of its tasks; those that are there stay.

    The search may still be running. A trial that failed is one in Optuna too, and one that was
    stopped early is pruned. The log has no times of day: a trial is said to have ended when the log
    was last written, having lasted as long as it did.

    Args:
      path: folder of the search.
      storage: as Optuna takes it, e.g. "sqlite:///trials.db".
      name: studies are called NAME/TASK; empty: the folder's name.

    Returns:
      The number of trials that were added, by study.

    Raises:
      UserError: there is no search, Optuna isn't installed or can't use the storage, or a study of
        that name has another search.
    """
    optuna = import_optuna("studies need it")
    config = _read_config(path)
    space = SearchSpace.from_json(config["decisions"])
    about = {k: v for k, v in config.items() if k not in (*RESUMABLE, *DESCRIPTIVE)}
    log = path / "trials.jsonl"
    records = TrialLog(log).records
    end = datetime.datetime.fromtimestamp(log.stat().st_mtime) if records else None
    added = {}
    for task in config["tasks"]:
        study_name = f"{name or path.absolute().name}/{task}"
        study = _open_study(optuna, storage, study_name, about)
        known = {t.user_attrs.get("trial") for t in study.get_trials(deepcopy=False)}
        new = [r for r in records if r.task == task and r.trial not in known]
        study.add_trials([_to_trial(optuna, space, record, end) for record in new])
        added[study_name] = len(new)
    return added


def _read_config(path: pathlib.Path) -> dict[str, Any]:
    config = read_config(path)
    if "decisions" not in config:
        raise UserError(
            f"--workdir {path}: its config.json lacks the search space; run the search's command "
            "once more, which trains nothing again"
        )
    return config


def _open_study(optuna: Any, storage: Any, name: str, about: Mapping[str, Any]) -> Any:
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
    except Exception as error:  # what storages raise has no common class
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"--storage={storage}: Optuna can't use it: {line}") from error
    identity = json.dumps(about, sort_keys=True)
    found = study.user_attrs.get(_SEARCH, "{}" if study.get_trials() else identity)
    if differences(json.loads(found), about):
        raise UserError(
            f"--storage={storage}: study {name!r} has another search; take another --study"
        )
    study.set_user_attr(_SEARCH, identity)
    return study


def _to_trial(optuna: Any, space: SearchSpace, record: TrialRecord, end: Any) -> Any:
    states = optuna.trial.TrialState
    state = states.PRUNED if record.stopped else states.COMPLETE
    about = {
        "trial": record.trial,
        "round": record.round,
        "samples": record.samples,
        "seconds": record.seconds,
        "program": record.bucket,
    }
    trial = optuna.trial.create_trial(
        state=states.FAIL if record.reward is None else state,
        value=record.reward,
        params=record.decisions,
        distributions={
            decision.name: optuna.distributions.CategoricalDistribution(decision.choices)
            for decision in space.decisions
            if decision.name in record.decisions
        },
        user_attrs={**about, **({"failed": record.failed} if record.failed else {})},
        intermediate_values=dict(enumerate(record.rungs)),
    )
    trial.datetime_complete = end
    trial.datetime_start = end - datetime.timedelta(seconds=record.seconds)
    return trial


def load_studies(
    source: str, space: SearchSpace, renamed: Mapping[str, str], reward: str
) -> SavedController:
    """Returns studies as sources: their trials, and a controller that has learned nothing yet.

    Parameters are decisions of the same name, and their values choices. A decision that no trial of
    a study has is taken to have been its first choice. Trials with other values, unfinished and
    pruned ones, and our own repeats don't count; how many do is logged. Values that were minimised
    change their sign. Nothing is read but a database, and nothing of it is executed.

    Args:
      source: URL of a database as Optuna takes it, e.g. "sqlite:///trials.db"; with #NAME after it,
        the studies NAME and NAME/... alone.
      space: the search space.
      renamed: new names by old ones, see `match_spaces`.
      reward: formula of the search's rewards; what studies have that don't say it.

    Raises:
      UserError: Optuna isn't installed or can't read it, there is no such study, none of their
        trials fits, or the studies have different rewards.
    """
    optuna = import_optuna(f"--from={PREFIX}... needs it")
    found = _read_studies(optuna, *source.partition("#")[::2])
    pairs = [(study, _fitting_trials(space, study, renamed)) for study in found]
    studies = [study for study, own in pairs if own]
    if not studies:
        raise UserError(
            f"--from={PREFIX}{source}: no trial has a design of this search space; --renamed says "
            "what its parameters and values are called here"
        )
    rewards = {_reward_of(study, reward) for study in studies}
    if len(rewards) > 1:
        raise UserError(
            f"--from={PREFIX}{source}: its studies have different rewards "
            f"({', '.join(sorted(rewards))}); name some of them, as in {PREFIX}{source}#NAME"
        )
    names = tuple(f"{PREFIX}{study.study_name}" for study in studies)
    params = make_policy(space, len(names)).init(jax.random.key(0))
    traits = (_UNKNOWN,) * len(names)
    bank = make_bank(space, [own for _, own in pairs if own])
    return SavedController(names, space, params, bank, traits, rewards.pop(), skip_connection=None)


def _read_studies(optuna: Any, url: str, name: str) -> list[Any]:
    """Returns the studies of a name, those with one value to optimise, by their names."""
    parts = urllib.parse.urlsplit(url)
    if parts.password or "passw" in parts.query:
        raise UserError(
            f"--from={PREFIX}...: its password would stand in config.json; leave it out, and give "
            "it as the database's own clients take it, e.g. in ~/.pgpass"
        )
    file = url.removeprefix("sqlite:///").partition("?")[0]
    if url.startswith("sqlite:///") and not pathlib.Path(file).is_file():  # else it would be made
        raise UserError(f"--from={PREFIX}{url}: there is no file {file}")
    try:
        storage = optuna.storages.RDBStorage(url, skip_table_creation=True)
        names = sorted(optuna.get_all_study_names(storage))
        wanted = [n for n in names if not name or n == name or n.startswith(f"{name}/")]
        studies = [optuna.load_study(study_name=n, storage=storage) for n in wanted]
    except Exception as error:  # what storages raise has no common class
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"--from={PREFIX}{url}: Optuna can't read it: {line}") from error
    found = [study for study in studies if len(study.directions) == 1]
    if not found:
        known = f"it has {', '.join(names)}" if names else "it has none"
        called = f" is called {name} or {name}/..." if name else ""
        raise UserError(f"--from={PREFIX}{url}: no study with one objective{called}; {known}")
    return found


def _fitting_trials(
    space: SearchSpace, study: Any, renamed: Mapping[str, str]
) -> list[tuple[dict[str, Choice], float | None]]:
    """Returns the designs of a study's trials with their rewards, None where they failed."""
    trials = study.get_trials(deepcopy=False)
    finished = [
        trial
        for trial in trials
        if trial.state.name in ("COMPLETE", "FAIL") and trial.user_attrs.get("program") != "log"
    ]
    params = {renamed.get(name, name) for trial in finished for name in trial.params}
    missing = {d.name: d.choices[0] for d in space.decisions if d.name not in params}
    found = []
    for trial in finished:
        design = _design(space, trial.params, renamed)
        try:
            space.encode(missing | design)
        except UserError:
            continue
        if design:
            found.append((missing | design, _reward(study, trial)))
    logging.info(
        "study %r: %d of %d trials can be learned from; decisions that it lacks, taken to have "
        "been their first choice: %s; parameters that are no decisions: %s",
        study.study_name,
        len(found),
        len(trials),
        ", ".join(missing) or "none",
        ", ".join(sorted(params - {*space.names})) or "none",
    )
    return found


def _reward(study: Any, trial: Any) -> float | None:
    value = trial.value if trial.state.name == "COMPLETE" else None
    if value is None or not abs(value) <= LARGEST:
        return None
    return -value if study.direction.name == "MINIMIZE" else value


def _design(
    space: SearchSpace, params: Mapping[str, Any], renamed: Mapping[str, str]
) -> dict[str, Choice]:
    """Returns the decisions among a trial's parameters, by their names and values of today."""
    found = {}
    for name, value in params.items():
        now = renamed.get(name, name)
        if now in space.names:
            choices = space.decisions[space.names.index(now)].choices
            called = renamed.get(f"{name}:{value}")
            found[now] = next((c for c in choices if str(c) == called), value)
    return found


def _reward_of(study: Any, reward: str) -> str:
    """Returns the formula of a study's rewards, which those that we wrote say."""
    try:
        return json.loads(study.user_attrs[_SEARCH]).get("reward", ACCURACY)
    except (KeyError, TypeError, ValueError, AttributeError):
        return reward
