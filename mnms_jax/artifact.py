"""A description and arrays as a folder."""

import json
import pathlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from mnms_jax.store import (
    arrays_digest,
    patient,
    this_process,
    write_json,
    writing,
)
from mnms_jax.types import UserError


def save_artifact(path: pathlib.Path, kind: str, description: dict[str, Any], arrays: Any) -> None:
    """Writes KIND.json and arrays into a folder, in place of the one that was there."""
    # As NumPy arrays, which any number and kind of devices can load.
    arrays = jax.tree.map(np.asarray, arrays)
    with replaced_folder(path) as new:
        digest = arrays_digest(arrays).hex()
        write_json(new / f"{kind}.json", {**description, "sha256": digest})
        with writing(path), _checkpointer() as checkpointer:
            checkpointer.save((new / "arrays").absolute(), arrays)


def load_artifact(path: pathlib.Path, kind: str) -> tuple[dict[str, Any], Any]:
    """Returns what `save_artifact` wrote, with NumPy arrays.

    Raises:
      UserError: the folder holds no such thing, or a damaged one.
    """
    if not (path / f"{kind}.json").exists():
        raise UserError(f"{path} holds no {kind}: it has no {kind}.json")
    try:
        description = json.loads((path / f"{kind}.json").read_text(encoding="utf-8"))
        with _checkpointer() as checkpointer:
            arrays = checkpointer.restore((path / "arrays").absolute())
        digest = description.pop("sha256", None)  # which earlier versions didn't write
        if digest not in (None, arrays_digest(arrays).hex()):
            raise ValueError("its arrays are damaged")
    except Exception as error:  # orbax and tensorstore have no common error
        raise UserError(f"{path} holds no {kind} that can be read: {error!r}") from error
    return description, arrays


@contextmanager
def replaced_folder(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives a new folder to fill, and puts it in place of `path` once it is whole."""
    new = path.with_name(f".{path.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    yield new
    shutil.rmtree(path, ignore_errors=True)
    new.rename(path)


def _checkpointer() -> ocp.StandardCheckpointer:
    return ocp.StandardCheckpointer(async_options=patient(), multiprocessing_options=this_process())
