import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.store import Checkpoints, TrialLog, TrialRecord, open_workdir
from mnms_jax.types import UserError


def record(trial, reward=0.5, **changes):
    failed = None if reward is not None else "diverged"
    values = ("task", trial, {"a": 1, "b": True, "c": "ü"}, reward, failed, 0.1, 128, "bucket", 0)
    return TrialRecord(*values)._replace(**changes)


def test_log_reads_back_what_it_wrote(tmp_path):
    log = TrialLog(tmp_path / "trials.jsonl")
    for row in (record(0), record(1, None), record(2)):
        log.append(row)
    again = TrialLog(tmp_path / "trials.jsonl")
    assert again.records == log.records == [record(0), record(1, None), record(2)]
    line = json.loads((tmp_path / "trials.jsonl").read_text().splitlines()[1])
    names = "task trial decisions reward failed seconds samples bucket round rungs stopped metrics"
    assert list(line) == names.split()
    assert line["reward"] is None and line["failed"] == "diverged"


@pytest.mark.parametrize("torn", [b'{"task": "x"', b"{{", b'{"task": "x", "trial": 1}'])
def test_a_torn_last_line_is_cut_off(tmp_path, torn):
    path = tmp_path / "trials.jsonl"
    TrialLog(path).append(record(0))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    log = TrialLog(path)
    assert log.records == [record(0)]
    assert path.read_bytes() == whole + torn  # reading changes nothing
    log.append(record(1))
    assert TrialLog(path).records == [record(0), record(1)]
    assert path.read_bytes().startswith(whole) and torn not in path.read_bytes()


BAD_LINES = {
    "no JSON": "nonsense",
    "nothing": "{}",
    "one field": '{"task": "x"}',
    "empty": "",
    "list": "[1]",
    "deep": "[" * 100_000,
    "reward as text": json.dumps(record(1)._replace(reward="0.5")._asdict()),
    "reward not finite": json.dumps(record(1)._replace(reward=float("nan"))._asdict()),
    "too large": json.dumps(record(1)._asdict()).replace("0.5", "1" * 400),
    "decisions in a list": json.dumps(record(1)._replace(decisions=[1])._asdict()),
    "choice in a list": json.dumps(record(1)._replace(decisions={"a": [1]})._asdict()),
    "neither reward nor failure": json.dumps(record(1, None)._replace(failed=None)._asdict()),
}


@pytest.mark.parametrize("bad", BAD_LINES.values(), ids=BAD_LINES)
def test_a_bad_line_is_named(tmp_path, bad):
    path = tmp_path / "trials.jsonl"
    TrialLog(path).append(record(0))
    path.write_text(path.read_text() + bad + "\n")
    with pytest.raises(UserError, match="line 2: not a trial"):
        TrialLog(path)


def test_a_trial_that_stands_there_twice_is_named(tmp_path):
    path = tmp_path / "trials.jsonl"
    TrialLog(path).append(record(0))
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="line 2: trial 0 of task stands before it already"):
        TrialLog(path)


def test_a_log_that_others_cut_is_not_written_on(tmp_path):
    log = TrialLog(tmp_path / "trials.jsonl")
    log.append(record(0))
    (tmp_path / "trials.jsonl").write_bytes(b"{")
    with pytest.raises(UserError, match="was cut or removed while the search was running"):
        log.append(record(1))
    assert (tmp_path / "trials.jsonl").read_bytes() == b"{"


def test_an_empty_log_is_a_new_one(tmp_path):
    (tmp_path / "trials.jsonl").touch()
    assert TrialLog(tmp_path / "trials.jsonl").records == []


class State(NamedTuple):
    params: dict
    step: jax.Array
    key: jax.Array


def state(step):
    return State({"w": jnp.arange(4.0) * step}, jnp.int32(step), jax.random.key(step))


def test_newest_checkpoint_comes_back_bit_for_bit(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    assert checkpoints.restore(state(0)) is None
    for step in range(1, 6):
        checkpoints.save(step, state(step))
    checkpoints.close()
    restored = Checkpoints(tmp_path / "checkpoints").restore(state(0))
    np.testing.assert_array_equal(restored.params["w"], state(5).params["w"])
    assert int(restored.step) == 5
    assert (jax.random.key_data(restored.key) == jax.random.key_data(state(5).key)).all()


def test_a_clock_that_jumps_costs_no_checkpoint_and_leaves_no_thread(tmp_path, monkeypatch):
    days = itertools.cycle((0, 400, -400))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 86400 * next(days))
    before = set(threading.enumerate())
    for step in range(1, 9):
        checkpoints = Checkpoints(tmp_path, max_to_keep=8)
        checkpoints.save(step, state(step))
        checkpoints.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == [str(n) for n in range(1, 9)]
    assert set(threading.enumerate()) <= before


@pytest.mark.filterwarnings("ignore")
def test_a_corrupted_checkpoint_falls_back_to_the_one_before(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, state(step))
    checkpoints.close()
    for path in (tmp_path / "checkpoints" / "2").rglob("*"):
        if path.is_file():
            path.write_bytes(b"garbage")
    assert int(Checkpoints(tmp_path / "checkpoints").restore(state(0)).step) == 1


@pytest.mark.filterwarnings("ignore")
def test_a_flipped_bit_in_a_checkpoint_is_noticed(tmp_path):
    """Orbax reads some of them as another number."""
    noise = State({"w": jax.random.normal(jax.random.key(0), (64, 64))}, jnp.int32(2), state(2).key)
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    checkpoints.save(1, noise._replace(step=jnp.int32(1)))
    checkpoints.save(2, noise)
    checkpoints.close()
    largest = max((tmp_path / "checkpoints" / "2").rglob("*"), key=lambda p: p.stat().st_size)
    content = bytearray(largest.read_bytes())
    content[len(content) // 2] ^= 1
    largest.write_bytes(content)
    restored = Checkpoints(tmp_path / "checkpoints").restore(noise)
    assert int(restored.step) == 1
    np.testing.assert_array_equal(restored.params["w"], noise.params["w"])


CONFIG = {"tasks": ["a"], "seed": 0, "num_trials": 5}


def test_workdir_of_the_same_config_reopens_and_keeps_resumable_changes(tmp_path):
    with open_workdir(tmp_path / "w", CONFIG, ("num_trials",)) as workdir:
        workdir.log.append(record(0))
    with open_workdir(tmp_path / "w", {**CONFIG, "num_trials": 9}, ("num_trials",)) as workdir:
        assert workdir.log.records == [record(0)]
    assert json.loads((tmp_path / "w" / "config.json").read_text())["num_trials"] == 9


def test_workdir_of_another_config_is_refused_with_the_difference(tmp_path):
    with open_workdir(tmp_path, CONFIG):
        pass
    with (
        pytest.raises(UserError, match=r"seed: 0 there, 1 now.*take another folder"),
        open_workdir(tmp_path, {**CONFIG, "seed": 1}),
    ):
        pass
    assert json.loads((tmp_path / "config.json").read_text()) == CONFIG


@pytest.mark.parametrize("content", ["{", "[]", "[" * 100_000], ids=["cut", "list", "deep"])
def test_broken_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(UserError, match="no JSON file"), open_workdir(tmp_path, CONFIG):
        pass


def test_a_file_in_place_of_the_workdir(tmp_path):
    (tmp_path / "w").touch()
    with pytest.raises(UserError, match="can't be written"), open_workdir(tmp_path / "w", CONFIG):
        pass


HOLD = """
import pathlib, sys, time
from mnms_jax.store import open_workdir
with open_workdir(pathlib.Path(sys.argv[1]), {}):
    print("open", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_refused_and_a_killed_one_leaves_no_lock(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        env=environment,
        text=True,
    )
    assert process.stdout.readline() == "open\n"
    with pytest.raises(UserError, match="in use by another process"), open_workdir(tmp_path, {}):
        pass
    process.kill()
    process.wait()
    process.stdout.close()
    time.sleep(0.1)
    with open_workdir(tmp_path, {}) as workdir:
        assert workdir.log.records == []
