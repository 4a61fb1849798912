import contextlib
import io
import json
import os
import signal
import time
import types

import pytest
import rich.console

from mnms_jax import tracking
from mnms_jax.tracking import Progress, Tracker
from mnms_jax.types import UserError

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
            writer, written = tracker._sinks["tensorboard"]._writer, []
            add_scalar = writer.add_scalar

            def slow(name, *arguments):
                if not written:
                    os.kill(os.getpid(), signal.SIGTERM)
                    time.sleep(0.2)
                add_scalar(name, *arguments)
                written.append(name)

            monkeypatch.setattr(writer, "add_scalar", slow)
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


def test_a_log_is_silent_for_a_minute_at_most_and_no_longer_for_short_rounds(tmp_path, monkeypatch):
    class Clock:
        now = 1000.0

    clock = types.SimpleNamespace(monotonic=lambda: Clock.now)
    monkeypatch.setattr(tracking, "time", clock)
    console = rich.console.Console(file=io.StringIO(), width=40)
    with Tracker(tmp_path, console, sinks=()) as tracker:
        for seconds, note in ((59, "a"), (1, "b"), (59, "c"), (0, None), (2, "d"), (58, "e")):
            Clock.now += seconds
            tracker.show(PROGRESS) if note is None else tracker.note(note)
    shown = console.file.getvalue().splitlines()
    assert [line[:9] for line in shown] == ["b", "ppo round", "e"]


def test_a_terminal_shows_how_far_a_round_is_at_once(tmp_path):
    file = io.StringIO()
    console = rich.console.Console(file=file, force_terminal=True, width=80)
    with Tracker(tmp_path, console, sinks=()) as tracker:
        tracker.note("0 of 4 trained")
        tracker.show(PROGRESS)
        tracker.note("1 of 4 trained")
    assert "0 of 4 trained" in file.getvalue()
    assert "1 of 4 trained" in file.getvalue().rpartition("ppo round 1/2")[2]


class Broken:
    """A sink whose server is gone."""

    def write(self, scalars, step):
        raise ConnectionError("nobody listens")

    def close(self, status):
        raise AssertionError("it was told of")


def test_a_sink_that_fails_is_told_of_once_and_the_others_go_on(tmp_path, monkeypatch, caplog):
    opened, calls = [], []

    def open_sink(name, path, about):
        opened.append((name, path, about))
        return Broken()

    monkeypatch.setattr(tracking, "open_sink", open_sink)
    console = rich.console.Console(file=io.StringIO())
    with caplog.at_level("WARNING", "absl"):
        with Tracker(
            tmp_path,
            console,
            sinks=("wandb", "mlflow"),
            about={"seed": 3},
            refresh=lambda: calls.append(1),
        ) as tracker:
            tracker.show(PROGRESS)
            tracker.show(PROGRESS._replace(round=2))
    assert opened == [(name, tmp_path, {"seed": 3}) for name in ("wandb", "mlflow")]
    assert [record.args[0] for record in caplog.records] == ["wandb", "mlflow"]
    assert "nobody listens" in caplog.text and calls == [1, 1]
    assert (tmp_path / "rounds.jsonl").read_text().count("\n") == 2


@pytest.fixture
def sinks(monkeypatch):
    """The statuses that sinks were closed with, by name; one called "absent" can't be opened."""
    closed = {}

    def open_sink(name, path, about):
        if name == "absent":
            raise UserError("no run can be opened")
        return types.SimpleNamespace(close=lambda status: closed.update({name: status}))

    monkeypatch.setattr(tracking, "open_sink", open_sink)
    return closed


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (None, "FINISHED"),
        (UserError, "FAILED"),
        (KeyboardInterrupt, "KILLED"),
        (TerminatedError, "KILLED"),
    ],
)
def test_sinks_are_told_how_a_search_ended(tmp_path, sinks, error, status):
    with contextlib.suppress(BaseException), Tracker(tmp_path, sinks=("a", "b")):
        if error:
            raise error
    assert sinks == {"a": status, "b": status}


def test_a_sink_that_can_not_be_opened_leaves_none_open(tmp_path, sinks):
    with pytest.raises(UserError, match="no run"):
        Tracker(tmp_path, sinks=("a", "b", "absent", "c"))
    assert sinks == {"a": "FAILED", "b": "FAILED"}
