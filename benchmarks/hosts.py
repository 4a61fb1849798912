"""What do several processes cost, and what happens when one of them dies?

Claim: two processes of two devices end with the trials of one process of one device, bit for bit,
in about the time that this one takes with as many training threads. When one is killed the other
says so and ends, and the same command, by launch/local.sh, goes on to these
trials. Children of records train in a moment, so what the processes tell each other weighs most.

The ways take turns, each time in a new folder, after a run of each that fills the caches. Seconds
are of the whole command, and of the search alone: from the configuration's file to the last trial.

Command: python -m benchmarks.hosts --pairs=3 --json=hosts.json
Cost: ten searches of half a CPU minute or more each.
"""

import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import rich.console
import rich.table
from absl import app, flags

_PAIRS = flags.DEFINE_integer("pairs", 3, "Times that each way has its turn.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

_LOCAL = pathlib.Path(__file__).parent.parent / "launch" / "local.sh"
_MODULE = "experiments.multitask"
_SEARCH = (
    *("--tasks=iris,wine", "--num_trials=32", "--round_size=8"),
    *("--nocompare_random", "--nosave_controller"),
)
_WAYS = ("one process", "two processes")


class Run(NamedTuple):
    """A search that came to its end."""

    seconds: float  # of the whole command
    search_seconds: float
    trials: list[dict]  # lines of the log, without their seconds


class Death(NamedTuple):
    """One of two processes was killed in the middle of a search."""

    seconds: float  # until the other had ended
    exit_code: int  # of the other
    last_words: str  # likewise
    trials_kept: int
    seconds_to_end: float  # of the same command, started again


def environment(devices: int) -> dict[str, str]:
    """Returns this process's environment, for one of so many CPU devices."""
    return {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "PYTHON": sys.executable,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }


def search(way: str, path: pathlib.Path) -> Run:
    """Searches in a folder, or goes on there; both ways have two training threads.

    Raises:
      subprocess.CalledProcessError: the search failed; what it said is in a file beside the folder.
    """
    alone = way == _WAYS[0]
    start = [sys.executable, "-m"] if alone else [str(_LOCAL), "2"]
    command = [*start, _MODULE, *_SEARCH, f"--workdir={path}", f"--num_workers={2 if alone else 1}"]
    variables = {**environment(1 if alone else 2), "LOGS": f"{path}.logs"}
    began = time.monotonic()
    with pathlib.Path(f"{path}.txt").open("w") as said:
        subprocess.run(command, env=variables, stdout=said, stderr=said, check=True)
    seconds = time.monotonic() - began
    times = [(path / name).stat().st_mtime for name in ("config.json", "trials.jsonl")]
    return Run(seconds, times[1] - times[0], trials(path))


def trials(path: pathlib.Path) -> list[dict]:
    """Returns a folder's trials, without how long they took."""
    rows = [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def kill_one(path: pathlib.Path) -> Death:
    """Kills the second of two processes once trials are there, and has the search go on."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    processes = []
    for i in range(2):
        command = [sys.executable, "-m", _MODULE, *_SEARCH, f"--workdir={path}", "--num_workers=1"]
        command += ["--distributed", f"--coordinator_address=localhost:{port}"]
        command += ["--num_processes=2", f"--process_id={i}"]
        with pathlib.Path(f"{path}.{i}.txt").open("w") as said:
            processes.append(
                subprocess.Popen(command, env=environment(2), stdout=said, stderr=said)
            )
    while not (path / "trials.jsonl").exists():
        if any(process.poll() is not None for process in processes):
            raise RuntimeError(f"a process ended before it was killed; see {path}.0.txt")
        time.sleep(0.01)
    processes[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    code = processes[0].wait()
    seconds = time.monotonic() - killed
    last_words = pathlib.Path(f"{path}.0.txt").read_text().strip().splitlines()[-1]
    kept = len(trials(path))
    return Death(seconds, code, last_words, kept, search(_WAYS[1], path).seconds)


def measure(folder: pathlib.Path, pairs: int) -> dict[str, Any]:
    """Returns all figures, as plain JSON data."""
    for way in _WAYS:
        search(way, folder / f"fills the caches, {way}")
    runs: dict[str, list[Run]] = {way: [] for way in _WAYS}
    for pair in range(pairs):
        for way in _WAYS if pair % 2 == 0 else reversed(_WAYS):
            runs[way].append(search(way, folder / f"{pair}, {way}"))
    death = kill_one(folder / "killed")
    expected = runs[_WAYS[0]][0].trials
    return {
        "trials": len(expected),
        "equal": all(run.trials == expected for way in _WAYS for run in runs[way]),
        "equal_after_a_death": trials(folder / "killed") == expected,
        "seconds": {way: [run.seconds for run in runs[way]] for way in _WAYS},
        "search_seconds": {way: [run.search_seconds for run in runs[way]] for way in _WAYS},
        "death": death._asdict(),
    }


def ratios(seconds: dict[str, Sequence[float]]) -> list[float]:
    """Returns, for each pair, the seconds of two processes over those of one."""
    one, two = (seconds[way] for way in _WAYS)
    return [b / a for a, b in zip(one, two, strict=True)]


def main(argv: Sequence[str]) -> None:
    """Measures, prints and writes."""
    del argv
    with tempfile.TemporaryDirectory(prefix="hosts-") as folder:
        figures = measure(pathlib.Path(folder), _PAIRS.value)
    table = rich.table.Table("figure", "measured")
    table.add_row(
        f"{figures['trials']} trials equal in all runs; after a death",
        f"{figures['equal']}; {figures['equal_after_a_death']}",
    )
    for name in ("seconds", "search_seconds"):
        for way in _WAYS:
            values = ", ".join(f"{value:.1f}" for value in figures[name][way])
            table.add_row(f"{name} of {way}", values)
        found = ratios(figures[name])
        table.add_row(
            f"{name}, two processes / one, median (of all pairs)",
            f"{statistics.median(found):.2f} ({', '.join(f'{value:.2f}' for value in found)})",
        )
    for name, value in figures["death"].items():
        shown = f"{value:.1f}" if isinstance(value, float) else str(value)
        table.add_row(f"a death: {name}", shown)
    rich.console.Console().print(table)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    app.run(main)
