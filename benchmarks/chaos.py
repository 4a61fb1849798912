"""Does a search survive being killed? SIGKILL at random moments, until it has died often enough.

Claim: however often it is killed, a search that is started again ends with the trials of one that
wasn't: none is lost, none is there twice, and the list is the same but for seconds. The search is a
small one, two packaged tasks and short children, with its log, checkpoints and TensorBoard files.

A process dies by turns: at any moment of its start; at any moment of its search; and right when
the folder of an unfinished checkpoint appears. A search that reaches its end is compared with the
undisturbed one, and the next begins in a new folder, until there were as many kills as asked for.

Command: python -m benchmarks.chaos --kills=50 --json=chaos.json
Cost: three minutes on two CPU cores, nearly all of it Python and JAX starting.
"""

import collections
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import rich.console
import rich.table
from absl import flags, logging

import mnms_jax as mnms
from benchmarks.children import small_family
from mnms_jax.run import Budget, RoundSetup, run_rounds
from mnms_jax.store import open_workdir
from mnms_jax.tracking import Tracker

_KILLS = flags.DEFINE_integer("kills", 50, "Processes to kill.", lower_bound=1)
_TRIALS = flags.DEFINE_integer("trials", 100, "Trials on each task.", lower_bound=2)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the moments.")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")
_SEARCH = flags.DEFINE_string("search", None, "Internal: search in this folder.")

_TASKS = ("vader_amazon", "vader_tweets")
_MOMENTS = ("start", "search", "checkpoint")
_READY = "ready"

Trial = tuple[str, int, dict]  # task, number, the line without its seconds


class Death(NamedTuple):
    """How a process was killed, and what that did."""

    moment: str  # one of _MOMENTS
    unfinished_checkpoint: bool  # left behind
    torn_line: bool  # at the end of the log
    lost: int  # lines of the log that were there before the process, and not after it


class Search(NamedTuple):
    """A search that was killed, and went on to its end."""

    deaths: list[Death]
    lost: int  # trials that the undisturbed search has and this one hasn't
    duplicated: int
    equal: bool  # the list of trials is the undisturbed one's, but for seconds


def search(path: pathlib.Path) -> None:
    """Searches in a folder, and goes on from what it holds."""
    tasks, family = mnms.load_tasks(_TASKS), small_family()
    inputs = mnms.TextInputs(tasks, mnms.PRESETS["cpu"], {})
    trainer = mnms.Trainer(family, inputs.child_data, num_classes=inputs.num_classes)
    policy = mnms.make_policy(family.space, len(tasks))
    learner = mnms.make_ppo_learner(policy)
    rounds = mnms.make_search(family.space, policy, learner, num_tasks=2, trials_per_task=2)
    setup = RoundSetup(family.space, _TASKS, rounds, trainer, Budget(_TRIALS.value))
    state = rounds.init(jax.random.key(0))
    with open_workdir(path, {}) as workdir, Tracker(path) as tracker:
        print(_READY, flush=True)
        run_rounds(setup, state, workdir, tracker, "ppo")


class Life:
    """A process that searches in a folder."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._errors = path.with_suffix(".log")
        command = [sys.executable, "-m", "benchmarks.chaos"]
        command += [f"--search={path}", f"--trials={_TRIALS.value}"]
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)

    def wait_until_ready(self) -> None:
        """Waits until the search begins."""
        assert self._process.stdout
        self._process.stdout.readline()

    def end(self) -> bool:
        """Waits for the end, and returns whether it was the search's own.

        Raises:
          mnms.UserError: it was neither that nor a kill.
        """
        code = self._process.wait()
        if code not in (0, -signal.SIGKILL):
            errors = self._errors.read_text(errors="replace")
            raise mnms.UserError(f"a search ended by itself with {code}:\n{errors[-2000:]}")
        return code == 0

    def kill(self, moment: str, delay: float) -> Death | None:
        """Kills the process at a moment; returns None when the search had ended before."""
        before, unfinished = _lines(self._path), _unfinished(self._path)
        if moment != "start":
            self.wait_until_ready()
        until = time.monotonic() + delay
        while self._process.poll() is None:
            if moment == "checkpoint":
                if _unfinished(self._path) - unfinished:
                    break
            elif time.monotonic() > until:
                break
            time.sleep(0.001)
        self._process.kill()
        if self.end():
            return None
        after = _lines(self._path)
        kept = sum(a == b for a, b in zip(before[:-1], after, strict=False))
        lost = len(before[:-1]) - kept
        return Death(moment, bool(_unfinished(self._path)), after[-1] != b"", lost)


def main() -> None:
    """Kills searches, and compares what comes out."""
    if _SEARCH.value:
        search(pathlib.Path(_SEARCH.value))
        return
    begin = time.monotonic()
    rng, searches, kills = random.Random(_SEED.value), list[Search](), 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        whole, seconds = undisturbed(folder / "whole")
        while kills < _KILLS.value:
            path = folder / f"killed{len(searches)}"
            searches.append(disturbed(path, whole, seconds, kills, rng))
            kills += len(searches[-1].deaths)
    figures = summarize(searches, len(whole), seconds, time.monotonic() - begin)
    show(figures, rich.console.Console())
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


def undisturbed(path: pathlib.Path) -> tuple[list[Trial], tuple[float, float]]:
    """Returns the trials of a search that nobody kills, and its seconds before and after ready."""
    times = [time.monotonic()]
    life = Life(path)
    life.wait_until_ready()
    times.append(time.monotonic())
    life.end()
    times.append(time.monotonic())
    return trials_of(path), (times[1] - times[0], times[2] - times[1])


def disturbed(
    path: pathlib.Path,
    whole: list[Trial],
    seconds: tuple[float, float],
    kills: int,
    rng: random.Random,
) -> Search:
    """Kills a search again and again, as long as it goes on, and compares its trials at the end.

    Args:
      path: where it searches.
      whole: the trials of the undisturbed search.
      seconds: of that one, before and after it was ready.
      kills: of earlier searches, which count too.
      rng: draws the moments.
    """
    deaths: list[Death] = []
    spans = {"start": seconds[0], "search": 3 * seconds[1] / _KILLS.value, "checkpoint": 0.0}
    while (number := kills + len(deaths)) < _KILLS.value:
        moment = _MOMENTS[number % len(_MOMENTS)]  # the same again where the search ended before
        death = Life(path).kill(moment, rng.uniform(0, spans[moment]))
        if death is None:
            break
        deaths.append(death)
        logging.info("kill %d, %s: %d lines", number + 1, death, len(_lines(path)) - 1)
    else:
        Life(path).end()
    return compare(path, whole, deaths)


def compare(path: pathlib.Path, whole: list[Trial], deaths: list[Death]) -> Search:
    """Compares the trials of a search that has ended with those of the undisturbed one."""
    trials = trials_of(path)
    names = collections.Counter(trial[:2] for trial in trials)
    lost = len({trial[:2] for trial in whole} - set(names))
    return Search(deaths, lost, names.total() - len(names), trials == whole)


def summarize(
    searches: Sequence[Search], num_trials: int, seconds: tuple[float, float], total: float
) -> dict[str, Any]:
    """Returns the figures of all searches."""
    deaths = [death for search in searches for death in search.deaths]
    return {
        "kills": len(deaths),
        "lost": sum(s.lost for s in searches) + sum(death.lost for death in deaths),
        "duplicated": sum(s.duplicated for s in searches),
        "equal": all(s.equal for s in searches),
        "searches": len(searches),
        "trials": num_trials,
        "moments": dict(collections.Counter(death.moment for death in deaths)),
        "unfinished_checkpoints": sum(death.unfinished_checkpoint for death in deaths),
        "torn_lines": sum(death.torn_line for death in deaths),
        "undisturbed_seconds": sum(seconds),
        "seconds": total,
    }


def show(figures: dict[str, Any], console: rich.console.Console) -> None:
    """Prints the figures."""
    table = rich.table.Table("figure", rich.table.Column("value", justify="right"))
    for key, value in figures.items():
        table.add_row(key, f"{value:.1f}" if isinstance(value, float) else str(value))
    console.print(table)


def trials_of(path: pathlib.Path) -> list[Trial]:
    """Returns the trials in the log of a folder, without their seconds."""
    rows = [json.loads(line) for line in _lines(path)[:-1]]
    return [(row["task"], row["trial"], {**row, "seconds": None}) for row in rows]


def _lines(path: pathlib.Path) -> list[bytes]:
    """Returns the log's lines, and what stands after the last one's end."""
    log = path / "trials.jsonl"
    return (log.read_bytes() if log.exists() else b"").split(b"\n")


def _unfinished(path: pathlib.Path) -> set[tuple[str, int]]:
    """Returns the name and inode of each folder of a checkpoint that isn't whole."""
    try:
        entries = list(os.scandir(path / "checkpoints"))
    except FileNotFoundError:
        return set()
    return {(e.name, e.inode()) for e in entries if ".orbax-checkpoint-tmp" in e.name}


if __name__ == "__main__":
    mnms.run_main(main)
