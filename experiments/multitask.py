"""One controller searches text classifiers for several tasks at once.

Claim: with the controller of Wong & Gesmundo (2017, arXiv:1710.10776) the children of later rounds
are better than those of earlier ones and of random search, and differ by task.

Command: python -m experiments.multitask
Variants:
  python -m experiments.multitask --tasks=sst2,imdb --data_dir=DIR   TFDS data
  python -m experiments.multitask --learner=reinforce                on-policy
  python -m experiments.multitask --space=full                       the published space; use a GPU
The same command on the same --workdir resumes. benchmarks/RESULTS.md has costs and figures.
"""

import errno
import sys
from collections.abc import Sequence

from absl import app

from mnms_jax.config import config_from_flags, define_flags
from mnms_jax.types import UserError


def main(argv: Sequence[str]) -> None:
    """Runs the experiment that the flags describe."""
    if len(argv) > 1:
        raise app.UsageError(f"no arguments but flags are taken, got {' '.join(argv[1:])}")
    try:
        config = config_from_flags()
        from mnms_jax.experiment import prepare_process, run_experiment  # slow to import

        prepare_process()
        run_experiment(config)
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit("stopped; the same command goes on from here")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise
        sys.exit(f"error: {error}; mend that, and the same command goes on from here")


if __name__ == "__main__":
    define_flags()
    app.run(main)
