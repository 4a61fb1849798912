"""Thousands of whole searches on tables of known rewards.

Claim: a controller that was trained on related tasks finds good designs for a new one in fewer
trials than a search from scratch. All seeds of a method are one compiled function, spread over
devices.

Command: python -m experiments.tabular --table=hpobench_mlp
Variants:
  --table=nasbench_graph --pretrain=cora,citeseer --tasks=photo,computers,arxiv
  --methods=random,evolution,cold,multitask          no sources
  --preset=mnms2017, --preset=tnaml2018              a published controller: each task alone, all
                                                     tasks at once, and pre-trained
  --table=mine.csv                                   your own table, see mnms_jax.read_table
"""

import pathlib

from absl import flags

import mnms_jax as mnms

_TABLE = flags.DEFINE_string("table", "hpobench_mlp", "A table's name, or a file of columns.")
_TASKS = flags.DEFINE_list(
    "tasks", [], "Tasks to search on; by default the last three, or all but one."
)
_PRETRAIN = flags.DEFINE_list("pretrain", [], "Source tasks; by default all others.")
_METHODS = flags.DEFINE_list(
    "methods",
    ["random", "evolution", "cold", "multitask", "portfolio", "mnms2017", "transfer"],
    "Methods to compare, see mnms_jax.make_strategy.",
)
_PRESET = flags.DEFINE_enum(
    "preset", None, list(mnms.PUBLISHED), "Compare this controller, and not those of --methods."
)
_SEEDS = flags.DEFINE_integer("seeds", 64, "Searches of each method.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of all that is random.")
_NUM_TRIALS = flags.DEFINE_integer("num_trials", 200, "Trials on each task.", lower_bound=1)
_NUM_SOURCE_TRIALS = flags.DEFINE_integer(
    "num_source_trials",
    200,
    "Trials on each source task, rounded up to a multiple of 8.",
    lower_bound=1,
)
_ROUND = flags.DEFINE_integer(
    "trials_per_round", 2, "Trials on a task between two updates.", lower_bound=1
)
_CSV = flags.DEFINE_string("csv", "", "File for all regrets.")


def main() -> None:
    """Plays all methods, then shows and writes their regrets."""
    mnms.use_cores_as_devices()
    mnms.run_tabular(
        mnms.load_table(_TABLE.value),
        _methods(),
        task_names=_TASKS.value,
        source_names=_PRETRAIN.value,
        num_seeds=_SEEDS.value,
        seed=_SEED.value,
        num_trials=_NUM_TRIALS.value,
        num_source_trials=_NUM_SOURCE_TRIALS.value,
        trials_per_round=_ROUND.value,
        csv=pathlib.Path(_CSV.value).expanduser() if _CSV.value else None,
    )


def _methods() -> list[str]:
    name = _PRESET.value
    if name is None:
        return _METHODS.value
    if flags.FLAGS["methods"].present:
        raise mnms.UserError(f"--preset={name} doesn't go with --methods: name {name} there")
    return ["random", f"{name}_cold", f"{name}_multitask", name]


if __name__ == "__main__":
    mnms.run_main(main)
