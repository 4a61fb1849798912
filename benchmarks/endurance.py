"""Does a long search stay as it began? Its memory and its speed, from the first trial to the last.

Claim: once its programs are compiled, neither resident memory nor seconds a trial grow with the
number of trials, and the controller stays one (the entropy of its designs is a number). The search
is a real one on `iris`, with its trial log, checkpoints, TensorBoard files, controller and reward
model; only its children are short, a few steps each.

Command: python -m benchmarks.endurance --json=endurance.json
Cost: two minutes on two CPU cores.
"""

import json
import os
import pathlib
import tempfile
import time

import jax
import rich.console
import rich.table
from absl import flags

import mnms_jax as mnms
from mnms_jax.ranker import make_ranker
from mnms_jax.run import Budget, RoundSetup, run_rounds
from mnms_jax.store import open_workdir
from mnms_jax.tasks.record_inputs import RecordInputs
from mnms_jax.tracking import Progress, Tracker

_TRIALS = flags.DEFINE_integer("trials", 5000, "Trials.", lower_bound=1)
_EVERY = flags.DEFINE_integer("every", 500, "Trials between two measurements.", lower_bound=1)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")

_TRIALS_A_ROUND = 10


class Watch(Tracker):
    """A tracker that notes memory and time, too."""

    def __init__(self, path: pathlib.Path, every: int):
        super().__init__(path, rich.console.Console(quiet=True))
        self._every, self._last = every, time.monotonic()
        self.figures: list[dict[str, float]] = []

    def show(self, progress: Progress) -> None:
        """Notes a line of figures when so many trials more are done."""
        super().show(progress)
        if progress.trials % self._every == 0:
            now = time.monotonic()
            self.figures.append(
                {
                    "trials": progress.trials,
                    "resident_mb": resident_bytes() / 2**20,
                    "programs": progress.num_programs,
                    "ms_per_trial": 1000 * (now - self._last) / self._every,
                    "entropy": progress.scalars["policy_entropy"],
                }
            )
            self._last = now


def resident_bytes() -> int:
    """Returns this process's resident memory (Linux)."""
    pages = pathlib.Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def short_family() -> mnms.ChildFamily:
    """Returns the children for records, each trained for a few steps."""
    family = mnms.make_record_family("cpu")
    space = mnms.SearchSpace(
        d._replace(choices=(256, 512, 1024)) if d.name == "samples" else d
        for d in family.space.decisions
    )
    return family._replace(space=space)


def endure(path: pathlib.Path, num_trials: int, every: int) -> list[dict[str, float]]:
    """Searches in a folder, and returns the figures after every so many trials."""
    tasks, family = mnms.load_tasks(["iris"]), short_family()
    inputs = RecordInputs(tasks)
    trainer = mnms.Trainer(family, inputs.child_data, num_classes=inputs.num_classes)
    policy = mnms.make_policy(family.space, 1)
    search = mnms.make_search(
        family.space,
        policy,
        mnms.make_ppo_learner(policy),
        num_tasks=1,
        trials_per_task=_TRIALS_A_ROUND,
        ranker=make_ranker(family.space),
    )
    setup = RoundSetup(family.space, ("iris",), search, trainer, Budget(num_trials))
    state = search.init(jax.random.key(0))
    watch = Watch(path / "tensorboard", every)
    with open_workdir(path, {}) as workdir, watch:
        run_rounds(setup, state, workdir, watch, "ppo")
    return watch.figures


def main() -> None:
    """Searches, and prints a table."""
    with tempfile.TemporaryDirectory() as folder:
        figures = endure(pathlib.Path(folder), _TRIALS.value, _EVERY.value)
    table = rich.table.Table(*(rich.table.Column(name, justify="right") for name in figures[0]))
    for row in figures:
        table.add_row(*(f"{value:.4g}" for value in row.values()))
    rich.console.Console().print(table)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    mnms.run_main(main)
