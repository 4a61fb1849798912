"""A controller that meets its tasks one after another.

Claim: what it learned on the tasks before shortens the search on those that join, and with replay
it forgets nothing of them.

Command:
  python -m experiments.schedule
Variants, phases as TASKS:TRIALS[:replay][:frozen]:
  --phases=sst2:24,imdb:8,trec6:8                 one task at a time
  --phases=sst2+imdb:24,sst2+imdb+trec6:8:replay  a task joins
  --phases=sst2+imdb:24,trec6:8:frozen            its embedding alone is learned
  --from=runs/pretrain                            the first phase has sources too
The same command on the same --workdir resumes; phases to come may still change.
"""

from absl import flags

import mnms_jax as mnms

_PHASES = flags.DEFINE_list(
    "phases",
    [
        "vader_movie+vader_amazon:16",  # pre-training
        "vader_movie+vader_amazon+sms_spam:8:replay",  # a task joins
        "vader_tweets:8:frozen",  # what is learned stays as it is
    ],
    "Searches one after another, as TASK+TASK:TRIALS with :replay (learn from the tasks' trials of "
    "before) or :frozen (learn the tasks' embeddings alone) behind it.",
)


def main() -> None:
    """Runs the schedule that the flags describe."""
    for name in ("tasks", "num_trials", "replay"):
        if flags.FLAGS[name].present:
            raise mnms.UserError(f"--{name} is each phase's own: write it into --phases")
    config = mnms.config_from_flags(mnms.TransferConfig)
    assert isinstance(config, mnms.TransferConfig)
    mnms.run_schedule(config, [mnms.parse_phase(text) for text in _PHASES.value])


if __name__ == "__main__":
    mnms.define_flags(
        mnms.TransferConfig, round_size=4, compare_random=False, workdir="runs/schedule"
    )
    mnms.run_main(main)
