"""Where each round's scalars go beside rounds.jsonl: TensorBoard, Weights & Biases, MLflow."""

import concurrent.futures
import importlib.util
import os
import pathlib
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal, NamedTuple, Protocol, TypeAlias

from mnms_jax.store import read_json, write_json
from mnms_jax.types import Choice, UserError

_PROJECT = "mnms_jax"  # unless the library's own environment variable says otherwise
_LONGEST = 500  # characters of a parameter that MLflow keeps

Status: TypeAlias = Literal["FINISHED", "FAILED", "KILLED"]  # killed, if stopped from outside


class Sink(Protocol):
    """Takes the scalars of a search."""

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        """Takes those of a round; the same one may come again after a crash."""

    def close(self, status: Status = "FINISHED") -> None:
        """Says how the search ended, and waits until all is written."""


class TrackedChild(NamedTuple):
    """A row of TensorBoard's table of hyperparameters."""

    task: str
    trial: int
    decisions: Mapping[str, Choice]
    rewards: Mapping[str, float]  # by the name of the split


def require_sinks(names: Iterable[str]) -> None:
    """Checks that the sinks' libraries are there, which opening would find out late.

    Raises:
      UserError: one isn't installed.
    """
    for name in names:
        if name in _EXTRAS and importlib.util.find_spec(name) is None:
            raise UserError(f"--track={name} needs it: pip install 'mnms_jax[{name}]'")


def open_sink(name: str, folder: pathlib.Path, about: Mapping[str, Any]) -> Sink:
    """Opens the sink of a search; gone on with, the search has the same run there.

    Args:
      name: one of `config.TRACKERS`.
      folder: of the search.
      about: what is said of the search; flags by name.

    Raises:
      UserError: no run can be opened.
    """
    if name not in _EXTRAS:
        return _TensorBoard(folder)
    try:
        return _EXTRAS[name](folder, about)
    except Exception as error:  # those of the libraries have no common class
        line = str(error).strip().partition("\n")[0]
        raise UserError(f"--track={name}: no run can be opened: {line}") from error


def write_hyperparameters(folder: pathlib.Path, children: Iterable[TrackedChild]) -> None:
    """Writes children for TensorBoard's HParams, in place of those that were there.

    TensorBoard wants an event file for each: these are for the few best ones. It finds out by
    itself which hyperparameters there are; told by one child, it would leave out what is not active
    in that one.
    """
    shutil.rmtree(folder, ignore_errors=True)
    # A signal interrupts the main thread alone: interrupted, a writer would never close.
    with concurrent.futures.ThreadPoolExecutor(1, "mnms-tensorboard") as thread:
        for child in children:
            thread.submit(_write_child, folder, child).result()


def _write_child(folder: pathlib.Path, child: TrackedChild) -> None:
    import tensorboardX
    from tensorboardX.summary import hparams

    rewards = {f"reward/{split}": value for split, value in child.rewards.items()}
    _, start, end = hparams({"task": child.task, **child.decisions}, rewards)
    with tensorboardX.SummaryWriter(str(folder / child.task / str(child.trial))) as writer:
        writer.file_writer.add_summary(start)
        for name, value in rewards.items():
            writer.add_scalar(name, value)
        writer.file_writer.add_summary(end)


class _TensorBoard:
    def __init__(self, folder: pathlib.Path):
        import tensorboardX  # which takes seconds where PyTorch is installed

        self._writer = tensorboardX.SummaryWriter(str(folder / "tensorboard"))

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step, time.time())
        self._writer.flush()

    def close(self, status: Status = "FINISHED") -> None:
        self._writer.close()


class _WeightsAndBiases:
    """A run of its own, in the project mnms_jax; WANDB_MODE=offline writes it into the folder."""

    def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
        import wandb

        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=_run_name(folder),
            dir=str(folder),
            config=dict(about),
            id=_run_id(folder, "wandb", lambda: uuid.uuid4().hex),
            resume="allow",
            settings=wandb.Settings(console="off", silent=True),
        )

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        self._run.log(dict(scalars), step=step)

    def close(self, status: Status = "FINISHED") -> None:
        self._run.finish(exit_code=int(status != "FINISHED"))


class _MLflow:
    """A run of its own, in the experiment mnms_jax, where MLFLOW_TRACKING_URI says."""

    def __init__(self, folder: pathlib.Path, about: Mapping[str, Any]):
        import mlflow

        self._metric = mlflow.entities.Metric
        self._client = mlflow.MlflowClient()
        self._run = _run_id(folder, "mlflow", lambda: self._create(folder))
        self._client.update_run(self._run, "RUNNING")
        parameters = [
            mlflow.entities.Param(key, str(value)[:_LONGEST]) for key, value in about.items()
        ]
        known = self._client.get_run(self._run).data.params
        # What was said of a run stays, and flags may have changed since.
        self._client.log_batch(self._run, params=[p for p in parameters if p.key not in known])

    def _create(self, folder: pathlib.Path) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = found.experiment_id if found else self._client.create_experiment(name)
        return self._client.create_run(experiment, run_name=_run_name(folder)).info.run_id

    def write(self, scalars: Mapping[str, float], step: int) -> None:
        now = int(1000 * time.time())
        metrics = [
            self._metric(re.sub(r"[^\w./: -]", "_", name), value, now, step)
            for name, value in scalars.items()
        ]
        self._client.log_batch(self._run, metrics=metrics)

    def close(self, status: Status = "FINISHED") -> None:
        self._client.set_terminated(self._run, status)


# By the names of their libraries, and of the extras that these are.
_EXTRAS: Mapping[str, Callable[..., Sink]] = {"wandb": _WeightsAndBiases, "mlflow": _MLflow}


def _run_name(folder: pathlib.Path) -> str:
    return "/".join(folder.absolute().parts[-2:])


def _run_id(folder: pathlib.Path, name: str, make: Callable[[], str]) -> str:
    """Returns the run that the folder's search has, made where it has none yet."""
    path = folder / "tracked.json"
    known = dict(read_json(path))
    if name not in known:
        known[name] = make()
        write_json(path, known)
    return known[name]
