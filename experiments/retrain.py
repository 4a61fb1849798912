"""The best design of a search, trained anew on training and validation examples together.

Says mean and deviation of the reward on test over several seeds, and keeps the first seed's child
in WORKDIR/retrained/TASK.

Command: python -m experiments.retrain --task=vader_movie --retrain_seeds=5
"""

import pathlib

from absl import flags

import mnms_jax as mnms

_WORKDIR = flags.DEFINE_string("workdir", "runs/multitask", "Folder of the search.")
_TASK = flags.DEFINE_string("task", "", "Whose best design is trained; needless if there is one.")
_SEEDS = flags.DEFINE_integer("retrain_seeds", 5, "Children to train.")
_TASKS = flags.DEFINE_list(
    "tasks", [], "All tasks of the search, as NAME=PATH where files were moved; by default as then."
)


def main() -> None:
    """Retrains what the flags name."""
    from mnms_jax.retrain import describe_rewards  # late, for --help

    path = pathlib.Path(_WORKDIR.value).expanduser()
    rewards = mnms.retrain_best(path, _TASK.value, num_seeds=_SEEDS.value, entries=_TASKS.value)
    print(describe_rewards(rewards))
    print(f"written to {path.resolve()}: retrained")


if __name__ == "__main__":
    mnms.run_main(main)
