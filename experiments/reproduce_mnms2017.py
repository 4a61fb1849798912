"""The experiment of Wong & Gesmundo (2017, arXiv:1710.10776), as far as it can be rebuilt.

Claim: a controller that was trained on sentiment in English and on telling Spanish words from
others finds better sentiment models in fewer trials, for longer reviews in English and for reviews
in Spanish, than a controller from scratch.

Rebuilt: the controller (--preset=mnms2017), transfer to one task at a time, and the task of
recognising Spanish, from the commonest words of the same four languages. With
--sources=sst2,spanish_id --tasks=imdb the data sets are the paper's.
Not rebuilt: the Spanish reviews (CorpusCine), for which any file of yours may stand; sizes and
rates of the controller, search space and numbers of trials, which the paper doesn't give in full.
The default tasks need no network but the package index.

Command: python -m experiments.reproduce_mnms2017
Variants:
  --sources=sst2,spanish_id --tasks=imdb,cine=resenas.csv --data_dir=DIR   as in the paper
  --preset=tnaml2018                                                       the follow-up
The same command on the same --workdir resumes. It ends with the best rewards (validation
accuracy) after some trials, one seed each: repeat it with other --seed before believing a
difference.
"""

import dataclasses
import pathlib
from typing import Any

import numpy as np
import rich.console
import rich.table
from absl import flags

import mnms_jax as mnms

_SOURCES = flags.DEFINE_list("sources", ["vader_movie", "spanish_id"], "Tasks to pre-train on.")
_SOURCE_TRIALS = flags.DEFINE_integer(
    "num_source_trials", 100, "Trials on each of them.", lower_bound=1
)


def main() -> None:
    """Pre-trains, then searches on each task with what was learned and from scratch."""
    from mnms_jax.comparison import trial_counts  # here, as --help needs nothing of it
    from mnms_jax.history import best_so_far
    from mnms_jax.store import TrialLog

    config = mnms.config_from_flags(mnms.TransferConfig)
    assert isinstance(config, mnms.TransferConfig)
    path, scratch = pathlib.Path(config.workdir).expanduser(), config.from_scratch

    def search(config: mnms.Config, name: str, **changes: Any) -> np.ndarray:
        """Returns the best rewards so far, [N]."""
        workdir = path / name
        mnms.run_experiment(dataclasses.replace(config, workdir=str(workdir), **changes))
        return best_so_far(TrialLog(workdir / "trials.jsonl").records)

    search(scratch, "pretrain", tasks=tuple(_SOURCES.value), num_trials=_SOURCE_TRIALS.value)
    counts = trial_counts(config.num_trials)
    table = rich.table.Table("task", "controller", *map(str, counts), title="best reward so far")
    for number, task in enumerate(config.tasks, 1):
        own = {"tasks": (task,)}
        curves = {
            "pre-trained": search(
                config, f"transfer_{number}", from_=str(path / "pretrain"), **own
            ),
            "from scratch": search(scratch, f"scratch_{number}", **own),
        }
        for name, best in curves.items():
            cells = [f"{best[min(count, len(best)) - 1]:.3f}" for count in counts]
            table.add_row(task, name, *cells)
    rich.console.Console(soft_wrap=True).print(table)


if __name__ == "__main__":
    mnms.define_flags(
        mnms.TransferConfig,
        preset="mnms2017",
        tasks=["vader_amazon", "vader_tweets"],
        compare_random=False,
        workdir="runs/reproduce_mnms2017",
    )
    mnms.run_main(main)
