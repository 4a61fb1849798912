"""The report of a search that is going on, drawn again and again."""

import pathlib
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

from absl import logging

from mnms_jax.charts import require_matplotlib
from mnms_jax.html_report import write_live_page, write_report
from mnms_jax.page import require_plotly

EVERY_SECONDS = 30.0
_LEAST_PAUSE = 50.0  # times what a drawing takes: it costs at most 2 % of a search's time


class LiveReport:
    """Keeps WORKDIR/report/report.html up to date; a context manager.

    It is drawn when a round has been told, every EVERY_SECONDS at most; meanwhile nothing else is
    logged. The page reloads itself until the search has ended, for which the whole report is
    written then, with all its files. What is in the way of drawing is told once, and nothing is
    drawn any more.

    Args:
      workdir: of the search.

    Raises:
      UserError: a library isn't installed.
    """

    def __init__(self, workdir: pathlib.Path):
        require_plotly()
        require_matplotlib()
        self._workdir = workdir
        self._next = time.monotonic()
        self._is_drawn = self._failed = False

    def __enter__(self) -> "LiveReport":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._draw(lambda _: write_report([self._workdir]))
        elif self._is_drawn:
            self._draw(lambda now: self._write(f"The search was stopped before its end, at {now}."))

    def begin(self) -> Callable[[], None]:
        """Says where the page will be, and returns what is to be called after every round."""
        path = self._workdir.resolve() / "report" / "report.html"
        logging.info("%s is drawn from the first round on, every %g s", path, EVERY_SECONDS)
        return self.refresh

    def refresh(self) -> None:
        """Draws the page if it is time to."""
        start = time.monotonic()
        if start < self._next:
            return
        note = "The search is going on: this was drawn at {}, and the page reloads itself."
        self._draw(lambda now: self._write(note.format(now), EVERY_SECONDS))
        end = time.monotonic()
        self._next = end + max(EVERY_SECONDS, _LEAST_PAUSE * (end - start))

    def _write(self, note: str, reload_seconds: float = 0.0) -> None:
        write_live_page(self._workdir, note, reload_seconds)
        self._is_drawn = True

    def _draw(self, draw: Callable[[str], Any]) -> None:
        if self._failed:
            return
        try:
            draw(time.strftime("%H:%M:%S"))
        except Exception as error:  # whatever it is, the search doesn't depend on it
            self._failed = True
            logging.warning(
                "the report can't be drawn, and won't be any more (%s); the search needs none, "
                "and experiments.report draws it later",
                error,
            )
