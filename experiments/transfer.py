"""A controller that was trained on other tasks searches children for new ones.

Claim: a pre-trained controller finds good children for a task that it has never seen in far fewer
trials (Wong & Gesmundo 2017, arXiv:1710.10776; Wong et al. 2018, arXiv:1803.02780).

Command, after `python -m experiments.multitask --workdir=runs/pretrain`:
  python -m experiments.transfer --from=runs/pretrain --tasks=vader_tweets
Variants:
  --embedding=random --noimitation --noreward_model    as published
  --embedding=random --trained=embedding               shared weights frozen
  --embedding=inferred                                 a mixture of the sources' embeddings
The same command on the same --workdir resumes. benchmarks/RESULTS.md has costs and figures.
"""

import mnms_jax as mnms


def main() -> None:
    """Runs the search that the flags describe."""
    mnms.run_experiment(mnms.config_from_flags(mnms.TransferConfig))


if __name__ == "__main__":
    mnms.define_flags(
        mnms.TransferConfig,
        tasks=["vader_tweets"],
        num_trials=25,
        round_size=2,
        workdir="runs/transfer",
    )
    mnms.run_main(main)
