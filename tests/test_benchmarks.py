import jax
import numpy as np
import pytest
from toy import make_task

from benchmarks import naive, summary
from benchmarks.children import (
    BATCH_SIZE,
    Result,
    arrays_of,
    kind_of,
    make_work,
    nth_request,
    num_steps,
    step_flops,
)
from benchmarks.workers import Reply
from mnms_jax.children.text import PRESETS, make_text_family
from mnms_jax.tasks.embeddings import WordVectors
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.tasks.text import normalize
from mnms_jax.training.fit import Request, Trainer

DESIGN = {
    "embedding": "random32",
    "lowercase": True,
    "strip": True,
    "convolution": False,
    "hidden_layers": 0,
    "optimizer": "adam",
    "deep_learning_rate": 0.01,
    "deep_regularization": 1e-4,
    "wide_learning_rate": 0.005,
    "wide_regularization": 0.0,
    "samples": 5120,
}
CONV = {
    "convolution": True,
    "conv_activation": "tanh",
    "conv_batch_norm": True,
    "conv_max_ngram": 3,
    "conv_dropout": 0.2,
    "conv_filters": 16,
    "conv_embedding_dropout": 0.2,
}
HIDDEN = {
    "hidden_layers": 1,
    "hidden_size": 64,
    "hidden_activation": "relu",
    "normalization": "layer",
    "hidden_dropout": 0.2,
}
FROZEN = {"embedding": "tiny8", "fine_tune": False}
SGD = {"optimizer": "sgd", "deep_learning_rate": 0.05, "wide_learning_rate": 0.5}
TASKS = (make_task("one", 400, seed=1), make_task("two", 300, num_classes=3, seed=2))


@pytest.fixture(scope="module")
def bench():
    texts = [text for task in TASKS for text in task.splits["train"].texts]
    words = sorted({word for text in texts for word in normalize(text).split()})
    vectors = np.random.default_rng(0).normal(size=(len(words), 8)).astype(np.float32)
    family = make_text_family("cpu", {"tiny8": 8})
    sizes = PRESETS["cpu"]._replace(length=8)
    inputs = TextInputs(
        TASKS, sizes, {"tiny8": WordVectors({word: row for row, word in enumerate(words)}, vectors)}
    )
    return family, inputs


@pytest.mark.parametrize(
    ("task_id", "changes"),
    [
        (0, {}),
        (1, CONV | HIDDEN | {"conv_max_ngram": 2}),
        (1, FROZEN | HIDDEN | SGD | {"normalization": "batch"}),
    ],
)
def test_a_naive_child_is_about_as_good_as_ours(bench, task_id, changes):
    family, inputs = bench
    request = Request(task_id, TASKS[task_id].name, 0, DESIGN | changes)
    trainer = Trainer(family, inputs.child_data, num_classes=inputs.num_classes)
    ours = dict(trainer.train([request]))[0].reward
    result = naive.train_child(request.design, arrays_of(*bench, request), inputs.sizes, 0)
    assert min(ours, result.reward) > 0.9
    assert result.reward == pytest.approx(ours, abs=0.06)
    assert 0 < result.compile_seconds < result.seconds


def test_a_naive_child_that_diverges_has_no_reward(bench):
    changes = {"deep_learning_rate": 1e20, "wide_learning_rate": 1e20, "optimizer": "sgd"}
    request = Request(0, "one", 0, DESIGN | changes)
    result = naive.train_child(request.design, arrays_of(*bench, request), bench[1].sizes, 0)
    assert result.reward is None


def test_arrays_have_words_and_no_padded_rows(bench):
    arrays = arrays_of(*bench, Request(1, "two", 0, DESIGN | FROZEN))
    assert arrays.train.tokens.shape == (300, 8)
    assert arrays.validation.labels.shape == (100,)
    assert arrays.table.shape == (PRESETS["cpu"].vocabulary, 8)
    assert arrays.num_classes == 3


def test_useful_operations_by_hand():
    assert step_flops(DESIGN, 40, 2) == 6 * BATCH_SIZE * 32 * 2
    # Widths 2 and 3 over 39 and 38 windows, 32 + 16 + 16 features, 64 units, 3 classes.
    conv = 39 * 64 * 16 + 38 * 96 * 16
    design = DESIGN | CONV | HIDDEN
    assert step_flops(design, 40, 3) == 6 * BATCH_SIZE * (conv + 64 * 64 + 64 * 3)
    assert num_steps(design) == 40


def test_kinds():
    assert kind_of(DESIGN) == "trained linear"
    assert kind_of(DESIGN | FROZEN) == "frozen linear"
    assert kind_of(DESIGN | FROZEN | HIDDEN) == "frozen hidden"
    assert kind_of(DESIGN | CONV | HIDDEN) == "trained conv"


def test_children_are_drawn_alike_and_take_turns(monkeypatch):
    vectors = WordVectors({"film": 0}, np.zeros((1, 50), np.float32))
    monkeypatch.setattr("mnms_jax.glove50", lambda: vectors)
    few, many = (make_work(TASKS, n, 3).requests for n in (3, 5))
    assert few == many[:3]
    assert [request.task_name for request in many] == ["one", "two", "one", "two", "one"]
    again = nth_request(few, 7)
    assert (again.design, again.trial) == (few[1].design, 7)


def reply(seconds, rewards):
    results = [Result(reward, 2.0, 1.0) for reward in rewards]
    stats = {"programs": 2, "compile_seconds": 3.0, "run_seconds": 1.0}
    return Reply(seconds, 2 * seconds, results, stats, 500.0, 100.0)


def test_figures_of_ways():
    work = summary.Load(["a", "b", "b"], [10, 20, 20], [10**9, 10**9, 10**9])
    replies = {
        "naive": [reply(6.0, [0.5, 0.6]), reply(4.0, [None])],
        "cold": [reply(3.0, [0.6, 0.6]), reply(2.0, [None])],
        "warm": [reply(1.0, [0.6, 0.6]), reply(1.0, [None])],
    }
    figures = summary.compare(replies, [reply(3.0, [0.5, 0.6, None])], work, [90.0, 100.0, 110.0])
    assert figures["speedup_cold_vs_naive"] == 2
    assert figures["speedup_warm_vs_naive"] == 5
    assert figures["speedup_warm_vs_torch"] is None
    assert figures["compile_share"] == 0.75
    assert figures["ways"]["warm"]["gflops"] == 25
    assert figures["ways"]["warm"]["cpu_seconds"] == 4
    assert figures["ways"]["warm"]["share_of_matmul_peak"] == 0.25
    assert figures["ways"]["naive"]["kinds"]["b"]["ms_a_step"] == 50  # one diverged
    agreement = figures["agreement"]["naive"]
    assert agreement["compared"] == 2
    assert agreement["mean_abs_difference"] == pytest.approx(0.05)
    assert agreement["seed_std"] == pytest.approx(0.05)
    assert agreement["within_two_seed_stds"] == 1


def test_a_long_search_extrapolates_naive():
    replies = {"cold": [reply(5.0, [0.5])], "naive": [reply(10.0, [0.5])]}
    figures = summary.long_run(replies, {"cold": 4, "naive": 2})
    assert figures["naive_seconds_extrapolated"] == 20
    assert figures["speedup_cold_vs_naive"] == 4
    assert figures["compile_share"] == 0.75


def test_pytorch_children_learn_where_it_is_installed(bench):
    pytest.importorskip("torch")
    from benchmarks import torch_eager

    request = Request(1, "two", 0, DESIGN | CONV | HIDDEN)
    arrays = torch_eager.to_torch(jax.block_until_ready(arrays_of(*bench, request)))
    assert torch_eager.train_child(request.design, arrays, bench[1].sizes, 0).reward > 0.9
