"""Transfer and its variants on tables of known rewards, each task left out in turn.

Claim: a search that starts from other tasks' trials is ahead of every search that doesn't, and of
the sources' best designs; sources whose rewards mean nothing (`transfer_useless`: each source's
rewards change places) cost it little. What the papers' controller owes its parts is shown by
leaving out one at a time, without a model of rewards (`policy_...`, against `transfer_policy`).

Command: python -m benchmarks.transfer --table=hpobench_mlp
Variants: --table=nasbench_graph (tasks that disagree), --methods=random,cold,transfer
Cost: with all methods, twenty minutes on two CPU cores. An interrupted run resumes.
"""

import functools
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import mnms_jax as mnms
from mnms_jax.advantage import Advantage
from mnms_jax.learner import make_learner
from mnms_jax.methods import MakeSearch, Sources, make_transfer_method

_TABLE = flags.DEFINE_string("table", "hpobench_mlp", "Table of rewards, see mnms_jax.load_table.")
_TASKS = flags.DEFINE_list("table_tasks", [], "Some of the table's tasks; by default all.")
_METHODS = flags.DEFINE_list(
    "methods",
    [
        *("random", "cold", "portfolio", "tpe", "tpe_enqueued", "transfer", "transfer_useless"),
        *("transfer_random", "transfer_inferred", "transfer_frozen", "transfer_unguarded"),
        *("transfer_policy", "transfer_model", "transfer_replay", "transfer_unsuggested"),
        *("policy", "policy_frozen", "policy_unimitated", "policy_replay", "policy_blind"),
        *("policy_noskip", "policy_onpolicy", "policy_relative", "policy_std"),
    ],
    "Methods to compare.",
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=1)
_NUM_TRIALS = flags.DEFINE_integer("num_trials", 50, "Trials of a search.", lower_bound=1)
_WORKDIR = flags.DEFINE_string("workdir", "runs/transfer_tables", "Folder of the results.")


def blind(space: mnms.SearchSpace, num_tasks: int) -> mnms.Policy:
    """Returns the policy that doesn't know for which task it samples."""
    policy = mnms.make_policy(space, num_tasks)
    return policy._replace(
        sample=lambda params, key, task_id, number: policy.sample(params, key, 0 * task_id, number),
        evaluate=lambda params, actions, task_id: policy.evaluate(params, actions, 0 * task_id),
    )


def learns(
    name: str = "ppo", advantage: Advantage = mnms.rank_advantage
) -> Callable[[mnms.Policy], mnms.Learner]:
    """Returns what makes a learner of transfer, with another learner or advantage."""
    return functools.partial(make_learner, name, advantage=advantage, warm=True)


_START = mnms.WarmStart(ranked=False)
_POLICIES = {
    method.name: method
    for method in (
        make_transfer_method("policy_frozen", _START._replace(trained="embedding")),
        make_transfer_method("policy_unimitated", _START._replace(imitation_steps=0)),
        make_transfer_method("policy_replay", _START._replace(replay=True)),
        make_transfer_method("policy_blind", _START, make_policy=blind),
        make_transfer_method(
            "policy_noskip",
            _START,
            make_policy=functools.partial(mnms.make_policy, skip_connection=False),
        ),
        make_transfer_method("policy_onpolicy", _START, make_learner=learns("reinforce")),
        make_transfer_method(
            "policy_relative", _START, make_learner=learns(advantage=mnms.relative_advantage)
        ),
        make_transfer_method(
            "policy_std", _START, make_learner=learns(advantage=mnms.standardized_advantage)
        ),
    )
}


def useless(make: MakeSearch) -> MakeSearch:
    """Returns the method that is given sources whose rewards have changed places."""

    def make_useless(
        space: mnms.SearchSpace, sources: Sources, number: int, key: jax.Array
    ) -> mnms.Search:
        rng = np.random.default_rng(int(jax.random.bits(key)))
        rewards = np.array(sources.trials.rewards)
        for row, size in zip(rewards, np.asarray(sources.trials.size).tolist(), strict=True):
            row[:size] = rng.permutation(row[:size])
        trials = sources.trials._replace(rewards=jnp.asarray(rewards))
        return make(space, sources._replace(trials=trials), number, key)

    return make_useless


def make_method(name: str) -> mnms.Method:
    """Returns a method by its name, which may have `_useless` behind it."""
    if name in _POLICIES:
        return _POLICIES[name]
    (method,) = mnms.make_methods([name.removesuffix("_useless")])
    if name == method.name:
        return method
    return method._replace(name=name, make=useless(method.make))


def main() -> None:
    """Compares, then shows and writes the figures."""
    benchmark = mnms.load_table(_TABLE.value)
    setup = mnms.LeaveOneOutSetup(
        benchmark.space,
        tuple(_TASKS.value or benchmark.task_names),
        tuple(map(make_method, _METHODS.value)),
        mnms.table_objective(benchmark),
        tuple(range(_SEEDS.value)),
        _NUM_TRIALS.value,
    )
    mnms.run_leave_one_out(
        setup,
        pathlib.Path(_WORKDIR.value) / _TABLE.value,
        contenders=[name for name in _METHODS.value if name.startswith(("transfer", "policy"))],
        identity={"table": _TABLE.value, "space": benchmark.space.fingerprint},
    )


if __name__ == "__main__":
    mnms.run_main(main)
