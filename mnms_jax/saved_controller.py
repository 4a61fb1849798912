"""A controller as a folder, for transfer."""

import pathlib
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.artifact import load_artifact, save_artifact
from mnms_jax.replay import ReplayBank
from mnms_jax.reward import ACCURACY
from mnms_jax.space import SearchSpace
from mnms_jax.types import Params, TaskTraits, UserError


class SavedController(NamedTuple):
    """A controller as it was when its search ended, and what it had seen."""

    task_names: tuple[str, ...]  # row t of the task embeddings belongs to task t
    space: SearchSpace
    params: Params  # of the policy that `make_policy` gives for what stands here
    trials: ReplayBank  # of each task, all that were finished
    traits: tuple[TaskTraits, ...]  # of each task
    reward: str = ACCURACY  # formula of the trials' rewards
    skip_connection: bool | None = True  # whether the policy has one; None: unknown


def save_controller(path: pathlib.Path, controller: SavedController) -> None:
    """Writes a controller into a folder, in place of the one that was there.

    Beside what `load_controller` reads, its JSON file has statistics and best designs to look at.
    """
    import mnms_jax  # late, as it imports this

    space = controller.space
    description = {
        "task_names": controller.task_names,
        "space": space.to_json(),
        "fingerprint": space.fingerprint,
        "traits": [traits._asdict() for traits in controller.traits],
        "reward": controller.reward,
        "skip_connection": controller.skip_connection,
        "rewards": _statistics(controller),
        "versions": {module.__name__: module.__version__ for module in (mnms_jax, jax, flax)},
    }
    arrays = {"params": controller.params, "trials": controller.trials._asdict()}
    save_artifact(path, "controller", description, arrays)


def load_controller(path: str | pathlib.Path) -> SavedController:
    """Returns the controller that a search saved, e.g. in WORKDIR/controller.

    Raises:
      UserError: the folder holds no controller, or a damaged one.
    """
    data, arrays = load_artifact(pathlib.Path(path), "controller")
    arrays = jax.tree.map(jnp.asarray, arrays)
    try:
        space = SearchSpace.from_json(data["space"])
        if space.fingerprint != data["fingerprint"]:
            raise UserError(f"{path}: the search space isn't the one whose fingerprint it has")
        return SavedController(
            tuple(data["task_names"]),
            space,
            arrays["params"],
            ReplayBank(**arrays["trials"]),
            tuple(TaskTraits(**{**row, "words": tuple(row["words"])}) for row in data["traits"]),
            # What older ones don't say:
            data.get("reward", ACCURACY),
            data.get("skip_connection"),
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{path} holds no controller of this version: {error!r}") from error


def _statistics(controller: SavedController, num_best: int = 10) -> dict[str, dict[str, Any]]:
    """Returns, by task, what its rewards are like and its best designs."""
    found = {}
    actions, rewards = np.asarray(controller.trials.actions), np.asarray(controller.trials.rewards)
    for t, task in enumerate(controller.task_names):
        own = rewards[t][np.asarray(controller.trials.valid)[t]]
        known = own[np.isfinite(own)]
        order = np.argsort(np.where(np.isfinite(own), -own, np.inf), kind="stable")
        found[task] = {
            "trials": len(own),
            "failed": len(own) - len(known),
            "quantiles": np.quantile(known, (0, 0.25, 0.5, 0.75, 1)).tolist() if len(known) else [],
            "best": [
                {"reward": float(own[n]), "decisions": controller.space.decode(actions[t, n])}
                for n in order[: min(num_best, len(known))]
            ],
        }
    return found
