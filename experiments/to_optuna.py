"""A search's trials as Optuna studies, one a task; optuna-dashboard shows them.

Command: python -m experiments.to_optuna --workdir=runs/multitask --storage=sqlite:///runs/trials.db
Variants:
  --workdir=runs/multitask/random --study=random     random search, for comparison
The search may still be running; the same command adds what is new.
"""

import pathlib

from absl import flags

import mnms_jax as mnms

_WORKDIR = flags.DEFINE_string("workdir", "runs/multitask", "Folder of the search.")
_STORAGE = flags.DEFINE_string("storage", None, "Storage as Optuna takes it.", required=True)
_STUDY = flags.DEFINE_string("study", "", "Studies are STUDY/TASK; by default the folder's name.")


def main() -> None:
    """Adds the trials to the studies."""
    path = pathlib.Path(_WORKDIR.value).expanduser()
    for study, number in mnms.add_to_optuna(path, _STORAGE.value, _STUDY.value).items():
        print(f"{study}: {number} new trials")


if __name__ == "__main__":
    mnms.run_main(main)
