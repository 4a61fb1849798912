"""Transfer and its variants on tables of known rewards, each task left out in turn.

Claim: a search that starts from other tasks' trials is ahead of every search that doesn't, and of
the sources' best designs; sources whose rewards mean nothing (`transfer_useless`: each source's
rewards change places) cost it little.

Command: python -m benchmarks.transfer --table=hpobench_mlp
Variants: --table=nasbench_graph (tasks that disagree), --methods=random,cold,transfer
Cost: 15 minutes on two CPU cores. An interrupted run resumes.
"""

import pathlib

import jax
import numpy as np
from absl import flags

import mnms_jax as mnms
from mnms_jax.methods import MakeSearch
from mnms_jax.replay import ReplayBank

_TABLE = flags.DEFINE_string("table", "hpobench_mlp", "Table of rewards, see mnms_jax.load_table.")
_TASKS = flags.DEFINE_list("table_tasks", [], "Some of the table's tasks; by default all.")
_METHODS = flags.DEFINE_list(
    "methods",
    [
        *("random", "cold", "portfolio", "tpe", "tpe_enqueued", "transfer", "transfer_useless"),
        *("transfer_random", "transfer_inferred", "transfer_frozen", "transfer_unguarded"),
        *("transfer_policy", "transfer_model"),
    ],
    "Methods to compare.",
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=1)
_NUM_TRIALS = flags.DEFINE_integer("num_trials", 50, "Trials of a search.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/transfer_tables", "Folder of the results.")


def useless(make: MakeSearch) -> MakeSearch:
    """Returns the method that is given sources whose rewards have changed places."""

    def make_useless(
        space: mnms.SearchSpace, sources: ReplayBank, number: int, key: jax.Array
    ) -> mnms.Search:
        rng = np.random.default_rng(np.asarray(jax.random.bits(key)))
        rewards = np.array(sources.rewards)
        for row, size in zip(rewards, np.asarray(sources.size).tolist(), strict=True):
            row[:size] = rng.permutation(row[:size])
        return make(space, sources._replace(rewards=jax.numpy.asarray(rewards)), number, key)

    return make_useless


def make_methods(names: list[str]) -> list[mnms.Method]:
    """Returns methods by name, with or without `_useless` behind it."""
    methods = mnms.make_methods([name.removesuffix("_useless") for name in names])
    return [
        method._replace(name=name, make=useless(method.make)) if method.name != name else method
        for name, method in zip(names, methods, strict=True)
    ]


def main() -> None:
    """Compares, then shows and writes the figures."""
    benchmark = mnms.load_table(_TABLE.value)
    setup = mnms.LeaveOneOutSetup(
        benchmark.space,
        tuple(_TASKS.value or benchmark.task_names),
        tuple(make_methods(_METHODS.value)),
        mnms.table_objective(benchmark),
        tuple(range(_SEEDS.value)),
        _NUM_TRIALS.value,
    )
    mnms.run_leave_one_out(
        setup,
        pathlib.Path(_WORKDIR.value) / _TABLE.value,
        contenders=[name for name in _METHODS.value if name.startswith("transfer")],
        identity={"table": _TABLE.value, "space": benchmark.space.fingerprint},
    )


if __name__ == "__main__":
    mnms.run_main(main)
