"""A description and arrays as a folder."""

import json
import pathlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mnms_jax.store import replaced_folder, this_process, write_json, writing
from mnms_jax.types import UserError


def save_artifact(path: pathlib.Path, kind: str, description: dict[str, Any], arrays: Any) -> None:
    """Writes KIND.json and arrays into a folder, in place of the one that was there."""
    with replaced_folder(path) as new:
        write_json(new / f"{kind}.json", description)
        with writing(path), _checkpointer() as checkpointer:
            # As NumPy arrays, which any number and kind of devices can load.
            checkpointer.save((new / "arrays").absolute(), jax.tree.map(np.asarray, arrays))


def load_artifact(path: pathlib.Path, kind: str) -> tuple[dict[str, Any], Any]:
    """Returns what `save_artifact` wrote, with NumPy arrays.

    Raises:
      UserError: the folder holds no such thing, or a damaged one.
    """
    try:
        description = json.loads((path / f"{kind}.json").read_text(encoding="utf-8"))
        with _checkpointer() as checkpointer:
            return description, checkpointer.restore((path / "arrays").absolute())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} holds no {kind} that can be read: {error}") from error


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(multiprocessing_options=this_process())
