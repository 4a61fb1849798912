"""What a running search shows: a table on a terminal, or lines in a log; and whom it tells."""

import concurrent.futures
import contextlib
import json
import math
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

import rich.console
import rich.live
import rich.table
import rich.text
from absl import logging

from mnms_jax.sinks import Sink, Status, open_sink

QUIET_SECONDS = 60.0  # of silence, after which a log says at the next child how far a round is


class Progress(NamedTuple):
    """Where a search stands after a round."""

    label: str  # of the search, e.g. "ppo"
    round: int  # rounds done
    num_rounds: int
    trials: int  # trials done, on all tasks
    trials_per_second: float  # in this process
    idle_share: float  # of the workers' time, waiting for the compiler
    num_programs: int
    mean_reward: Mapping[str, float]  # of this round's children, by task
    best_reward: Mapping[str, float]  # so far, by task
    scalars: Mapping[str, float]  # of the learner
    seconds_left: float  # estimated


class Tracker:
    """Shows a search's progress, and writes it into its folder; a context manager.

    Every round's scalars are a line of rounds.jsonl, which needs no library to be read, and are
    told to the sinks. A round that is done again after a crash has another line. A sink that fails
    is told of once, and nothing any more. At the end they are told how it came.

    Args:
      path: the search's folder.
      console: where the progress is shown.
      sinks: names of those to tell, see `open_sink`.
      about: what is said of the search, flags by name.
      refresh: called after every round.

    Raises:
      UserError: see `open_sink`.
    """

    def __init__(
        self,
        path: pathlib.Path,
        console: rich.console.Console | None = None,
        *,
        sinks: Sequence[str] = ("tensorboard",),
        about: Mapping[str, Any] | None = None,
        refresh: Callable[[], None] | None = None,
    ):
        self._console = console or rich.console.Console(stderr=True)
        # Signals interrupt the main thread alone: interrupted, a writer would never close.
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "mnms-tracking")
        self._sinks: dict[str, Sink] = {}
        self._rounds = path / "rounds.jsonl"
        self._live = rich.live.Live(console=self._console) if self._console.is_terminal else None
        self._refresh = refresh
        self._shown: Progress | None = None
        self._said = time.monotonic()  # when a line was last printed
        with contextlib.ExitStack() as stack:
            stack.push(self.__exit__)  # closes what is open, should another sink not open
            for name in sinks:
                opened = self._thread.submit(open_sink, name, path, about or {})
                self._sinks[name] = opened.result()
            stack.pop_all()

    def __enter__(self) -> "Tracker":
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._live:
            self._live.stop()
        status: Status = "FINISHED"
        if kind is not None:
            status = "FAILED" if issubclass(kind, Exception) else "KILLED"
        for name in [*self._sinks]:
            self._thread.submit(self._tell, name, lambda sink: sink.close(status)).result()
        self._thread.shutdown()

    def show(self, progress: Progress) -> None:
        """Shows where the search stands."""
        self._shown = progress
        if self._live:
            self._live.update(_as_table(progress), refresh=True)
        else:
            self._print(_as_line(progress))
        scalars = {
            **{f"reward/{task}": value for task, value in progress.mean_reward.items()},
            **{f"best/{task}": value for task, value in progress.best_reward.items()},
            **{f"learner/{name}": value for name, value in progress.scalars.items()},
            "time/idle_share": progress.idle_share,
            "time/trials_per_second": progress.trials_per_second,
            "time/programs": progress.num_programs,
        }
        self._thread.submit(self._write, scalars, progress.round).result()
        if self._refresh:
            self._refresh()

    def note(self, line: str) -> None:
        """Shows how far a round is: on a terminal always, in a log after a minute's silence."""
        if self._live:
            seen = rich.text.Text(line) if self._shown is None else _as_table(self._shown, line)
            self._live.update(seen, refresh=True)
        elif time.monotonic() - self._said >= QUIET_SECONDS:
            self._print(line)

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, markup=False, highlight=False)
        self._said = time.monotonic()

    def _write(self, scalars: Mapping[str, float], step: int) -> None:
        known = {name: value for name, value in scalars.items() if math.isfinite(value)}
        with self._rounds.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"round": step, **known}, ensure_ascii=False) + "\n")
        for name in [*self._sinks]:
            self._tell(name, lambda sink: sink.write(scalars, step))

    def _tell(self, name: str, call: Callable[[Sink], None]) -> None:
        try:
            call(self._sinks[name])
        except Exception as error:  # a server that is gone, and what else libraries may raise
            sink = self._sinks.pop(name)
            with contextlib.suppress(Exception):
                sink.close("FAILED")
            logging.warning("%s isn't told any more (%s); the search goes on", name, error)


def _as_line(progress: Progress) -> str:
    best = "  ".join(f"{task} {value:.3f}" for task, value in progress.best_reward.items())
    return f"{_headline(progress)}, best {best}{_beliefs(progress)}"


def _beliefs(progress: Progress) -> str:
    """Returns how far the guard against negative transfer believes the sources, by task."""
    found = [value for name, value in progress.scalars.items() if name.startswith("belief/")]
    return f", sources believed: {'  '.join(f'{value:.0%}' for value in found)}" if found else ""


def _headline(progress: Progress) -> str:
    return (
        f"{progress.label} round {progress.round}/{progress.num_rounds}: {progress.trials} trials, "
        f"{progress.trials_per_second:.2f}/s, {progress.num_programs} programs, "
        f"{progress.idle_share:.0%} idle for compiling, {_duration(progress.seconds_left)} left"
    )


def _as_table(progress: Progress, note: str | None = None) -> rich.table.Table:
    table = rich.table.Table(title=_headline(progress) + _beliefs(progress), caption=note)
    for column in ("task", "mean of the round", "best so far"):
        table.add_column(column, justify="left" if column == "task" else "right")
    for task, best in progress.best_reward.items():
        mean = progress.mean_reward.get(task)
        table.add_row(task, "failed" if mean is None else f"{mean:.3f}", f"{best:.3f}")
    return table


def _duration(seconds: float) -> str:
    if math.isnan(seconds):
        return "unknown time"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
