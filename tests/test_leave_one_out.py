"""The whole comparison on toy rewards: what is shared, what is kept apart, and what is written."""

import csv
import html
import importlib
import json
import pathlib
import random
import zlib

import jax
import numpy as np
import pytest
from test_tabular import BENCHMARK
from tfds_data import write_imdb, write_sst2
from toy import SPACE

from mnms_jax.bench import make_bench
from mnms_jax.config import Config
from mnms_jax.figures import write_page
from mnms_jax.html_report import write_report
from mnms_jax.leave_one_out import (
    read_comparison,
    run_leave_one_out,
    run_text_leave_one_out,
    table_objective,
)
from mnms_jax.lockstep import LeaveOneOutSetup, leave_out
from mnms_jax.methods import Method, make_methods
from mnms_jax.sources import bank_of_records
from mnms_jax.store import TrialRecord
from mnms_jax.training.fit import Request, TrialResult
from mnms_jax.types import UserError

pytestmark = pytest.mark.usefixtures("quick_compiler")

TASKS = ("one", "<script>alert(1)</script>", "three$")
RANDOM, TPE, PORTFOLIO = make_methods(["random", "tpe", "portfolio"])
COLD = TPE._replace(name="cold")  # the real one takes long to compile
TRANSFER = PORTFOLIO._replace(name="transfer")
METHODS = (RANDOM, COLD, TRANSFER, PORTFOLIO)
BUDGET, PER_ROUND = 11, 2  # the last round is cut short


class KilledError(Exception):
    """In place of a signal."""


class Toy:
    """Rewards from a hash of all that a child depends on; every fifth fails."""

    def __init__(self, most=10**9):
        self.left = most
        self.rounds = []  # requests that were trained together

    def __call__(self, seed):
        def evaluate(requests):
            self.rounds.append([(seed, *request[:4]) for request in requests])
            order = list(enumerate(requests))
            random.shuffle(order)  # who is done first is nobody's to know
            for index, request in order:
                if not self.left:
                    raise KilledError
                self.left -= 1
                yield index, result_of(seed, request)

        return evaluate


def result_of(seed, request):
    text = json.dumps([seed, request.task_name, request.trial, dict(request.design)])
    value = zlib.crc32(text.encode()) % 1000
    failed = "diverged" if value % 5 == 0 else None
    return TrialResult(None if failed else value / 1000, failed, 0.1, 128, "toy")


def make_setup(objective, methods=METHODS, **kwargs):
    values = {"seeds": (0, 1), "num_trials": BUDGET, "trials_per_round": PER_ROUND, **kwargs}
    return LeaveOneOutSetup(SPACE, TASKS, methods, objective, **values)


def read(workdir):
    """Returns the trials by seed, method, task and number."""
    found = {}
    for path in workdir.glob("seed_*/*/trials.jsonl"):
        for line in path.read_text().splitlines():
            record = TrialRecord(**json.loads(line))
            key = (path.parent.parent.name, path.parent.name, record.task, record.trial)
            assert key not in found
            found[key] = record
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("whole")
    toy = Toy()
    comparison = run_leave_one_out(make_setup(toy), workdir, contenders=["transfer"])
    return workdir, toy, comparison


def test_every_method_has_its_budget_on_every_task_and_seed(finished):
    trials = read(finished[0])
    assert set(trials) == {
        (f"seed_{seed}", method.name, task, trial)
        for seed in (0, 1)
        for method in METHODS
        for task in TASKS
        for trial in range(BUDGET)
    }
    # A design's first trial says what it earns; later ones of the same method cost nothing.
    first = {}
    for (seed, method, task, trial), record in sorted(trials.items()):
        where = (seed, method, task, json.dumps(record.decisions))
        known = first.setdefault(where, trial)
        request = Request(0, task, known, record.decisions)
        expected = result_of(int(seed[5:]), request)
        assert (record.reward, record.failed) == (expected.reward, expected.failed)
        assert (record.bucket, record.samples) == (("toy", 128) if known == trial else ("log", 0))
    assert len(first) < len(trials)


def test_all_searches_children_are_trained_together_and_shared(finished):
    toy, trials = finished[1], read(finished[0])
    rounds = -(-BUDGET // PER_ROUND)
    assert len(toy.rounds) == 2 * 2 * rounds  # seeds, phases
    # Random and cold on three tasks, two trials each, at most.
    assert 6 < len(toy.rounds[0]) <= 12
    for requests in toy.rounds:
        assert len({json.dumps(request) for request in requests}) == len(requests)
        assert {TASKS[task_id] for _, task_id, *_ in requests} >= {r[2] for r in requests}
    # Transfer and the portfolio are the same here, and cost as much as one.
    second = [r for group in toy.rounds[rounds : 2 * rounds] for r in group]
    fresh = [k for k, r in trials.items() if k[:2] == ("seed_0", "transfer") and r.bucket != "log"]
    assert len(second) == len(fresh)


def test_the_held_out_task_is_never_among_the_sources(finished, tmp_path):
    seen = []

    def make(space, sources, trials_per_round, key):
        seen.append(sources)
        return PORTFOLIO.make(space, sources, trials_per_round, key)

    spy = Method("transfer", make, uses_sources=True)
    setup = make_setup(Toy(), (RANDOM, COLD, spy), seeds=(1,))
    run_leave_one_out(setup, tmp_path, contenders=["transfer"])
    trials = read(tmp_path)
    assert len(seen) == len(TASKS)
    for held_out, sources in zip(TASKS, seen, strict=True):
        others = [task for task in TASKS if task != held_out]
        assert sources.trials.size.tolist() == [2 * BUDGET] * 2
        for row, task in enumerate(others):
            records = [
                trials["seed_1", method, task, trial]
                for method in ("random", "cold")
                for trial in range(BUDGET)
            ]
            designs = [SPACE.encode(r.decisions).tolist() for r in records]
            assert sources.trials.actions[row].tolist() == designs
            rewards = np.array([np.nan if r.reward is None else r.reward for r in records])
            np.testing.assert_allclose(sources.trials.rewards[row], rewards, rtol=1e-6)


def test_methods_are_told_how_alike_the_held_out_task_is_to_its_sources(tmp_path):
    seen = []

    def make(space, sources, trials_per_round, key):
        seen.append(sources.similarity.tolist())
        return PORTFOLIO.make(space, sources, trials_per_round, key)

    spy = Method("spy", make, uses_sources=True, uses_similarity=True)
    similarity = np.array([[0, -1, -2], [-1, 0, -3], [-2, -3, 0]])
    setup = make_setup(Toy(), (RANDOM, COLD, spy), seeds=(1,), similarity=similarity)
    run_leave_one_out(setup, tmp_path, contenders=[])
    assert seen == [[-1, -2], [-1, -3], [-2, -3]]
    with pytest.raises(UserError, match="method 'spy' needs to know how alike the tasks are"):
        run_leave_one_out(setup._replace(similarity=None), tmp_path / "other", contenders=[])


def test_changing_the_held_out_tasks_rewards_changes_no_source():
    def records(reward):
        own = [TrialRecord("a", 0, {"a": 1}, 0.5, None, 0, 0, "", 0)]
        return [*own, own[0]._replace(task="b", reward=reward)]

    low, high = (leave_out(bank_of_records(SPACE, ("a", "b"), records(r)), 1) for r in (0.1, None))
    assert all(np.array_equal(x, y) for x, y in zip(low, high, strict=True))
    assert low.rewards.tolist() == [[0.5]] and low.actions.tolist() == [[[0, 0, 0]]]
    other = leave_out(bank_of_records(SPACE, ("a", "b"), records(None)), 0)
    assert np.isnan(other.rewards).tolist() == [[True]] and other.size.tolist() == [1]


@pytest.mark.parametrize("most", [0, 25, 80])
def test_killed_and_started_again_it_ends_with_the_same_trials(tmp_path, finished, most):
    with pytest.raises(KilledError):
        run_leave_one_out(make_setup(Toy(most)), tmp_path, contenders=["transfer"])
    for path in tmp_path.glob("seed_*/*/trials.jsonl"):
        content = path.read_text()
        if content.count("\n") < BUDGET * len(TASKS):
            path.write_text(content + '{"task": "one", "tri')  # a torn line
    toy = Toy()
    run_leave_one_out(make_setup(toy), tmp_path, contenders=["transfer"])
    assert read(tmp_path) == read(finished[0])
    children = sum(map(len, finished[1].rounds))
    assert sum(map(len, toy.rounds)) == children - most
    for name in ("leave_one_out.csv", "differences.csv", "means.csv", "trials_to_threshold.csv"):
        assert (tmp_path / name).read_bytes() == (finished[0] / name).read_bytes()


def test_started_again_it_trains_nothing_and_another_comparison_is_refused(finished):
    toy = Toy()
    again = run_leave_one_out(make_setup(toy), finished[0], contenders=["transfer"])
    assert not toy.rounds and again.results == finished[2].results
    with pytest.raises(UserError, match="num_trials: 11 there, 12 now"):
        run_leave_one_out(make_setup(toy, num_trials=12), finished[0], contenders=[])
    assert read(finished[0])


def test_methods_and_seeds_may_be_added(finished, tmp_path):
    run_leave_one_out(make_setup(Toy(), METHODS[:3], seeds=(1,)), tmp_path, contenders=[])
    before = {path: path.read_bytes() for path in tmp_path.glob("seed_*/*/*.jsonl")}
    run_leave_one_out(make_setup(Toy()), tmp_path, contenders=["transfer"])
    assert all(path.read_bytes() == content for path, content in before.items())
    assert read(tmp_path) == read(finished[0])


def test_the_csv_has_the_columns_and_rows_that_it_should(finished):
    with (finished[0] / "leave_one_out.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == "task,method,seed,trials,best_reward,trials_to_threshold,censored".split(",")
    assert len(rows) == 1 + len(TASKS) * len(METHODS) * 2 * 1
    trials = read(finished[0])
    for task, method, seed, number, best, *_ in rows[1:]:
        known = [trials[f"seed_{seed}", method, task, n].reward for n in range(int(number))]
        assert float(best) == max(r for r in known if r is not None)


def test_the_page_holds_everything_and_escapes_names(finished, tmp_path):
    page = (finished[0] / "leave_one_out.html").read_text()
    assert "<script" not in page and "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert page.count("data:image/png;base64,iVBOR") == 2
    assert "://" not in page  # nothing from elsewhere
    for name in ("best_so_far.png", "differences.png"):
        assert (finished[0] / name).read_bytes().startswith(b"\x89PNG")
    row = next(r for r in finished[2].differences if r.task == TASKS[0])
    assert f"<td>{row.mean:.4f}".rstrip("0") in page
    # Without contenders there is nothing to draw differences of.
    write_page(tmp_path, finished[2]._replace(differences=()))
    assert not (tmp_path / "differences.png").exists()


def test_the_console_shows_the_table(capsys, finished):
    run_leave_one_out(make_setup(Toy()), finished[0], contenders=["transfer"])
    shown = capsys.readouterr().out
    for word in (
        "regret at 10",
        "censored",
        "regret saved",
        "transfer",
        "of 6",
        "leave_one_out.csv",
    ):
        assert word in shown
    mean = next(r for r in finished[2].means if r[1:3] == ("portfolio", "regret"))
    assert f"{mean.mean:.3f} ± " in shown


@pytest.mark.parametrize(
    ("methods", "kwargs", "message"),
    [
        (METHODS, {"task_names": ("one",)}, "at least two tasks"),
        (METHODS, {"seeds": (1, 1)}, "seeds 1, 1: name at least one, each once"),
        (METHODS, {"num_trials": 0}, "0 trials: must be at least 1"),
        (METHODS[1:], {}, "add the method random"),
        ((RANDOM, TRANSFER), {}, "add the method cold"),
        ((TPE,), {}, "method 'transfer' isn't among those to run; known: tpe"),
    ],
)
def test_mistakes_are_told_before_anything_runs(tmp_path, methods, kwargs, message):
    setup = make_setup(Toy(), methods)._replace(**kwargs)
    with pytest.raises(UserError, match=message):
        run_leave_one_out(setup, tmp_path / "w", contenders=["transfer"])
    assert not (tmp_path / "w").exists()


def test_without_matplotlib_it_says_so_first(tmp_path, monkeypatch):
    monkeypatch.setitem(importlib.import_module("sys").modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'mnms_jax\[report\]'"):
        run_leave_one_out(make_setup(Toy()), tmp_path / "w", contenders=[])
    assert not (tmp_path / "w").exists()


def test_the_same_harness_runs_on_a_table(tmp_path):
    setup = LeaveOneOutSetup(
        BENCHMARK.space,
        BENCHMARK.task_names,
        (RANDOM, COLD, TRANSFER),
        table_objective(BENCHMARK),
        (0,),
        num_trials=6,
    )
    run_leave_one_out(setup, tmp_path, contenders=["transfer"])
    cells = [BENCHMARK.table.rewards[t][BENCHMARK.table.rows] for t in range(2)]
    for (_, _, task, _), record in read(tmp_path).items():
        t, cell = BENCHMARK.task_names.index(task), BENCHMARK.space.encode(record.decisions)
        rewards = cells[t][cell @ BENCHMARK.table.strides]
        assert record.failed if record.reward is None else np.float32(record.reward) in rewards


def test_text_children_are_those_of_their_seed(tmp_path):
    write_sst2(tmp_path, num_rows=60)
    write_imdb(tmp_path, num_rows=60)
    config = Config(
        tasks=("sst2", "imdb"), data_dir=str(tmp_path), workdir=str(tmp_path / "w"), num_trials=1
    )
    methods = (RANDOM, RANDOM._replace(name="cold"))
    run_text_leave_one_out(config, methods, seeds=(3,), contenders=["cold"], trials_per_round=1)
    trials = read(pathlib.Path(config.workdir))
    assert len(trials) == 4
    trainer = make_bench(Config(**{**config.__dict__, "seed": 3})).trainer
    record = trials["seed_3", "random", "imdb", 0]
    found = dict(trainer.train([Request(1, "imdb", 0, record.decisions)]))
    assert (found[0].reward, found[0].failed) == (record.reward, record.failed)
    jax.clear_caches()


def test_the_report_shows_the_same_comparison(finished, tmp_path):
    report = write_report([finished[0]], tmp_path)
    text = report.read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and TASKS[1] not in text
    row = next(r for r in finished[2].differences if r.task == TASKS[0])
    assert f"<td>{row.mean:.4f}".rstrip("0") in text
    with (tmp_path / "best_so_far.csv").open(newline="") as file:
        rows = [row for row in csv.reader(file) if row[0] == "one" and row[1] == "transfer"]
    best = finished[2].best[TASKS.index("one"), 2].mean(axis=0)
    assert [float(row[4]) for row in rows] == pytest.approx(best.tolist())
    assert all(float(low) <= float(mean) <= float(high) for *_, mean, low, high in rows)
    assert "What is shown" not in text
    config = json.loads((finished[0] / "config.json").read_text())
    assert config["contenders"] == ["transfer"] and config["threshold_trials"] == 200


@pytest.mark.parametrize(
    ("rounds", "more", "methods", "trials"),
    # A seed has twelve rounds, the first six of random and cold search. Two more of a round's six
    # children, whichever, make none of its trials whole: a trial has three.
    [(2, 0, "(random, cold)", 4), (8, 2, "cold, transfer, portfolio", 4), (20, 2, "", 11)],
)
def test_the_report_of_one_that_is_going_on_shows_what_there_is(
    tmp_path, finished, rounds, more, methods, trials
):
    workdir = tmp_path / "w"
    most = sum(map(len, finished[1].rounds[:rounds])) + more
    with pytest.raises(KilledError):
        run_leave_one_out(
            make_setup(Toy(most)), workdir, contenders=["transfer"], identity={"reward": "a*b"}
        )
    comparison, note = read_comparison(workdir)
    assert "1 of 2 seeds, " in note and f" {trials} of 11 trials" in note and methods in note
    own = comparison.trials
    assert own.rewards.shape == (3, len(own.method_names), 1, trials)
    whole = finished[2].trials
    for m, method in enumerate(own.method_names):
        expected = whole.rewards[:, whole.method_names.index(method), :1, :trials]
        np.testing.assert_array_equal(own.rewards[:, m], expected)
    text = write_report([workdir], tmp_path / "out").read_text()
    assert (
        html.escape(note) in text
        and "Rewards are a*b, on validation" in text
        and '"best a*b"' in text
    )
    assert ("Regret saved" in text) == ("transfer" in own.method_names)


def test_one_that_has_just_begun_says_so(tmp_path):
    with pytest.raises(KilledError):
        run_leave_one_out(make_setup(Toy(0)), tmp_path, contenders=[])
    with pytest.raises(UserError, match="has just begun; there is something to show once"):
        write_report([tmp_path])
