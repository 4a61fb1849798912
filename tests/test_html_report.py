"""Reports of a tiny real search and of one whose names are code, looked at by a real browser."""

import csv
import importlib
import json

import numpy as np
import pytest
from browser import Browser
from commands import command, run

from mnms_jax.analysis import (
    choice_shares,
    cosine_similarities,
    decision_importance,
    principal_plane,
)
from mnms_jax.drawing import draw, outline
from mnms_jax.history import best_so_far, read_history, tried_choices
from mnms_jax.html_report import write_report
from mnms_jax.store import TrialRecord
from mnms_jax.types import UserError

NASTY = "<script>alert(1)</script>"
TASKS = (NASTY, 'b & "c"$</script><!--')
WHY = "diverged </script><img src=x onerror=alert(2)> https://example.com/x.png"


def make_record(task, trial, rng):
    decisions = {"a": int(rng.integers(3)), "b": bool(rng.integers(2)), "wide": 0.1}
    if decisions["b"]:
        decisions["c"] = ["x", NASTY][int(rng.integers(2))]
    failed = WHY if trial % 7 == 6 else None
    reward = None if failed else 0.5 + 0.1 * decisions["a"] + 0.01 * float(rng.random())
    return TrialRecord(task, trial, decisions, reward, failed, 1.5, 128, NASTY, trial // 5)


def write_search(path, num_trials=30, tasks=TASKS, random=True):
    """Writes a search whose rewards depend on decision a alone."""
    rng = np.random.default_rng(0)
    for folder in (path, path / "random") if random else (path,):
        folder.mkdir(parents=True)
        records = [make_record(task, n, rng) for n in range(num_trials) for task in tasks]
        lines = [json.dumps(record._asdict()) + "\n" for record in records]
        (folder / "trials.jsonl").write_text("".join(lines))
    (path / "config.json").write_text(json.dumps({"tasks": tasks, "learner": "ppo"}))
    rows = [{"round": n + 1, "learner/policy_entropy": 3.0 - 0.1 * n} for n in range(6)]
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"round": 2, "time/programs": 4}])
    (path / "rounds.jsonl").write_text(text + '{"round": 7, "tor')
    return path


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


@pytest.fixture(scope="module")
def nasty(tmp_path_factory):
    return write_report([write_search(tmp_path_factory.mktemp("nasty") / "run")])


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A search on two small tasks, and what the command says."""
    workdir = tmp_path_factory.mktemp("real") / "search"
    flags = ("--num_trials=3", "--round_size=2", "--noreward_model", "--nocompare_random")
    flags += ("--live_report", "--track=")
    done = run(*command("multitask", "--tasks=iris,wine", f"--workdir={workdir}", *flags))
    assert done.returncode == 0, done.stderr
    page = workdir / "report" / "report.html"
    assert f"{page} is drawn from the first round on" in done.stderr
    assert "<td>gradient boosting</td>" in page.read_text()
    page.unlink()
    return workdir, run(*command("report", f"--workdir={workdir}"))


def test_the_command_reports_a_real_search(real):
    workdir, done = real
    assert done.returncode == 0, done.stderr
    assert not (workdir / "tensorboard").exists() and (workdir / "rounds.jsonl").exists()
    assert done.stdout == f"written to {workdir}/report/report.html\n"
    page = (workdir / "report" / "report.html").read_text()
    for task, found in json.loads((workdir / "summary.json").read_text())["tasks"].items():
        best = found["finalists"][0]
        for share in (best["validation"], best["test"], found["reference"]["test"]):
            assert f"<td>{share:.4f}</td>" in page
        assert f"load_child(&quot;{workdir}/best/{task}&quot;)" in page
        rows = rows_of(workdir / "report" / "rewards.csv")
        steps = [row for row in rows if row[:3] == [task, "ppo", "steps"]]
        assert len(steps) == 3 and float(steps[-1][4]) == best["validation"]
    assert page.count('<svg class="drawing"') == 2 and "13 columns" in page
    names = {path.stem for path in (workdir / "report").glob("*.png")}
    assert names == {path.stem for path in (workdir / "report").glob("*.csv")}
    assert names == {
        *("rewards", "choices", "parallel", "embeddings", "similarity", "rounds", "seconds")
    }
    for path in (workdir / "report").glob("*.png"):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_choices_are_told_as_the_log_and_the_controller_have_them(real):
    workdir, _ = real
    rows = rows_of(workdir / "report" / "choices.csv")[1:]
    shares = {(task, row, column): float(value) for task, row, column, value in rows}
    records = read_history(workdir).records
    for task in ("iris", "wine"):
        own = [r.decisions["optimizer"] for r in records if r.task == task and r.round == 1]
        for name in ("sgd", "adam", "adagrad"):
            number = [r.trial for r in records if r.task == task and r.round == 1]
            column = f"{number[0]}-{number[-1]}"
            assert shares[task, f"optimizer: {name}", column] == own.count(name) / len(own)
        controller = {
            row: share
            for (its_task, row, column), share in shares.items()
            if (its_task, column) == (task, "controller")
        }
        assert all(0 <= share <= 1 for share in controller.values())
        # It is active in every design.
        assert sum(v for row, v in controller.items() if row.startswith("optimizer: ")) == 1
    cosines = {tuple(row[1:3]): row[3] for row in rows_of(workdir / "report" / "similarity.csv")}
    assert float(cosines["iris", "iris"]) == pytest.approx(1)
    assert cosines["iris", "wine"] == cosines["wine", "iris"]


def test_names_are_escaped_everywhere(nasty):
    page = nasty.read_text()
    library = importlib.import_module("plotly.offline").get_plotlyjs()
    own = page.replace(library, "")
    assert NASTY not in own and "<img" not in own and "<!--" not in own
    assert own.count("<script") == own.count("</script>")
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in own
    assert own.count('type="application/json"') == own.count('class="chart"') > 5


def test_a_browser_shows_it_without_network_errors_or_foreign_code(nasty):
    with Browser() as browser:
        browser.open(nasty, width=390)
        texts = browser.evaluate("[...document.querySelectorAll('h3')].map(h => h.textContent)")
        assert texts[:2] == list(TASKS)
        assert WHY in browser.evaluate("document.querySelector('section:last-of-type').textContent")
        assert (
            browser.evaluate("document.querySelectorAll('img, section script:not([type])').length")
            == 0
        )
        charts = browser.evaluate("document.querySelectorAll('figure.chart').length")
        drawn = "document.querySelectorAll('figure.chart .main-svg:first-child').length"
        assert browser.evaluate(drawn) == charts
        # Titles are shown as they are, and a phone needs no scrolling to the side.
        titles = browser.evaluate(
            "[...document.querySelectorAll('.gtitle')].map(t => t.textContent)"
        )
        assert set(TASKS) <= set(titles)
        assert browser.evaluate("document.documentElement.scrollWidth") == 390
        light = browser.evaluate("getComputedStyle(document.querySelector('.xtick text')).fill")
        dark = {"name": "prefers-color-scheme", "value": "dark"}
        browser.send("Emulation.setEmulatedMedia", features=[dark])
        later = "new Promise(done => setTimeout(() => done(getComputedStyle("
        later += "document.querySelector('.xtick text')).fill), 300))"
        assert browser.evaluate(later) != light
        assert browser.errors == []
        assert {address.partition(":")[0] for address in browser.requests} <= {"file", "data"}


def test_tables_sort_by_number_or_name_and_back(nasty):
    column = """(n => {
      const table = document.querySelector('table');
      if (n >= 0) table.querySelectorAll('th')[n].click();
      return [...table.tBodies[0].rows].map(row => row.cells[Math.max(n, 0)].textContent);
    })"""
    with Browser() as browser:
        browser.open(nasty)
        accuracies = browser.evaluate(f"{column}(3)")
        assert accuracies == sorted(accuracies, key=float) and len(set(accuracies)) > 1
        assert browser.evaluate(f"{column}(3)") == accuracies[::-1]
        names = browser.evaluate(f"{column}(1)")
        assert names == ["ppo search"] * 2 + ["random search"] * 2
        sorts = "document.querySelectorAll('th[aria-sort]').length"
        assert browser.evaluate(sorts) == 1


def test_several_searches_are_compared(tmp_path):
    first = write_search(tmp_path / "first", tasks=("t",), num_trials=7, random=False)
    second = write_search(tmp_path / "more" / "first", tasks=("t",), num_trials=12)
    page = write_report([first, second])
    assert page == first / "comparison" / "report.html"
    rows = rows_of(page.parent / "runs.csv")[1:]
    by_name = {name: [row for row in rows if row[1] == name] for name in (str(first), str(second))}
    assert [len(own) for own in by_name.values()] == [7, 12]
    text = page.read_text()
    assert text.count(f"<td>{second}</td>") == 4  # ppo, random, its name and folder
    assert write_report([first], tmp_path / "other") == tmp_path / "other" / "report.html"


def test_searches_of_different_rewards_share_no_axis(tmp_path):
    paths = [write_search(tmp_path / name, tasks=("t",), num_trials=7) for name in ("a", "b", "c")]
    for path, reward in zip(paths, ("accuracy", "auroc", "auroc"), strict=True):
        (path / "config.json").write_text(json.dumps({"tasks": ["t"], "reward": reward}))
    page = write_report(paths, tmp_path / "out")
    found = {tuple(row[:2]) for row in rows_of(page.parent / "runs.csv")[1:]}
    assert found == {("t: accuracy (a)", "a"), ("t: auroc", "b"), ("t: auroc", "c")}
    text = page.read_text()
    assert "<td>b</td><td>auroc</td><td>t</td>" in text and "Different rewards" in text
    alike = write_report(paths[1:], tmp_path / "alike")
    assert {row[0] for row in rows_of(alike.parent / "runs.csv")[1:]} == {"t"}
    text = alike.read_text()
    assert "Different rewards" not in text and '"best auroc"' in text


def test_a_search_that_has_just_begun_can_be_looked_at(tmp_path):
    path = write_search(tmp_path / "run", num_trials=0)
    assert "No child has been trained" in write_report([path]).read_text()
    lines = [json.dumps(make_record(TASKS[0], 6, np.random.default_rng(0))._asdict())]
    (path / "trials.jsonl").write_text("\n".join(lines) + '\n{"task": "torn')
    assert write_report([path]).exists()


def test_mistakes_are_told_in_one_line(tmp_path, monkeypatch):
    inside = write_search(tmp_path / "schedule" / "phase_1")
    with pytest.raises(UserError, match=r"holds no trials.jsonl; there are searches in .*phase_1"):
        write_report([inside.parent])
    with pytest.raises(UserError, match="each once"):
        write_report([inside, inside])
    output = inside / "trials.jsonl" / "report"
    with pytest.raises(UserError, match=rf"^--output {output} can't be written: Not a directory"):
        write_report([inside], output)
    (inside / "summary.json").write_text("{")
    with pytest.raises(UserError, match=r"summary\.json is no JSON file of a search"):
        write_report([inside])
    for module, what in (("matplotlib", "figures need"), ("plotly.offline", "the report needs")):
        with monkeypatch.context() as patch:
            patch.setitem(importlib.import_module("sys").modules, module, None)
            with pytest.raises(UserError, match=what + r".*pip install 'mnms_jax\[report\]'"):
                write_report([inside])


def test_importance_finds_the_decision_that_rewards_depend_on(tmp_path):
    history = read_history(write_search(tmp_path / "run", num_trials=60))
    records = [record for record in history.records if record.task == TASKS[0]]
    choices = tried_choices(history.records)
    assert list(choices) == ["a", "b", "wide", "c"]
    assert choices["a"] == (0, 1, 2) and choices["c"] == (NASTY, "x")
    found = decision_importance(records, choices)
    assert found.means.argmax() == 0 and found.means[0] > 10 * np.abs(found.means[1:]).max()
    assert found.explained > 0.9
    same = [record._replace(reward=0.5) for record in records]
    assert decision_importance(same, choices) is None
    assert decision_importance(records[:9], choices) is None


def test_shares_are_of_rounds_and_leave_room_for_what_is_not_active():
    designs = [{"a": 1}, {"a": True}, {"a": 1, "b": "x"}, {"a": 1, "b": "x"}]
    records = [
        TrialRecord("t", n, design, 0.5, None, 1.0, 1, "p", n // 2)
        for n, design in enumerate(designs)
    ]
    labels, shares = choice_shares(records, {"a": (1, True), "b": ("x",)})
    assert labels == ["0-1", "2-3"]
    assert shares["a"].tolist() == [[0.5, 1.0], [0.5, 0.0]]
    assert shares["b"].tolist() == [[0.0, 1.0]]
    many = [records[0]._replace(trial=n, round=n) for n in range(100)]
    labels, shares = choice_shares(many, {"a": (1,)})
    assert labels[:2] == ["0-2", "3-5"] and labels[-1] == "99-99"
    assert shares["a"].shape == (1, 34)


def test_best_so_far_waits_for_a_success():
    records = [TrialRecord("t", n, {}, r, None, 1.0, 1, "p", 0) for n, r in enumerate((None, 0.2))]
    assert np.array_equal(best_so_far(records), [np.nan, 0.2], equal_nan=True)


def test_embeddings_are_projected_as_by_hand():
    vectors = np.array([[2.0, 0, 0], [-2, 0, 0], [0, 1, 0], [0, -1, 0]])
    plane, share = principal_plane(vectors)
    np.testing.assert_allclose(np.abs(plane), [[2, 0], [2, 0], [0, 1], [0, 1]], atol=1e-12)
    assert share == pytest.approx(1)
    _, share = principal_plane(np.eye(3) * [[3], [3], [3]])
    assert share == pytest.approx(1)  # three points lie in a plane
    assert principal_plane(np.ones((2, 4)))[1] == 1
    cosines = cosine_similarities(np.array([[1.0, 0], [3, 3], [0, 0]]))
    half = np.sqrt(0.5)
    np.testing.assert_allclose(cosines, [[1, half, 0], [half, 1, 0], [0, 0, 0]], atol=1e-12)


IMAGE = {
    "kind": "image",
    "side": 8,
    "class_names": ["0", "1", "2"],
    "architecture": {},
    "decisions": {
        **{"blocks": 2, "filters": 8, "kernel_size": 3, "pooling": "max", "skip": True},
        **{"conv_activation": "relu", "conv_batch_norm": False, "readout": "mean"},
        **{"hidden_layers": 1, "hidden_size": 64, "hidden_activation": "tanh"},
        **{"normalization": "none", "hidden_dropout": 0.2},
    },
}
CELLS = {
    **IMAGE,
    "architecture": {"cells": 1, "filters": 8},
    "decisions": {
        f"{kind}{block}_{what}{side}": choice
        for kind in ("normal", "reduction")
        for block in range(3)
        for what, choice in (("input", "last"), ("operation", "sep3"))
        for side in (0, 1)
    },
}
TEXT = {
    "class_names": ["a", "b"],
    "architecture": {
        **{"hashed": False, "rows": 10, "trained": False, "conv_widths": [2, 3]},
        **{"conv_filters": 16, "ngrams": 32},
    },
    "decisions": {"embedding": NASTY, "lowercase": True, "conv_activation": "relu"},
}
RECORD = {
    "kind": "record",
    "class_names": ["a", "b"],
    "numbers": ["x"],
    "categories": [["y", ["u", "v"]]],
    "architecture": {"linear": True},
    "decisions": {**IMAGE["decisions"], "scaling": "normal"},
}


def test_each_kind_of_child_is_drawn():
    image = outline(IMAGE)
    titles = [box.title for box in image.towers[0]]
    assert titles == [
        "8 x 8 pixels",
        "conv 3 x 3, 8 filters",
        "conv 3 x 3, 16 filters",
        "mean over positions",
        "dense 64",
        "linear",
    ]
    assert image.towers[0][4].detail == "tanh, no norm, drop 0.2"
    assert image.end == ("softmax", "3 classes")
    in_cells = outline(CELLS)
    assert [box.title for box in in_cells.towers[0]] == [
        *("8 x 8 pixels", "conv 3 x 3", "normal cell", "reduction cell", "normal cell"),
        *("reduction cell", "normal cell", "mean over positions", "linear"),
    ]
    assert [box.detail for box in in_cells.towers[0][2:5]] == [
        *("8 filters", "16 filters", "16 filters"),
    ]
    assert [inset[0].title for inset in in_cells.insets] == [
        *("within a normal cell", "within a reduction cell"),
    ]
    assert in_cells.insets[0][1] == ("block0 = sep3 + sep3", "of last and last")
    assert draw(in_cells).count("<rect") == 9 + 1 + 2 * 4
    deep, wide = outline(TEXT).towers
    assert [box.title for box in deep] == ["words", NASTY, "mean, and max of conv 2+3", "linear"]
    assert deep[1].detail == "10 rows, frozen" and wide[0].detail == "32 hashed"
    record = outline(RECORD)
    assert [len(tower) for tower in record.towers] == [3, 2] and record.end.title == "sum, softmax"
    svg = draw(outline(TEXT))
    assert "<script" not in svg and "&lt;script&gt;" in svg
    assert svg.count("<rect") == 4 + 2 + 1
