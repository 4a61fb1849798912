"""The best child of a search as StableHLO, for programs without this package.

OUTPUT/child.stablehlo is a function of encoded inputs, of any number of rows, for CPUs, CUDA and
TPUs: jax.export.deserialize(content).call(arrays) gives probabilities. What is written is read back
and tried. OUTPUT/child.json and encoder.npz say how inputs are encoded.

Command: python -m experiments.export --task=vader_movie --output=exported
"""

import pathlib

from absl import flags

import mnms_jax as mnms

_WORKDIR = flags.DEFINE_string("workdir", "runs/multitask", "Folder of the search, or of a child.")
_TASK = flags.DEFINE_string("task", "", "Whose best child is exported; needless if there is one.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write.", required=True)


def main() -> None:
    """Exports what the flags name."""
    path = mnms.find_child(pathlib.Path(_WORKDIR.value).expanduser(), _TASK.value)
    output = pathlib.Path(_OUTPUT.value).expanduser()
    mnms.export_stablehlo(output, mnms.load_child(path))
    print(f"written to {output.resolve()}: child.stablehlo, child.json, encoder.npz")


if __name__ == "__main__":
    mnms.run_main(main)
