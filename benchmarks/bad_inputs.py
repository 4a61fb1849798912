"""What the command line says to bad inputs: one line each that names the value and the rule.

Claim: no traceback, a status that isn't 0, and nothing that is trained before.

Command: python -m benchmarks.bad_inputs
Cost: two minutes on two CPU cores.
"""

import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from mnms_jax.cli import run_main

_ROWS = "".join(f"text number {i} here,{'ab'[i % 2]}\n" for i in range(60))
_FILES: dict[str, bytes] = {
    "good.csv": f"text,label\n{_ROWS}".encode(),
    "good.txt": f"text,label\n{_ROWS}".encode(),
    "empty.csv": b"",
    "header.csv": b"text,label\n",
    "names.csv": f"said,mood\n{_ROWS}".encode(),
    "short.csv": f"text,label\n{_ROWS}only one field\n".encode(),
    "latin.csv": f"text,label\n{_ROWS}caf\xe9,a\n".encode("latin-1"),
    "quote.csv": f'text,label\n{_ROWS}"never closed,a\n'.encode(),
    "alike.csv": f"text,label\n{_ROWS}".replace(",b", ",a").encode(),
    "few.csv": b"text,label\ngood one,a\nbad one,b\n",
    "long.csv": b"text,label\n" + b"x" * 200_000 + b",a\n",
    "cut.jsonl": b'{"text": "fine", "label": "a"}\n{"text": \n',
    "number.jsonl": b'{"text": 5, "label": "a"}\n',
    "no.parquet": b"no parquet",
    "numbers.csv": "".join(["size,label\n", *(f"{i / 7},{i % 2}\n" for i in range(60))]).encode(),
    "vectors.txt": b"word 1 2 3\nother 1 2\n",
    "idx/train-images-idx3-ubyte": b"no idx",
    "idx/train-labels-idx1-ubyte": b"no idx",
    "taken/config.json": b"{",
}
# Module and flags; $DIR is the folder of the files above.
COMMANDS: Sequence[tuple[str, ...]] = (
    ("multitask", "--tasks=vader_moive"),
    ("multitask", "--tasks=vader_movie,vader_movie"),
    ("multitask", "--tasks="),
    ("multitask", "--tasks=$DIR/good.csv"),
    ("multitask", "--tasks=mine=$DIR/absent.csv"),
    ("multitask", "--tasks=mine=$DIR/good.txt"),
    ("multitask", "--tasks=mine=$DIR/empty.csv"),
    ("multitask", "--tasks=mine=$DIR/header.csv"),
    ("multitask", "--tasks=mine=$DIR/names.csv"),
    ("multitask", "--tasks=mine=$DIR/names.csv?text=sayd&label=mood"),
    ("multitask", "--tasks=mine=$DIR/good.csv?txt=text"),
    ("multitask", "--tasks=mine=$DIR/short.csv"),
    ("multitask", "--tasks=mine=$DIR/latin.csv"),
    ("multitask", "--tasks=mine=$DIR/quote.csv"),
    ("multitask", "--tasks=mine=$DIR/alike.csv"),
    ("multitask", "--tasks=mine=$DIR/few.csv"),
    ("multitask", "--tasks=mine=$DIR/long.csv"),
    ("multitask", "--tasks=mine=$DIR/cut.jsonl"),
    ("multitask", "--tasks=mine=$DIR/number.jsonl"),
    ("multitask", "--tasks=mine=$DIR/no.parquet"),
    ("multitask", "--tasks=mine=$DIR/numbers.csv,vader=$DIR/good.csv"),
    ("multitask", "--tasks=mine=$DIR/idx"),
    ("multitask", "--tasks=digits", "--embeddings=mine=$DIR/vectors.txt"),
    ("multitask", "--tasks=mine=$DIR/good.csv", "--embeddings=mine2=$DIR/vectors.txt"),
    ("multitask", "--tasks=mine=$DIR/good.csv", "--embeddings=vectors.txt"),
    ("multitask", "--tasks=sst2", "--data_dir=$DIR"),
    ("multitask", "--tasks=tfds:no name"),
    ("multitask", "--num_trials=0"),
    ("multitask", "--num_trails=9"),
    ("multitask", "--space=huge"),
    ("multitask", "--learner=pppo"),
    ("multitask", "--workdir=/proc/mine", "--tasks=mine=$DIR/good.csv"),
    ("multitask", "--workdir=$DIR/taken", "--tasks=mine=$DIR/good.csv"),
    ("transfer", "--tasks=mine=$DIR/good.csv"),
    ("transfer", "--from=$DIR", "--tasks=mine=$DIR/good.csv"),
    ("schedule", "--phases=vader_movie:many"),
    ("tabular", "--table=nasbench"),
    ("tabular", "--table=$DIR/numbers.csv", "--methods=tpe"),
)


def try_command(folder: pathlib.Path, command: Sequence[str]) -> tuple[int, str, bool]:
    """Returns the status of a command, its last line of errors, and whether it had a traceback."""
    module, *given = [part.replace("$DIR", str(folder)) for part in command]
    if not any(flag.startswith("--workdir") for flag in given) and module != "tabular":
        given.append(f"--workdir={folder / 'run'}")
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{module}", *given],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "error: " in line), "")
    said = said or next((line for line in lines if "FATAL Flags" in line), "")
    said = said or next(iter(lines[-1:]), "")
    return done.returncode, said.replace(str(folder), "$DIR"), "Traceback" in done.stderr


def main() -> None:
    """Tries all commands, and prints what they said as a table in Markdown."""
    statuses, tracebacks = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for path, content in _FILES.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        print("| command | what it says |\n|---|---|")
        for command in COMMANDS:
            status, said, traced = try_command(folder, command)
            statuses.append(status)
            tracebacks.append(traced)
            print(f"| `{' '.join(command)}` | {said.replace('|', '/')} |", flush=True)
        trained = list(folder.rglob("trials.jsonl"))
    print(
        f"{len(COMMANDS)} commands; {np.count_nonzero(statuses)} refused, "
        f"{sum(tracebacks)} tracebacks, {len(trained)} with trials"
    )


if __name__ == "__main__":
    run_main(main)
