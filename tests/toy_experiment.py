"""The multitask experiment, with children that are quick to compile and to train."""

from unittest import mock

import toy

import mnms_jax as mnms
from experiments import multitask
from mnms_jax import bench
from mnms_jax.children import text

if __name__ == "__main__":
    family = toy.make_family(
        lowercase=(True, False),
        optimizer=("adam", "sgd"),
        deep_learning_rate=(0.01, 1e30),
        samples=(1280, 12800, 25600),
    )
    missing = mnms.UserError("not needed")
    # Unlike an assignment, a patch fails where there is no such name any more.
    with (
        mock.patch.object(text, "make_text_family", return_value=family),
        mock.patch.object(bench, "glove50", side_effect=missing),
    ):
        mnms.define_flags()
        mnms.run_main(multitask.main)
