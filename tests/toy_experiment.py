"""The multitask experiment, with children that are quick to compile and to train."""

import toy

import mnms_jax as mnms
from experiments import multitask
from mnms_jax import experiment


def _glove50() -> None:
    raise mnms.UserError("not needed")


if __name__ == "__main__":
    family = toy.make_family(
        lowercase=(True, False),
        optimizer=("adam", "sgd"),
        deep_learning_rate=(0.01, 1e30),
        samples=(1280, 12800, 25600),
    )
    experiment.glove50, experiment.make_text_family = _glove50, lambda *arguments: family
    mnms.define_flags()
    mnms.run_main(multitask.main)
