"""One controller searches text classifiers for several tasks at once.

Claim: with the controller of Wong & Gesmundo (2017, arXiv:1710.10776) the children of later rounds
are better than those of earlier ones and of random search, and differ by task.

Command: python -m experiments.multitask
Variants:
  python -m experiments.multitask --tasks=sst2,imdb --data_dir=DIR   TFDS data
  python -m experiments.multitask --preset=mnms2017                  as published
  python -m experiments.multitask --space=full                       the published space; use a GPU
The same command on the same --workdir resumes. benchmarks/RESULTS.md has costs and figures.
"""

import mnms_jax as mnms


def main() -> None:
    """Runs the search that the flags describe."""
    mnms.run_experiment(mnms.config_from_flags())


if __name__ == "__main__":
    mnms.define_flags()
    mnms.run_main(main)
