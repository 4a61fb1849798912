"""Real processes that search are stopped in every way; what they leave is gone on from."""

import json
import pathlib
import signal
import subprocess
import sys
import time

import pytest

import mnms_jax
from benchmarks.chaos import compare, trials_of

ROOT = pathlib.Path(mnms_jax.__file__).parent.parent
TRIALS = 12


def start(path, *prefix):
    search = ["-m", "benchmarks.chaos", f"--search={path}", f"--trials={TRIALS}"]
    return subprocess.Popen(
        [*prefix, sys.executable, *search],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    process = start(path)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    return trials_of(path)


def assert_goes_on(path, whole):
    assert len(trials_of(path)) < len(whole)
    process = start(path)
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 0, errors
    assert trials_of(path) == whole


@pytest.mark.parametrize(
    ("number", "status", "said"),
    [
        (signal.SIGTERM, 0, "terminated; what was done is kept, and the same command goes on"),
        (signal.SIGINT, 130, "stopped; the same command goes on"),
    ],
    ids=["SIGTERM", "SIGINT"],
)
def test_a_signal_saves_and_says_how_to_go_on(tmp_path, whole, number, status, said):
    process = start(tmp_path / "w")
    assert process.stdout.readline() == "ready\n"
    while "round 2/" not in (line := process.stderr.readline()):
        assert line, "it ended before it could be stopped"
    for _ in range(5 if number == signal.SIGTERM else 1):  # clusters send more than one
        process.send_signal(number)
        time.sleep(0.01)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == status
    assert errors.strip().splitlines()[-1] == f"{said} from here"
    kept = sorted(path.name for path in (tmp_path / "w" / "checkpoints").iterdir())
    assert "2" in kept and all(name.isdigit() for name in kept)
    assert_goes_on(tmp_path / "w", whole)


def test_a_disk_too_full_for_a_checkpoint_is_one_clear_line_at_the_end(tmp_path, whole):
    process = start(tmp_path / "w", "bash", "-c", 'ulimit -f 48; exec "$@"', "bash")  # KiB
    _, errors = process.communicate(timeout=200)
    assert process.returncode == 1
    last = errors.strip().splitlines()[-1]
    assert last.startswith(f"error: a checkpoint can't be written to {tmp_path / 'w'}/checkpoints")
    assert last.endswith("mend that, and the same command goes on from here")
    assert_goes_on(tmp_path / "w", whole)


def measure(folder, module, *flags):
    """Returns the figures of a benchmark."""
    figures = folder / "figures.json"
    command = [sys.executable, "-m", module, *flags, f"--json={figures}"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return json.loads(figures.read_text())


def test_chaos(tmp_path):
    found = measure(tmp_path, "benchmarks.chaos", "--kills=3", f"--trials={TRIALS}")
    assert found["kills"] == 3 and found["equal"] is True
    assert found["lost"] == found["duplicated"] == 0
    assert found["moments"] == {"start": 1, "search": 1, "checkpoint": 1}


def test_chaos_notices_what_is_lost_or_twice(tmp_path):
    rows = [json.dumps({"task": "a", "trial": i, "seconds": i}) + "\n" for i in (0, 2, 2)]
    (tmp_path / "trials.jsonl").write_text("".join(rows))
    undisturbed = [("a", i, {"task": "a", "trial": i, "seconds": None}) for i in range(3)]
    found = compare(tmp_path, undisturbed, [])
    assert (found.lost, found.duplicated, found.equal) == (1, 1, False)


def test_endurance(tmp_path):
    first, last = measure(tmp_path, "benchmarks.endurance", "--trials=20", "--every=10")
    assert (first["trials"], last["trials"]) == (10, 20)
    assert 50 < first["resident_mb"] and 0 < last["ms_per_trial"] and last["entropy"] > 0
