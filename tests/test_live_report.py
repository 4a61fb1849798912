"""The page of a running search: when it is drawn, what it costs, and that it can't do harm."""

import importlib
import time
import types

import pytest
from browser import Browser
from test_html_report import write_search

from mnms_jax import live_report
from mnms_jax.html_report import write_live_page
from mnms_jax.live_report import EVERY_SECONDS, LiveReport
from mnms_jax.types import UserError


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still; drawing takes what `clock.drawing` says."""

    class Clock:
        now, drawing, drawn = 1000.0, 0.1, 0

    def draw(*arguments):
        Clock.drawn += 1
        Clock.now += Clock.drawing
        return write_live_page(*arguments)

    monkeypatch.setattr(live_report, "write_live_page", draw)
    standing = types.SimpleNamespace(monotonic=lambda: Clock.now, strftime=time.strftime)
    monkeypatch.setattr(live_report, "time", standing)
    return Clock


def test_it_is_drawn_now_and_then_and_whole_at_the_end(tmp_path, clock):
    path = write_search(tmp_path / "run", tasks=("t",), num_trials=12)
    page = path / "report" / "report.html"
    with LiveReport(path) as report:
        report.refresh()
        text = page.read_text()
        assert f'<body data-reload="{EVERY_SECONDS}" data-made="' in text
        assert "The search is going on" in text and "Best child of each task" in text
        assert [file.name for file in page.parent.iterdir()] == ["report.html"]
        report.refresh()
        clock.now += EVERY_SECONDS - 0.01
        report.refresh()
        assert clock.drawn == 1
        clock.now += 0.01
        report.refresh()
        assert clock.drawn == 2
        # However long a drawing takes, it takes 2 % of the time at most.
        clock.now, clock.drawing = clock.now + EVERY_SECONDS, 10.0
        report.refresh()
        clock.now += 499
        report.refresh()
        assert clock.drawn == 3
        clock.now += 1
        report.refresh()
        assert clock.drawn == 4
    text = page.read_text()
    assert "data-reload" not in text.split("<script>")[0] and "going on" not in text
    assert (page.parent / "importance.png").exists()


def test_a_search_that_is_stopped_leaves_a_page_that_does_not_reload(tmp_path):
    path = write_search(tmp_path / "run", tasks=("t",), num_trials=3)
    with pytest.raises(KeyboardInterrupt), LiveReport(path) as report:
        report.refresh()
        raise KeyboardInterrupt
    text = (path / "report" / "report.html").read_text()
    assert "data-reload" not in text.split("<script>")[0]
    assert "The search was stopped before its end" in text
    # One that was over before its first round has none.
    empty = tmp_path / "empty"
    with pytest.raises(UserError), LiveReport(empty):
        raise UserError("a mistake")
    assert not empty.exists()


def test_what_is_in_the_way_of_drawing_is_told_once_and_the_search_goes_on(tmp_path, caplog, clock):
    path = write_search(tmp_path / "run", tasks=("t",), num_trials=3)
    (path / "report").write_text("a file where the folder should be")
    with caplog.at_level("WARNING", "absl"), LiveReport(path) as report:
        report.refresh()
        clock.now += EVERY_SECONDS
        report.refresh()
    assert len(caplog.records) == 1
    assert "the report can't be drawn" in caplog.text and "File exists" in caplog.text


def test_a_damaged_file_leaves_the_page_before(tmp_path, caplog):
    path = write_search(tmp_path / "run", tasks=("t",), num_trials=3)
    page = write_live_page(path, "a note", 30.0)
    before = page.read_bytes()
    (path / "summary.json").write_text("{")
    with caplog.at_level("WARNING", "absl"), LiveReport(path) as report:
        report.refresh()
    assert page.read_bytes() == before and "summary.json is no JSON file" in caplog.text
    assert not list(page.parent.glob(".*"))


@pytest.mark.parametrize("module", ["plotly.offline", "matplotlib"])
def test_without_the_libraries_it_says_so_first(tmp_path, monkeypatch, module):
    monkeypatch.setitem(importlib.import_module("sys").modules, module, None)
    with pytest.raises(UserError, match=r"pip install 'mnms_jax\[report\]'"):
        LiveReport(tmp_path)


def test_a_browser_reloads_it_while_the_search_is_going_on_and_not_afterwards(tmp_path):
    path = write_search(tmp_path / "run", tasks=("t",), num_trials=3)
    later = "new Promise(done => setTimeout(() => done(document.body.textContent), 2500))"
    with Browser() as browser:
        browser.open(write_live_page(path, "before", 2.0))
        write_live_page(path, "after", 0.0)
        browser.wait_for_load()
        assert "after" in browser.evaluate("document.body.textContent")
        write_live_page(path, "too late", 0.0)
        assert "too late" not in browser.evaluate(later)
        assert browser.errors == []
