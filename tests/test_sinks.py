"""Whom searches tell of their rounds; wandb and mlflow are asked where they are installed."""

import importlib.util
import struct
import time

import pytest
from tensorboardX.proto import event_pb2, plugin_hparams_pb2

from mnms_jax.sinks import TrackedChild, open_sink, require_sinks, write_hyperparameters
from mnms_jax.types import UserError


def events_of(folder):
    """Yields the events of a folder's one file: records of length, its check, content, a check."""
    (path,) = folder.glob("events*")
    content = path.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield event_pb2.Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_the_best_children_are_rows_of_tensorboards_hyperparameters(tmp_path):
    folder = tmp_path / "best"
    children = [
        TrackedChild("a/b $", 3, {"units": 8, "wide": True, "act": "relu"}, {"validation": 0.5}),
        TrackedChild("c", 0, {"rate": 0.1}, {"validation": 0.25, "test": 0.75}),
    ]
    write_hyperparameters(folder, [TrackedChild("gone", 1, {}, {})])
    write_hyperparameters(folder, children)
    assert sorted(path.name for path in folder.iterdir()) == ["a", "c"]
    for child in children:
        found, rewards = {}, {}
        for event in events_of(folder / child.task / str(child.trial)):
            for value in event.summary.value:
                rewards.update({value.tag: value.simple_value} if value.simple_value else {})
                data = value.metadata.plugin_data
                if data.plugin_name == "hparams":
                    found[value.tag] = plugin_hparams_pb2.HParamsPluginData.FromString(data.content)
        start = found["_hparams_/session_start_info"].session_start_info.hparams
        design = {name: getattr(x, x.WhichOneof("kind")) for name, x in start.items()}
        assert design == {"task": child.task, **child.decisions}
        assert rewards == {f"reward/{split}": value for split, value in child.rewards.items()}
        # What one child says there is would hide what isn't active in it.
        assert "_hparams_/session_end_info" in found and "_hparams_/experiment" not in found


def test_what_is_not_installed_is_said(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    require_sinks(["tensorboard"])
    for name in ("wandb", "mlflow"):
        with pytest.raises(UserError, match=rf"--track={name} needs it: .*mnms_jax\[{name}\]'"):
            require_sinks(["tensorboard", name])


def records_of(content):
    """Yields the records of a W&B file, which is a log as LevelDB has them, in 32 KB blocks."""
    place, record = 7, b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # too little of the block is left for a header
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        record += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def tell(name, folder, steps, status="FINISHED"):
    sink = open_sink(name, folder, {"seed": 3, "tasks": ("a", "b"), "long": 3 * "x" * 1000})
    for step in steps:
        sink.write({"reward/a<b>": step / 2, "learner/loss": float("nan")}, step)
    sink.close(status)


# Their own warnings are theirs.
@pytest.mark.filterwarnings("ignore")
def test_mlflow_has_one_run_of_a_search_that_was_gone_on_with(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    tell("mlflow", tmp_path, (1, 2))
    tell("mlflow", tmp_path, (2, 3))
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("mnms_jax")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == f"{tmp_path.parent.name}/{tmp_path.name}"
    assert run.info.status == "FINISHED"
    tell("mlflow", tmp_path, (), "FAILED")
    assert client.get_run(run.info.run_id).info.status == "FAILED"
    assert run.data.params["seed"] == "3" and run.data.params["tasks"] == "('a', 'b')"
    history = client.get_metric_history(run.info.run_id, "reward/a_b_")
    assert {metric.step: metric.value for metric in history} == {1: 0.5, 2: 1.0, 3: 1.5}
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nonsense://")
    with pytest.raises(UserError, match="--track=mlflow: no run can be opened"):
        tell("mlflow", tmp_path, ())


@pytest.mark.filterwarnings("ignore")
def test_wandb_offline_writes_into_the_folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.setenv("WANDB_MODE", "offline")
    tell("wandb", tmp_path, (1, 2))
    time.sleep(1.1)  # its folders are called by the second
    tell("wandb", tmp_path, (3,), "FAILED")
    found, runs, exit_codes = {}, set(), []
    for path in tmp_path.glob("wandb/offline-run-*/run-*.wandb"):
        for record in map(Record.FromString, records_of(path.read_bytes())):
            items = {item.key or item.nested_key[0]: item for item in record.history.item}
            if items:
                found[record.history.step.num] = items["reward/a<b>"].value_json
            if record.HasField("exit"):
                exit_codes.append(record.exit.exit_code)
            if record.run.run_id:
                runs.add((record.run.run_id, record.run.display_name, record.run.project))
    assert found == {1: "0.5", 2: "1", 3: "1.5"}
    assert sorted(exit_codes) == [0, 1]
    ((_, name, project),) = runs
    assert (name, project) == (f"{tmp_path.parent.name}/{tmp_path.name}", "mnms_jax")
