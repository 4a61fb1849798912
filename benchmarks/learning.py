"""Does the controller learn, and are its best children good? Several seeds, real training.

Every seed searches with the controller and at random, as many trials each, one after the other.

Command: python -m benchmarks.learning --json=learning.json
Cost: about ten minutes a seed on two CPU cores. An interrupted run resumes.
"""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
import rich.console
import rich.table
from absl import flags

import mnms_jax as mnms
from mnms_jax.store import TrialLog

_TASKS = flags.DEFINE_list("tasks", ["vader_movie", "vader_amazon"], "Tasks to search on.")
_SEEDS = flags.DEFINE_integer("seeds", 3, "Number of seeds.", lower_bound=1)
_NUM_TRIALS = flags.DEFINE_integer("num_trials", 200, "Trials on each task.", lower_bound=1)
_WINDOW = flags.DEFINE_integer("window", 50, "Trials in the first and last mean.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/learning", "Folder of the searches.")
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")


def measure(config: mnms.Config, window: int) -> dict[str, dict[str, float]]:
    """Runs one seed and returns figures by task.

    Rewards are means over the first and the last `window` trials of a task, failed ones left out;
    `last_different` leaves out designs that had been tried before, too.
    """
    summary = mnms.run_experiment(config)
    workdir = pathlib.Path(config.workdir)
    logs = {"": TrialLog(workdir / "trials.jsonl")}
    logs["random_"] = TrialLog(workdir / "random" / "trials.jsonl")
    figures: dict[str, dict[str, float]] = {}
    for task in config.tasks:
        row = figures[task] = {}
        for prefix, log in logs.items():
            rewards = [r.reward for r in log.records if r.task == task and r.reward is not None]
            row[f"{prefix}first"] = float(np.mean(rewards[:window]))
            row[f"{prefix}last"] = float(np.mean(rewards[-window:]))
            fresh = [r for r in log.records if r.task == task and r.bucket != "log"]
            different = [r.reward for r in fresh if r.reward is not None]
            row[f"{prefix}last_different"] = float(np.mean(different[-window:]))
            row[f"{prefix}best"] = max(rewards)
        results = summary["tasks"][task]
        for prefix, key in (("", "finalists"), ("random_", "random")):
            row[f"{prefix}best_test"] = results[key][0]["test"]
            row[f"{prefix}top10_test"] = float(np.mean([r["test"] for r in results[key]]))
        row["reference_validation"] = results["reference"]["validation"]
        row["reference_test"] = results["reference"]["test"]
    return figures


def show(figures: Sequence[dict[str, dict[str, float]]]) -> None:
    """Prints mean and standard deviation over the seeds of every figure."""
    tasks = list(figures[0])
    table = rich.table.Table(title=f"{len(figures)} seeds, mean ± standard deviation, in %")
    for column in ("figure", *tasks):
        table.add_column(column, justify="left" if column == "figure" else "right")
    for name in figures[0][tasks[0]]:
        values = [100 * np.array([seed[task][name] for seed in figures]) for task in tasks]
        table.add_row(name, *(f"{v.mean():.2f} ± {v.std():.2f}" for v in values))
    rich.console.Console(width=100).print(table)


def main() -> None:
    """Measures every seed, then shows and writes the figures."""
    figures = [
        measure(
            mnms.Config(
                tasks=tuple(_TASKS.value),
                num_trials=_NUM_TRIALS.value,
                seed=seed,
                workdir=f"{_WORKDIR.value}/{seed}",
            ),
            _WINDOW.value,
        )
        for seed in range(_SEEDS.value)
    ]
    show(figures)
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    mnms.run_main(main)
