import itertools
import json
import math
import time

import pytest
from searching import (
    NAMES,
    TASKS,
    DiedError,
    DyingTrainer,
    Recorder,
    assert_equal,
    dying_family,
    lines,
    search_in,
    setup_of,
)
from toy import make_family, make_trainer

from mnms_jax.journal import rung_accuracies
from mnms_jax.run import make_requests
from mnms_jax.store import TrialRecord
from mnms_jax.types import UserError


@pytest.fixture(scope="module")
def family():
    return dying_family()


@pytest.fixture(scope="module")
def trainer(family):
    return make_trainer(TASKS, family)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, family, trainer):
    path = tmp_path_factory.mktemp("whole")
    return path, *search_in(path, family, trainer)


def test_log_holds_every_trial_once_and_in_order(whole):
    _, state, records, _ = whole
    assert [(r.task, r.trial) for r in records] == [(n, t) for t in range(8) for n in NAMES]
    assert [r.round for r in records] == [t // 3 for t in range(8) for _ in NAMES]
    assert int(state.step) == 2  # the third round is cut short by the budget


def test_repeats_are_answered_from_the_log(whole):
    first = {}
    repeats = 0
    for record in whole[2]:
        key = (record.task, json.dumps(record.decisions))
        if key in first:
            repeats += 1
            assert (record.bucket, record.samples, record.seconds) == ("log", 0, 0.0)
            assert (record.reward, record.failed) == first[key]
        else:
            first[key] = (record.reward, record.failed)
            assert record.bucket != "log" and record.seconds > 0
    assert repeats >= 1


def test_failures_are_logged_with_a_reason_and_the_search_goes_on(whole):
    records = whole[2]
    failed = [r for r in records if r.decisions["deep_learning_rate"] == 1e30]
    assert failed and any(r.reward is not None for r in records)
    assert all((r.reward is None) == (r.failed is not None) for r in records)
    assert any(r.failed and "diverged" in r.failed for r in failed)


def test_progress(whole):
    shown = whole[3]
    assert [p.round for p in shown] == [1, 2, 3]
    assert shown[-1].trials == 16 and shown[-1].num_rounds == 3
    assert shown[-1].seconds_left == 0
    best = max(r.reward for r in whole[2] if r.task == "one" and r.reward is not None)
    assert shown[-1].best_reward["one"] == best
    assert 0 < shown[-1].idle_share < 1
    assert "policy_entropy" in shown[0].scalars


def test_a_round_says_how_far_it_is_before_each_wait(tmp_path, family, trainer, whole):
    recorder = Recorder()
    search_in(tmp_path, family, trainer, recorder)
    trained = [sum(r.round == n and r.bucket != "log" for r in whole[2]) for n in range(3)]
    assert recorder.notes == [
        f"ppo round {n + 1}/3: {done} of {total} children trained"
        for n, total in enumerate(trained)
        for done in range(total)
    ]


@pytest.mark.parametrize("lifetime", [0, 1, 4, 7])
def test_a_search_that_dies_ends_with_the_same_trials(tmp_path, family, trainer, whole, lifetime):
    dying = DyingTrainer(trainer, lifetime)
    with pytest.raises(DiedError):
        search_in(tmp_path, family, dying)
    survivor = DyingTrainer(trainer, 99)
    search_in(tmp_path, family, survivor)
    assert lines(tmp_path) == lines(whole[0])
    trained = len([r for r in whole[2] if r.bucket != "log"])
    # At most what was done but had to wait for an earlier trial of its round is done again.
    assert trained - lifetime <= survivor.trained <= trained


def test_a_search_without_its_checkpoints_is_rebuilt_from_the_log(tmp_path, family, trainer, whole):
    (tmp_path / "trials.jsonl").write_text((whole[0] / "trials.jsonl").read_text())
    dead = DyingTrainer(trainer, 0)  # nothing may be trained
    state, *_ = search_in(tmp_path, family, dead)
    assert_equal(state.params, whole[1].params)


@pytest.mark.parametrize("kept", [0, 1, 7])
def test_a_log_behind_its_checkpoint_is_made_whole(tmp_path, family, trainer, whole, kept):
    search_in(tmp_path, family, trainer)
    text = (tmp_path / "trials.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_text("".join(text[:kept]))
    # The checkpoints of what the log has lost don't come back when it is as long again.
    search_in(tmp_path, family, trainer, num_trials=4)
    steps = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert steps == {1}
    search_in(tmp_path, family, trainer)
    assert lines(tmp_path) == lines(whole[0])


@pytest.mark.filterwarnings("ignore")
def test_a_damaged_newest_checkpoint_changes_nothing(tmp_path, family, trainer, whole):
    search_in(tmp_path, family, trainer, num_trials=6)
    for path in (tmp_path / "checkpoints" / "2").rglob("*"):
        if path.is_file():
            path.write_bytes(b"garbage")
    search_in(tmp_path, family, trainer)
    assert lines(tmp_path) == lines(whole[0])


def test_a_clock_that_jumps_changes_nothing(tmp_path, family, trainer, whole, monkeypatch):
    days = itertools.cycle((0, 400, -400))
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 86400 * next(days))
    search_in(tmp_path, family, trainer, num_trials=4, deadline=time.monotonic() + 600)
    search_in(tmp_path, family, trainer)
    assert lines(tmp_path) == lines(whole[0])


def test_a_larger_budget_goes_on_as_if_it_had_been_so_at_once(tmp_path, family, trainer, whole):
    search_in(tmp_path, family, trainer, num_trials=4)
    search_in(tmp_path, family, trainer, num_trials=8)
    assert lines(tmp_path) == lines(whole[0])


def test_a_deadline_in_the_past_begins_no_round(tmp_path, family, trainer):
    _, records, _ = search_in(tmp_path, family, trainer, deadline=0.0)
    assert records == []


def test_a_log_of_another_search_is_refused(tmp_path, family, trainer, whole):
    text = (whole[0] / "trials.jsonl").read_text().splitlines()
    row = json.loads(text[0])
    row["decisions"]["lowercase"] = not row["decisions"]["lowercase"]
    (tmp_path / "trials.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match="trial 0 of one in the log has another design"):
        search_in(tmp_path, family, trainer)


def test_a_log_with_a_hole_is_refused(tmp_path, family, trainer, whole):
    text = (whole[0] / "trials.jsonl").read_text().splitlines()
    (tmp_path / "trials.jsonl").write_text("\n".join([text[0], *text[2:4]]) + "\n")
    with pytest.raises(UserError, match="lacks a trial"):
        search_in(tmp_path, family, trainer)


def test_requests_number_trials_by_round(family):
    setup, state = setup_of(family, None)
    proposal = setup.search.ask(state)
    requests = make_requests(family.space, NAMES, proposal, 2)
    assert [(r.task_id, r.task_name, r.trial) for r in requests] == [
        (i, NAMES[i], t) for t, i in itertools.product((6, 7, 8), (0, 1))
    ]
    for request, actions in zip(requests, proposal.actions, strict=True):
        assert family.space.encode(request.design).tolist() == actions.tolist()


def rung_record(trial, round_index, rungs, samples=128, task="one"):
    return TrialRecord(task, trial, {}, 0.5, None, 1.0, samples, "x", round_index, rungs)


def test_rungs_stop_a_share_of_a_tasks_children():
    accuracies = [0.1 * k for k in range(1, 10)]
    records = [rung_record(k, 0, [a, 1 - a]) for k, a in enumerate(accuracies)]
    needed = rung_accuracies(records, "one", 1, 0.5)
    assert needed == pytest.approx([0.5, 0.5])
    assert rung_accuracies(records, "one", 1, 0.25) == pytest.approx([0.3, 0.3])
    assert rung_accuracies(records, "one", 1, 0.0) == []
    # Neither this round's, nor another task's, nor what was answered from the log counts.
    others = [
        rung_record(10, 1, [0.9, 0.9]),
        rung_record(11, 0, [0.9, 0.9], task="two"),
        rung_record(12, 0, [0.9, 0.9], samples=0),
    ]
    assert rung_accuracies(records + others, "one", 1, 0.5) == needed
    # Of few children none is stopped.
    assert rung_accuracies(records[:7], "one", 1, 0.5) == [-math.inf, -math.inf]
    few = [rung_record(k, 0, [a]) for k, a in enumerate(accuracies)] + records[:3]
    assert rung_accuracies(few, "one", 1, 0.5)[1] == -math.inf


def test_early_stopping_is_the_same_after_an_interruption(tmp_path):
    # Many designs, and a controller that hardly learns: repeats aren't trained, and a rung that few
    # children came to stops nobody.
    rates = (0.001, 0.003, 0.01, 0.03)
    family = make_family(deep_learning_rate=rates, wide_learning_rate=rates, samples=(256, 384))
    trainer = make_trainer(TASKS, family, rung_samples=(128, 256))
    kwargs = {"num_trials": 24, "early_stopping": 0.5, "learning_rate": 1e-6}
    _, records, _ = search_in(tmp_path / "whole", family, trainer, **kwargs)
    stopped = [r for r in records if r.stopped and r.samples]
    assert stopped
    for record in stopped:
        needed = rung_accuracies(records, record.task, record.round, 0.5)
        *passed, last = zip(record.rungs, needed, strict=False)
        assert record.reward == last[0] < last[1]
        assert all(accuracy >= least for accuracy, least in passed)
    dying = DyingTrainer(trainer, 20)
    with pytest.raises(DiedError):
        search_in(tmp_path / "killed", family, dying, **kwargs)
    search_in(tmp_path / "killed", family, trainer, **kwargs)
    assert lines(tmp_path / "killed") == lines(tmp_path / "whole")
