"""A controller that was trained on other tasks searches children for new ones.

Claim: a pre-trained controller finds good children for a task that it has never seen in far fewer
trials (Wong & Gesmundo 2017, arXiv:1710.10776; Wong et al. 2018, arXiv:1803.02780).

Command, after `python -m experiments.multitask --workdir=runs/pretrain`:
  python -m experiments.transfer --from=runs/pretrain --tasks=vader_tweets
Variants:
  --preset=mnms2017, --preset=tnaml2018                as published
  --embedding=random --trained=embedding               shared weights frozen
  --embedding=inferred                                 a mixture of the sources' embeddings
  --replay --tasks=vader_movie,vader_tweets            a source goes on, none is forgotten
  --from=optuna:sqlite:///runs/trials.db               the sources are studies of Optuna's
Comparison, each task in turn being new and the others its sources:
  python -m experiments.transfer --leave_one_out --tasks=vader_movie,vader_amazon,vader_tweets
The same command on the same --workdir resumes. benchmarks/RESULTS.md has costs and figures.
"""

from absl import flags

import mnms_jax as mnms

_LEAVE_ONE_OUT = flags.DEFINE_boolean(
    "leave_one_out", False, "Compare methods on each of the tasks, the others being its sources."
)
_METHODS = flags.DEFINE_list(
    "methods",
    ["random", "cold", "portfolio", "tpe", "tpe_enqueued", "transfer"],
    "Methods to compare; variants of transfer are transfer_random, transfer_similar, "
    "transfer_inferred, transfer_frozen, transfer_unsuggested, transfer_unguarded, "
    "transfer_policy, transfer_model and transfer_replay.",
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of the comparison, from --seed on.", lower_bound=1)
_THRESHOLD = flags.DEFINE_integer(
    "threshold_trials", 200, "Random trials whose expected best is to be reached.", lower_bound=1
)
# How a single search is made, and what to do in a comparison.
_METHODS_SAY = (
    *("preset", "learner", "advantage", "imitate_best", "skip_connection", "reward_model"),
    *("embedding", "trained", "imitation", "suggested", "guard", "replay"),
)
_NOT_COMPARED = {
    **dict.fromkeys(_METHODS_SAY, "name --methods instead"),
    "from": "leave it out, as the other --tasks are each one's sources",
    "renamed": "leave it out, as all tasks have one search space",
    "time_limit": "give it fewer --num_trials or --seeds instead",
    "track": "leave it out; WORKDIR/seed_*/*/trials.jsonl have every trial",
    "live_report": "leave it out; experiments.report draws what is there while it goes on",
}


def main() -> None:
    """Runs the search or the comparison that the flags describe."""
    if not _LEAVE_ONE_OUT.value:
        mnms.run_experiment(mnms.config_from_flags(mnms.TransferConfig))
        return
    for name, instead in _NOT_COMPARED.items():
        if flags.FLAGS[name].present:
            raise mnms.UserError(f"--{name} doesn't go with --leave_one_out: {instead}")
    config = mnms.config_from_flags()
    mnms.run_text_leave_one_out(
        config,
        mnms.make_methods(_METHODS.value),
        seeds=range(config.seed, config.seed + _SEEDS.value),
        contenders=[name for name in _METHODS.value if name.startswith("transfer")],
        trials_per_round=config.round_size,
        threshold_trials=_THRESHOLD.value,
    )


if __name__ == "__main__":
    mnms.define_flags(
        mnms.TransferConfig,
        tasks=["vader_tweets"],
        num_trials=25,
        round_size=2,
        workdir="runs/transfer",
    )
    mnms.run_main(main)
