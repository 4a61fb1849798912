import numpy as np
import pytest
from scipy.stats import binomtest
from toy import make_task

import mnms_jax
from benchmarks import human
from mnms_jax.tasks.embeddings import WordVectors
from mnms_jax.tasks.registry import load_tasks
from mnms_jax.tasks.text import normalize

TEXTS = make_task("one", 600, num_classes=3, seed=1)


@pytest.fixture
def glove(monkeypatch):
    words = sorted({w for text in TEXTS.splits["train"].inputs for w in normalize(text).split()})
    vectors = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
    table = WordVectors({word: row for row, word in enumerate(words)}, vectors)
    monkeypatch.setattr(mnms_jax, "glove50", lambda: table)


@pytest.mark.parametrize("name", human.RIVALS["text"])
def test_rivals_learn_texts(name, glove):
    found = human.RIVALS["text"][name](TEXTS)
    assert np.mean(found == TEXTS.splits["test"].labels) > 0.8


@pytest.mark.parametrize("name", human.RIVALS["image"])
def test_rivals_learn_images(name):
    (digits,) = load_tasks(["digits"])
    found = human.RIVALS["image"][name](digits)
    assert np.mean(found == digits.splits["test"].labels) > 0.9


@pytest.mark.parametrize(("right", "number"), [(0, 10), (7, 10), (180, 200), (359, 359)])
def test_the_interval_is_wilsons(right, number):
    expected = binomtest(right, number).proportion_ci(method="wilson")
    assert human.interval(right / number, number) == pytest.approx(tuple(expected), abs=1e-4)
