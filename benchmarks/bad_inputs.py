"""What the command line says to bad inputs: one line each that names the value and the rule.

Claim: no traceback, a status that isn't 0, and nothing that is trained before.

Command: python -m benchmarks.bad_inputs
Cost: five minutes on two CPU cores.
"""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence

import numpy as np

from mnms_jax import Config, run_experiment
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
    "begun/config.json": b'{"tasks": ["mine"]}',
    "images.npy": b"no npy",
    "table.csv": "".join(
        ["task,size,reward\n", *(f"only,{i},{i / 9}\n" for i in range(9))]
    ).encode(),
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
    ("tabular", "--table=$DIR/table.csv"),
    ("tabular", "--csv=$DIR/absent/regrets.csv"),
    ("multitask", "--space=cells", "--tasks=mine=$DIR/good.csv"),
    ("multitask", "--reward=acuracy"),
    ("multitask", "--reward=accuracy - seconds"),
    ("multitask", "--reward=accuracy -"),
    ("multitask", "--reward=accuracy - 0.1*samples", "--early_stopping=0.5"),
    ("multitask", "--embeddings=minlm"),
    ("multitask", "--embeddings=mine=$DIR/absent.txt", "--tasks=mine2=$DIR/good.csv"),
    ("multitask", "--executor=dask"),
    ("multitask", "--ray_address=auto"),
    ("multitask", "--rounds_in_flight=2", "--learner=trpo"),
    ("multitask", "--coordinator_address=localhost:1234"),
    ("transfer", "--from=$DIR/begun", "--tasks=mine=$DIR/good.csv"),
    ("predict", "--workdir=$DIR"),
    ("predict", "--workdir=$DIR/begun"),
    ("predict", "--workdir=$DIR", "--taks=mine"),
    ("predict", "--workdir=$DIR/child", "--input=$DIR/absent.csv"),
    ("predict", "--workdir=$DIR/child", "--input=$DIR/good.csv"),
    ("predict", "--workdir=$DIR/child", "--input=$DIR/good.txt"),
    ("predict", "--workdir=$DIR/child", "--input=$DIR/header.csv"),
    ("predict", "--workdir=$DIR/child", "--input=$DIR/numbers.csv"),
    ("predict", "--workdir=$DIR/child", "--task=mine", "--output=$DIR/absent/out.csv"),
    ("export", "--workdir=$DIR/begun", "--output=$DIR/out"),
    ("export", "--workdir=$DIR/child"),
    ("retrain", "--workdir=$DIR"),
    ("retrain", "--workdir=$DIR/begun"),
    ("retrain", "--workdir=$DIR/search", "--retrain_seeds=0"),
    ("retrain", "--workdir=$DIR/search", "--task=iris", "--tasks=wine"),
    ("retrain", "--workdir=$DIR/search", "--task=iris", "--tasks=iris,wine"),
    ("report", "--workdir=$DIR"),
    ("report", "--workdir=$DIR/taken"),
    ("report", "--workdir=$DIR/search", "--output=/proc/mine"),
    ("to_optuna", "--workdir=$DIR", "--storage=sqlite:///$DIR/trials.db"),
    ("to_optuna", "--workdir=$DIR/search"),
    ("to_optuna", "--workdir=$DIR/search", "--storage=trials.db"),
    ("launch/local.sh", "none", "experiments.multitask"),
    ("launch/local.sh", "1", "experiments.multitask", "--tasks=vader_moive"),
    ("launch.host",),
    ("launch.host", "experiments.multitask", "--tasks=vader_moive", "--workdir=$DIR/run"),
    ("launch.host", "--copy=nowhere://x", "experiments.multitask", "--workdir=$DIR/run"),
)


def try_command(folder: pathlib.Path, command: Sequence[str]) -> tuple[int, str, bool]:
    """Returns the status of a command, its last line of errors, and whether it had a traceback."""
    module, *given = [part.replace("$DIR", str(folder)) for part in command]
    program = [module] if module.endswith(".sh") else [sys.executable, "-m", module]
    if "." not in module:
        program[-1] = f"experiments.{module}"
        if module != "tabular" and not any(flag.startswith("--workdir") for flag in given):
            given.append(f"--workdir={folder / 'run'}")
    done = subprocess.run(
        [*program, *given],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHON": sys.executable},  # for launch/local.sh
    )
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    said = next((line for line in reversed(lines) if "error: " in line), "")
    said = said or next(iter(lines[-1:]), "")
    return done.returncode, said.replace(str(folder), "$DIR"), "Traceback" in done.stderr


def _search(path: pathlib.Path) -> None:
    """Makes a finished search on records, for what takes one."""
    run_experiment(
        Config(tasks=("iris",), num_trials=1, round_size=1, learner="random", workdir=str(path))
    )


def main() -> None:
    """Tries all commands, and prints what they said as a table in Markdown."""
    statuses, tracebacks = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for path, content in _FILES.items():
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(content)
        _search(folder / "search")
        shutil.copytree(folder / "search/best/iris", folder / "child")
        print("| command | what it says |\n|---|---|")
        for command in COMMANDS:
            status, said, traced = try_command(folder, command)
            statuses.append(status)
            tracebacks.append(traced)
            print(f"| `{' '.join(command)}` | {said.replace('|', '/')} |", flush=True)
        trained = [p for p in folder.rglob("trials.jsonl") if p.parent != folder / "search"]
    print(
        f"{len(COMMANDS)} commands; {np.count_nonzero(statuses)} refused, "
        f"{sum(tracebacks)} tracebacks, {len(trained)} with trials"
    )


if __name__ == "__main__":
    run_main(main)
