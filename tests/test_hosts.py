"""Two real processes that search together over the loopback."""

import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest
from tfds_data import write_sst2

import mnms_jax
from mnms_jax.devices import HEARTBEAT_SECONDS, exchange, from_first
from mnms_jax.types import UserError

ROOT = pathlib.Path(mnms_jax.__file__).parent.parent
ENVIRONMENT = {
    **os.environ,
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    path = tmp_path_factory.mktemp("tfds")
    write_sst2(path, num_rows=200)
    return path


class Hosts:
    """Processes of one run, each with a file of what it said."""

    def __init__(self, workdir, data_dir, number, flags=((), ())):
        with socket.socket() as free:
            free.bind(("localhost", 0))
            address = f"localhost:{free.getsockname()[1]}"
        self.files = [workdir.with_name(f"{workdir.name}.{i}.txt") for i in range(number)]
        self.processes = []
        for i, file in enumerate(self.files):
            command = [
                *(sys.executable, "-m", "toy_experiment", "--tasks=sst2", "--round_size=4"),
                *(f"--workdir={workdir}", f"--data_dir={data_dir}", "--num_trials=24"),
                *("--nocompare_random", "--num_workers=1", *flags[i]),
            ]
            if number > 1:
                command += ["--distributed", f"--coordinator_address={address}"]
                command += [f"--num_processes={number}", f"--process_id={i}"]
            with file.open("w") as output:
                process = subprocess.Popen(
                    command, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output
                )
            self.processes.append(process)

    def wait(self, timeout=200):
        """Returns the exit codes."""
        return [process.wait(timeout) for process in self.processes]

    def said(self, number):
        return self.files[number].read_text()


def lines(workdir):
    rows = [json.loads(line) for line in (workdir / "trials.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "seconds"} for row in rows]


@pytest.fixture(scope="module")
def alone(tmp_path_factory, data_dir):
    workdir = tmp_path_factory.mktemp("runs") / "alone"
    hosts = Hosts(workdir, data_dir, 1)
    assert hosts.wait() == [0], hosts.said(0)
    return workdir


@pytest.mark.parametrize("victim", [0, 1])
def test_a_dead_process_ends_the_others_and_the_same_command_goes_on(
    tmp_path, data_dir, alone, victim
):
    workdir = tmp_path / "w"
    hosts = Hosts(workdir, data_dir, 2)
    while not (workdir / "trials.jsonl").exists():
        assert all(process.poll() is None for process in hosts.processes), hosts.said(0)
        time.sleep(0.01)
    hosts.processes[victim].send_signal(signal.SIGKILL)
    survivor = 1 - victim
    assert hosts.processes[survivor].wait(HEARTBEAT_SECONDS + 10) not in (0, None)
    hosts.wait()
    said = hosts.said(survivor)
    assert f"this one ends too, within {HEARTBEAT_SECONDS + 10} seconds" in said
    if victim == 1:  # without the process 0, JAX itself aborts the rest
        assert hosts.processes[survivor].returncode == 1
        assert "error: process 0: another process of this run has died" in said
    assert len(lines(workdir)) < 24

    hosts = Hosts(workdir, data_dir, 2)
    assert hosts.wait() == [0, 0], hosts.said(0) + hosts.said(1)
    assert lines(workdir) == lines(alone)
    assert (workdir / "summary.json").read_text() == (alone / "summary.json").read_text()
    assert "ppo round" in hosts.said(0) and "ppo round" not in hosts.said(1)
    assert "accuracy in %" in hosts.said(0) and "accuracy in %" not in hosts.said(1)


def test_mistakes_are_told_by_every_process(tmp_path, data_dir, alone):
    different = Hosts(tmp_path / "w", data_dir, 2, [["--seed=1"], ["--seed=2"]])
    refused = Hosts(alone, data_dir, 2, [["--seed=1"], ["--seed=1"]])
    assert different.wait() == refused.wait() == [1, 1]
    for number in range(2):
        last = different.said(number).strip().splitlines()[-1]
        assert last.startswith(
            "error: process 1 makes another search than process 0 (they differ in: seed)"
        )
        assert "belongs to another search (seed: 0 there, 1 now)" in refused.said(number)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_processes=2"], "these go with --distributed"),
        (["--distributed"], "give --coordinator_address=HOST:PORT"),
    ],
)
def test_flags_that_do_not_fit(tmp_path, data_dir, flags, message):
    hosts = Hosts(tmp_path / "w", data_dir, 1, [flags])
    assert hosts.wait() == [1]
    last = hosts.said(0).strip().splitlines()[-1]
    assert last.startswith("error: --") and message in last


def test_a_single_process_tells_itself():
    assert exchange(b"word") == [b"word"]
    assert from_first(lambda: b"word") == b"word"
    with pytest.raises(UserError, match="mistake"):
        from_first(lambda: (_ for _ in ()).throw(UserError("mistake")))
