"""Experiments as users type them, in processes of their own."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import mnms_jax

ROOT = pathlib.Path(mnms_jax.__file__).parent.parent


def command(module, *flags):
    return [sys.executable, "-m", f"experiments.{module}", *flags]


def run(*arguments, **kwargs):
    return subprocess.run(
        [*arguments], capture_output=True, text=True, cwd=ROOT, check=False, **kwargs
    )


def kill_when(condition, *arguments):
    """Runs a command until the condition holds, and kills it."""
    process = subprocess.Popen([*arguments], cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not condition() and time.monotonic() < deadline:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def lines(workdir):
    """Returns the trials of a folder's log, without their seconds."""
    rows = [json.loads(line) for line in (workdir / "trials.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]
