import io

import numpy as np
import pytest
import rich.console
from toy import SPACE

from mnms_jax.report import (
    Finalists,
    TaskSummary,
    describe,
    find_specialization,
    print_summary,
    summary_json,
    top_records,
)
from mnms_jax.store import TrialRecord
from mnms_jax.tasks.reference import Reference, fit_reference
from mnms_jax.types import Split, Task


def record(trial, reward, task="one", bucket="b"):
    return TrialRecord(task, trial, {"a": trial}, reward, None, 1.0, 1, bucket, 0)


def test_top_records_are_distinct_finished_and_stable():
    records = [
        record(0, 0.7),
        record(1, None),
        record(2, 0.9),
        record(3, 0.9),
        record(4, 0.9, bucket="log"),
        record(5, 1.0, task="two"),
    ]
    assert [r.trial for r in top_records(records, "one")] == [2, 3, 0]
    assert [r.trial for r in top_records(records, "one", 1)] == [2]
    assert top_records(records, "three") == ()


def test_describe():
    design = {"embedding": "glove50", "lowercase": True, "strip": False, "hidden_layers": 2}
    assert describe(design) == "embedding glove50, lowercase, no strip, hidden_layers 2"


def test_specialization_by_hand():
    frequencies = {
        "one": np.array([[0.5, 0.5, 0.0], [0.5, 0.0, 0], [0, 0, 0]]),
        "two": np.array([[0.1, 0.2, 0.7], [0.5, 0.4, 0], [0.1, 0.1, 0.2]]),
    }
    rows = find_specialization(SPACE, frequencies)
    # a: (.4 + .3 + .7) / 2; b: (0 + .4 + .4) / 2, "not in use" being a choice; c: .4 likewise.
    assert [(r.decision, round(r.distance, 6)) for r in rows] == [
        ("a", 0.7),
        ("b", 0.4),
        ("c", 0.4),
    ]
    assert rows[0].preferences == {"one": "1 (50%)", "two": "3 (70%)"}
    assert rows[2].preferences == {"one": "not in use (100%)", "two": "not in use (60%)"}
    single = find_specialization(SPACE, {"one": frequencies["one"]})
    assert {r.distance for r in single} == {0.0}


def summaries():
    records = (record(2, 0.9), record(0, 0.7))
    return [
        TaskSummary(
            "one",
            Finalists("ppo", 5, records, (0.8, 0.6), ({"auroc": 0.7}, {"auroc": 0.5})),
            Finalists("random", 4, records[1:], (0.6,), ({},)),
            REFERENCE,
        ),
        TaskSummary("two", Finalists("ppo", 3, (), ()), None, REFERENCE),
    ]


REFERENCE = Reference("TF-IDF + logistic regression", 0.75, 0.72)


def test_printed_table_has_all_figures():
    console = rich.console.Console(file=io.StringIO(), width=120)
    frequencies = {"one": np.eye(3), "two": np.zeros((3, 3))}
    print_summary(summaries(), find_specialization(SPACE, frequencies), console)
    text = console.file.getvalue()
    assert "ppo search, 5 trials" in text and "random search, 4 trials" in text
    for figure in ("90.0", "80.0", "80.0 ± 10.0", "70.0 ± 10.0", "60.0", "75.0", "72.0"):
        assert figure in text
    assert "best child on one (trial 2): a 2" in text
    assert "no child on two trained without failing" in text
    assert "differs by task: a (distance 1.00): one: 1 (100%); two: not in use (100%)" in text


def test_another_reward_is_named_and_shown_as_it_is():
    metrics = {"accuracy": 0.75, "params": 12345, "samples": 1}
    best = record(2, 0.7091)._replace(metrics=metrics)
    finalists = Finalists("ppo", 5, (best,), (None,), ({"accuracy": 0.5},))
    rows = [TaskSummary("one", finalists, None, Reference("trees", None, None))]
    console = rich.console.Console(file=io.StringIO(), width=120)
    reward = "accuracy - 0.01 * log10(params)"
    print_summary(rows, [], console, reward)
    text = console.file.getvalue()
    assert f"{reward}, validation / test" in text and "%" not in text
    assert "0.7091 / -" in text and "trees" in text and "- / -" in text
    assert "(trial 2; accuracy 0.7500 / 0.5000; params 12,345): a 2" in text
    assert summary_json(rows, [], reward)["reward"] == reward


def test_nothing_special_is_said_plainly():
    console = rich.console.Console(file=io.StringIO(), width=120)
    frequencies = {"one": np.eye(3), "two": np.eye(3)}
    print_summary(summaries(), find_specialization(SPACE, frequencies), console)
    assert "takes every decision alike" in console.file.getvalue()


def test_json_has_the_same():
    data = summary_json(summaries(), [])
    assert data["tasks"]["one"]["finalists"][0] == {
        "trial": 2,
        "validation": 0.9,
        "test": 0.8,
        "metrics": {},
        "test_metrics": {"auroc": 0.7},
        "decisions": {"a": 2},
    }
    assert data["tasks"]["two"]["random"] is None
    assert data["tasks"]["one"]["reference"] == REFERENCE._asdict()


def task_of(labels, texts):
    split = Split(tuple(texts), np.array(labels, np.int32))
    return Task("t", {"train": split, "validation": split, "test": split}, ("x", "y"))


def test_reference_separates_what_can_be_separated():
    good = [f"good film number {i}" for i in range(20)]
    bad = [f"bad film number {i}" for i in range(20)]
    reference = fit_reference(task_of([1] * 20 + [0] * 20, good + bad))
    assert reference[1:] == (1.0, 1.0)


def test_reference_of_one_class():
    assert fit_reference(task_of([1, 1], ["a b", "c d"]))[1:] == (1.0, 1.0)


def test_reference_is_measured_as_children_are():
    labels = [0, 1] * 20
    texts = [f"{'good' if label else 'bad'} film number {i}" for i, label in enumerate(labels)]
    texts[0] = texts[1]  # which is of the other class
    task = task_of(labels, texts)
    assert fit_reference(task, "balanced_accuracy").test == pytest.approx(1.95 / 2)
    assert fit_reference(task, "1 - accuracy").test == pytest.approx(1 / 40)
    assert fit_reference(task, "accuracy - params")[1:] == (None, None)
    one = task_of([1, 1], ["a b", "c d"])
    assert fit_reference(one, "auroc")[1:] == (None, None)


def test_reference_of_many_classes():
    names = [f"word{i}" for i in range(60)]
    texts = [f"{name} number {j}" for name in names for j in range(10)]
    split = Split(tuple(texts), np.repeat(np.arange(60), 10).astype(np.int32))
    task = Task("t", {"train": split, "validation": split, "test": split}, tuple(names))
    assert fit_reference(task).test > 0.95
