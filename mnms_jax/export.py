"""What a search is for, as folders: its best children, and its controller."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from mnms_jax.children.text import (
    TextArchitecture,
    TextHyperparameters,
    TextPreprocessing,
    make_text_model,
)
from mnms_jax.replay import ReplayBank
from mnms_jax.space import SearchSpace
from mnms_jax.store import replaced_folder, this_process, write_json, writing
from mnms_jax.tasks.text import TextEncoder, encode, make_batch
from mnms_jax.training.program import predict
from mnms_jax.types import Choice, Params, TaskTraits, UserError

_predict = jax.jit(predict, static_argnums=0)


class TextChild(NamedTuple):
    """A trained text child."""

    task: str
    class_names: tuple[str, ...]
    decisions: dict[str, Choice]
    architecture: TextArchitecture
    hyperparameters: TextHyperparameters
    encoder: TextEncoder
    table: np.ndarray | None  # float32 [V, E], pre-trained embeddings
    variables: Params

    def predict_proba(self, texts: Sequence[str]) -> np.ndarray:
        """Returns the classes' probabilities for N texts, float32 [N, number of classes]."""
        if not texts:
            return np.zeros((0, len(self.class_names)), np.float32)
        batch = make_batch(encode(self.encoder, texts), self.architecture, self.table)
        num_outputs = self.variables["params"]["wide"]["bias"].size
        model = make_text_model(self.architecture, num_outputs)
        constants = None if self.architecture.pooled else self.table
        logits = _predict(model, self.variables, batch, constants, self.hyperparameters)
        # Outputs beyond the task's classes are there because other tasks had more.
        return np.asarray(jax.nn.softmax(logits[:, : len(self.class_names)]))

    def predict(self, texts: Sequence[str]) -> list[str]:
        """Returns the likeliest class's name for each text."""
        return [self.class_names[i] for i in self.predict_proba(texts).argmax(-1)]


def save_child(path: pathlib.Path, child: TextChild) -> None:
    """Writes a child into a folder, in place of the one that was there."""
    encoder = child.encoder
    arrays = {"variables": child.variables, "hashes": encoder.hashes, "idf": encoder.idf}
    if child.table is not None:
        arrays["table"] = child.table
    description = {
        "task": child.task,
        "class_names": child.class_names,
        "decisions": child.decisions,
        "architecture": child.architecture._asdict(),
        "hyperparameters": {k: v.tolist() for k, v in child.hyperparameters._asdict().items()},
        "preprocessing": encoder.preprocessing._asdict(),
        "length": encoder.length,
        "num_ngrams": encoder.num_ngrams,
        "vocabulary": encoder.vocabulary,
    }
    _save(path, "child", description, arrays)


def load_child(path: str | pathlib.Path) -> TextChild:
    """Returns the child that `save_child` wrote into a folder, e.g. WORKDIR/best/TASK.

    Raises:
      UserError: the folder holds no child.
    """
    data, arrays = _load(pathlib.Path(path), "child")
    architecture: dict[str, Any] = data["architecture"]
    architecture["conv_widths"] = tuple(architecture["conv_widths"])
    hyperparameters: dict[str, Any] = {
        name: np.asarray(value, np.int32 if name.endswith("normalization") else np.float32)
        for name, value in data["hyperparameters"].items()
    }
    return TextChild(
        task=data["task"],
        class_names=tuple(data["class_names"]),
        decisions=data["decisions"],
        architecture=TextArchitecture(**architecture),
        hyperparameters=TextHyperparameters(**hyperparameters),
        encoder=TextEncoder(
            TextPreprocessing(**data["preprocessing"]),
            data["length"],
            data["num_ngrams"],
            tuple(data["vocabulary"]),
            np.asarray(arrays["hashes"]),
            np.asarray(arrays["idf"]),
        ),
        table=arrays.get("table"),
        variables=arrays["variables"],
    )


class SavedController(NamedTuple):
    """A controller as it was when its search ended, and what it had seen."""

    task_names: tuple[str, ...]  # row t of the task embeddings belongs to task t
    space: SearchSpace
    params: Params  # of the policy that `make_policy` gives for this space and these tasks
    trials: ReplayBank  # of each task, all that were finished
    traits: tuple[TaskTraits, ...]  # of each task


def save_controller(path: pathlib.Path, controller: SavedController) -> None:
    """Writes a controller into a folder, in place of the one that was there.

    Beside what `load_controller` reads, its JSON file has statistics and best designs to look at.
    """
    space = controller.space
    description = {
        "task_names": controller.task_names,
        "space": space.to_json(),
        "fingerprint": space.fingerprint,
        "traits": [traits._asdict() for traits in controller.traits],
        "rewards": _statistics(controller),
        "versions": {module.__name__: module.__version__ for module in (jax, flax)},
    }
    arrays = {"params": controller.params, "trials": controller.trials._asdict()}
    _save(path, "controller", description, arrays)


def load_controller(path: str | pathlib.Path) -> SavedController:
    """Returns the controller that a search saved, e.g. in WORKDIR/controller.

    Raises:
      UserError: the folder holds no controller, or a damaged one.
    """
    data, arrays = _load(pathlib.Path(path), "controller")
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


def _save(path: pathlib.Path, kind: str, description: dict[str, Any], arrays: Any) -> None:
    with replaced_folder(path) as new:
        write_json(new / f"{kind}.json", description)
        with writing(path), _checkpointer() as checkpointer:
            # As NumPy arrays, which any number and kind of devices can load.
            checkpointer.save((new / "arrays").absolute(), jax.tree.map(np.asarray, arrays))


def _load(path: pathlib.Path, kind: str) -> tuple[dict[str, Any], Any]:
    try:
        description = json.loads((path / f"{kind}.json").read_text(encoding="utf-8"))
        with _checkpointer() as checkpointer:
            return description, checkpointer.restore((path / "arrays").absolute())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no {kind} that can be read: {error}") from error


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=this_process())
