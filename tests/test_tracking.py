import io
import json
import os
import signal
import time

import pytest
import rich.console

from mnms_jax.tracking import Progress, Tracker

PROGRESS = Progress("ppo", 1, 2, 8, 2.0, 0.1, 3, {"a": 0.5}, {"a": 0.75}, {"loss": 0.25}, 4.0)


class TerminatedError(BaseException):
    pass


def test_a_signal_in_the_middle_of_a_write_leaves_a_writer_that_closes(tmp_path, monkeypatch):
    console = rich.console.Console(file=io.StringIO())

    def terminate(number, frame):
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        with pytest.raises(TerminatedError), Tracker(tmp_path, console) as tracker:
            add_scalar, written = tracker._writer.add_scalar, []

            def slow(name, *arguments):
                if not written:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.2)
                add_scalar(name, *arguments)
                written.append(name)

            monkeypatch.setattr(tracker._writer, "add_scalar", slow)
            tracker.show(PROGRESS)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "ppo round 1/2" in console.file.getvalue()
    # What was being written is whole.
    rounds = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert [(row["round"], row["best/a"], row["learner/loss"]) for row in rounds] == [
        (1, 0.75, 0.25)
    ]
    assert written[0] == "reward/a" and "best/a" in written and "learner/loss" in written


def test_numbers_that_json_does_not_know_are_left_out(tmp_path):
    console = rich.console.Console(file=io.StringIO())
    with Tracker(tmp_path, console) as tracker:
        tracker.show(PROGRESS._replace(scalars={"loss": float("nan"), "entropy": 1.5}))
    (row,) = [json.loads(line) for line in (tmp_path / "rounds.jsonl").read_text().splitlines()]
    assert "learner/loss" not in row and row["learner/entropy"] == 1.5
    assert list((tmp_path / "tensorboard").glob("events*"))
