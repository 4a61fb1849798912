from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest
from toy import make_task

import mnms_jax
from benchmarks import human, rivals
from mnms_jax.bench import Bench
from mnms_jax.store import TrialRecord
from mnms_jax.tasks.embeddings import WordVectors
from mnms_jax.tasks.registry import load_tasks
from mnms_jax.tasks.text import normalize
from mnms_jax.training.judge import TrialResult
from mnms_jax.types import Split, Task

TEXTS = make_task("one", 600, num_classes=3, seed=1)


@pytest.fixture
def glove(monkeypatch):
    words = sorted({w for text in TEXTS.splits["train"].inputs for w in normalize(text).split()})
    vectors = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
    table = WordVectors({word: row for row, word in enumerate(words)}, vectors)
    monkeypatch.setattr(mnms_jax, "glove50", lambda: table)


@pytest.mark.parametrize("name", rivals.RIVALS["text"])
def test_rivals_learn_texts(name, glove):
    fitted = rivals.RIVALS["text"][name](TEXTS, 1)
    assert fitted.validation > 0.8
    for found in fitted.predictions:
        assert np.mean(found == TEXTS.splits["test"].labels) > 0.8


def test_a_rival_learns_from_an_encoder(monkeypatch):
    def encode(name, texts):
        assert name == "minilm_encoder"
        return np.array([[f"onecue{c}" in text for c in range(3)] for text in texts], float)

    monkeypatch.setattr(rivals, "kept_features", encode)
    (rival,) = rivals.ENCODED_RIVALS.values()
    first, anew = rival(TEXTS, 1).predictions
    labels = TEXTS.splits["test"].labels
    assert np.mean(first == labels) > 0.8 and np.mean(anew == labels) > 0.8


@pytest.mark.parametrize("name", rivals.RIVALS["image"])
def test_rivals_learn_images(name):
    (digits,) = load_tasks(["digits"])
    fitted = rivals.RIVALS["image"][name](digits, 1)
    for found in fitted.predictions:
        assert np.mean(found == digits.splits["test"].labels) > 0.9


def test_what_is_fitted_anew_has_seen_validation():
    texts, labels = ("x y", "z w", "x y", "z w"), np.array([0, 1, 0, 1], np.int32)
    unseen = Split(("p q", "r s"), np.array([0, 1], np.int32))
    splits = {"train": Split(texts, labels), "validation": unseen, "test": unseen}
    first, anew = next(iter(rivals.RIVALS["text"].values()))(
        Task("one", splits, ("a", "b")), 1
    ).predictions
    assert np.mean(first == unseen.labels) == 0.5 and np.mean(anew == unseen.labels) == 1


def test_each_seed_ends_at_its_best_epoch_and_anew_at_the_best_of_the_mean(monkeypatch):
    scores, asked = {0: [0.5, 0.6, 0.9], 1: [0.1, 0.8, 0.3]}, []

    def train(task, module, arrays, rate, num_epochs, seed):
        asked.append((len(task.splits["train"].labels), num_epochs, seed))
        return scores[seed][:num_epochs], [np.full(4, 10 * seed + e) for e in range(num_epochs)]

    monkeypatch.setattr(rivals, "_train", train)
    monkeypatch.setattr(rivals, "_EPOCHS", 3)
    fitted = rivals._fit_seeds(TEXTS, lambda task: (None, len), 0.1, 2)
    assert fitted.validation == pytest.approx(0.7)  # of the second epoch
    assert fitted.predictions[0][:, 0].tolist() == [2, 11]
    assert fitted.predictions[1][:, 0].tolist() == [1, 11]
    assert asked == [(600, 3, 0), (600, 3, 1), (800, 2, 0), (800, 2, 1)]


class FakeTrainer:
    """Rewards the second design more with every seed but the search's; a child knows its seed."""

    def train(self, requests):
        for i, request in enumerate(requests):
            yield i, TrialResult(0.9 if request.design["a"] else 0.2, None, 0.0, 0, "")

    def fit(self, request):
        return None, (request.design["a"], request.trial)


def make_fake(task_id, design, variables):
    def predict_proba(texts):
        return np.eye(3)[np.full(len(texts), sum(variables))]

    return SimpleNamespace(predict_proba=predict_proba)


def test_the_best_design_and_the_confirmed_one_are_fitted_on_both():
    log = [
        TrialRecord("one", trial, {"a": trial}, 0.8 - 0.1 * trial, None, 0.0, 0, "", 0)
        for trial in range(2)
    ]
    bench = Bench((TEXTS,), None, None, make_fake, FakeTrainer())
    for number, other in ((2, 1), (1, 0)):
        found = human.fit_designs((bench, bench), 0, log, number, 2)
        expected = {"best design": 0, "confirmed design": other}
        for name, design in expected.items():
            for predictions in found[name].predictions:
                assert predictions.shape == (2, len(TEXTS.splits["test"].labels))
                assert predictions[:, 0].tolist() == [design, design + 1]
    assert found["confirmed design"].validation == 0.8


def test_rows_compare_on_the_same_examples(capsys):
    labels = TEXTS.splits["test"].labels
    wrong = (labels + 1) % 3
    half = np.where(np.arange(len(labels)) % 2, labels, wrong)

    def fitted(validation, *seeds):
        return rivals.Fitted(validation, (np.array(seeds), np.array(seeds)))

    models = {
        "best design": fitted(0.9, wrong, wrong),
        "confirmed design": fitted(0.8, labels, half),
        "one": fitted(0.6, labels),
        "two": fitted(0.7, half),
    }
    rows = human.compare(TEXTS, models)
    own = {row.model: row for row in rows if row.fitted_on == "train"}
    assert len(rows) == 2 * len(own) == 8
    assert own["confirmed design"].test == 0.75 and own["confirmed design"].behind == 0
    assert own["confirmed design"].deviation == pytest.approx(np.std([1, 0.5], ddof=1))
    assert own["one"].behind == -0.25 and own["two"].behind == 0.25
    error = 1.96 * 0.25 / np.sqrt(len(labels))  # the differences are 0 and -.5
    assert own["one"].behind_high == pytest.approx(-0.25 + error)
    human.show(rows, "train")
    shown = capsys.readouterr().out
    assert "by test (a maximum over noise): one 100.0; mean 100.0" in shown
    assert "at least as good on 0 of 1" in shown
    assert "by validation (what one could have): two 50.0; mean 50.0" in shown
    assert "at least as good on 1 of 1" in shown


@pytest.mark.parametrize(("right", "number"), [(0, 10), (7, 10), (180, 200), (359, 359)])
def test_the_interval_is_wilsons(right, number):
    expected = binomtest(right, number).proportion_ci(method="wilson")
    assert human.interval(right / number, number) == pytest.approx(tuple(expected), abs=1e-4)
