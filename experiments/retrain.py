"""The best design of a search, trained anew on training and validation examples together.

Says mean and deviation of its reward on test over several seeds, and keeps the first seed's child
in WORKDIR/retrained/TASK. The best of a search is in part the luckiest: with --candidates=10 its
ten best designs are first trained with more seeds, on training examples alone, and their mean
reward on validation says which one is retrained. That is 55 children instead of five.

Command: python -m experiments.retrain --task=vader_movie --retrain_seeds=5
"""

import pathlib

from absl import flags

import mnms_jax as mnms

_WORKDIR = flags.DEFINE_string("workdir", "runs/multitask", "Folder of the search.")
_TASK = flags.DEFINE_string("task", "", "Whose best design is trained; needless if there is one.")
_SEEDS = flags.DEFINE_integer("retrain_seeds", 5, "Children to train of a design.")
_CANDIDATES = flags.DEFINE_integer(
    "candidates", 1, "The search's best designs to choose from; 1: its best, as it is."
)
_TASKS = flags.DEFINE_list(
    "tasks", [], "All tasks of the search, as NAME=PATH where files were moved; by default as then."
)


def main() -> None:
    """Retrains what the flags name."""
    from mnms_jax.retrain import describe_rewards  # late, for --help

    path = pathlib.Path(_WORKDIR.value).expanduser()
    found = mnms.retrain_best(
        path,
        _TASK.value,
        num_seeds=_SEEDS.value,
        num_candidates=_CANDIDATES.value,
        entries=_TASKS.value,
    )
    if len(found.candidates) > 1:
        for candidate in found.candidates:
            print(f"trial {candidate.trial}: {describe_rewards(candidate.rewards, 'validation')}")
    print(f"trial {found.candidates[0].trial}, retrained: {describe_rewards(found.rewards)}")
    print(f"written to {path.resolve()}: retrained/TASK")


if __name__ == "__main__":
    mnms.run_main(main)
