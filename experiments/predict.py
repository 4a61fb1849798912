"""The best child of a search, on data without labels.

Writes a class and all classes' probabilities for each row, a part at a time: files may be of any
length.

Command: python -m experiments.predict --task=vader_movie < reviews.txt
Variants, of texts:
  --input=reviews.csv --output=labels.csv     the column that training was told of, or a guess
  --input='reviews.parquet?text=body'         or named
  --output=labels.jsonl                       JSON lines
of records: --input=flowers.csv               the columns that were learned from
of images: --input=t10k-images-idx3-ubyte     IDX, or .npy with uint8 [N, H, W] or [N, H, W, C]
"""

import pathlib
import signal

from absl import flags

import mnms_jax as mnms

_WORKDIR = flags.DEFINE_string("workdir", "runs/multitask", "Folder of the search, or of a child.")
_TASK = flags.DEFINE_string("task", "", "Whose best child predicts; needless if there is one.")
_INPUT = flags.DEFINE_string("input", "-", "File to read; - is the standard input, a text a line.")
_OUTPUT = flags.DEFINE_string(
    "output", "-", "File to write, CSV, or JSON lines if it ends in .jsonl; - is standard output."
)


def main() -> None:
    """Predicts what the flags name."""
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # quiet when nobody reads on, as before `head`
    path = mnms.find_child(pathlib.Path(_WORKDIR.value).expanduser(), _TASK.value)
    mnms.predict_file(mnms.load_child(path), _INPUT.value, _OUTPUT.value)


if __name__ == "__main__":
    mnms.run_main(main)
