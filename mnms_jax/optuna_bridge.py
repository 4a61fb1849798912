"""Trials of a search as Optuna studies, for its dashboard and its analyses."""

import datetime
import json
import pathlib
from typing import Any

from mnms_jax.config import DESCRIPTIVE, RESUMABLE
from mnms_jax.methods import import_optuna
from mnms_jax.space import SearchSpace
from mnms_jax.store import TrialLog, TrialRecord, read_config
from mnms_jax.types import UserError

_SEARCH = "mnms_search"  # the study's attribute that says which search it has


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
    identity = json.dumps(
        {k: v for k, v in config.items() if k not in (*RESUMABLE, *DESCRIPTIVE)}, sort_keys=True
    )
    log = path / "trials.jsonl"
    records = TrialLog(log).records
    end = datetime.datetime.fromtimestamp(log.stat().st_mtime) if records else None
    added = {}
    for task in config["tasks"]:
        study_name = f"{name or path.absolute().name}/{task}"
        study = _open_study(optuna, storage, study_name, identity)
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


def _open_study(optuna: Any, storage: Any, name: str, identity: str) -> Any:
    try:
        study = optuna.create_study(
            storage=storage, study_name=name, direction="maximize", load_if_exists=True
        )
    except Exception as error:  # what storages raise has no common class
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"--storage={storage}: Optuna can't use it: {line}") from error
    found = study.user_attrs.get(_SEARCH, identity if not study.get_trials() else None)
    if found != identity:
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
