import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import SPACE, make_task

from benchmarks import naive, summary, transfer
from benchmarks.children import (
    BATCH_SIZE,
    Result,
    arrays_of,
    kind_of,
    make_work,
    nth_request,
    num_steps,
    num_tokens,
    step_flops,
)
from benchmarks.workers import Reply
from mnms_jax.children.text import PRESETS, make_text_family, make_text_model
from mnms_jax.controller import make_policy
from mnms_jax.methods import Sources
from mnms_jax.tasks.embeddings import WordVectors
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.tasks.text import normalize
from mnms_jax.training.fit import Request, Trainer
from mnms_jax.transfer import make_bank

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
    texts = [text for task in TASKS for text in task.splits["train"].inputs]
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


SAME = CONV | HIDDEN | {name: 0.0 for name in (*CONV, *HIDDEN) if name.endswith("dropout")}


def ours_with_random_parameters(bench, changes):
    """Returns a child's request, its parameters and its logits, with all rows as one batch."""
    family, inputs = bench
    request = Request(1, "two", 0, DESIGN | SAME | changes)
    spec = family.make_spec(request.design)
    data = inputs.child_data(1, spec)
    batch = jax.tree.map(lambda x: x[: int(data.num_train)], data.inputs)
    model = make_text_model(spec.architecture, 3)
    hyper = spec.hyperparameters
    variables = model.init(jnp.uint32(0), batch, data.constants, hyper)
    rng = np.random.default_rng(0)
    params = jax.tree.map(lambda w: rng.normal(size=w.shape, scale=0.5), variables["params"])
    params = jax.tree.map(lambda w: w.astype(np.float32), params)
    if "table" in params["deep"]:
        params["deep"]["table"][0] = 0
    start = {**variables, "params": params}
    logits, _ = jax.jit(model.apply)(start, batch, data.constants, hyper, jnp.uint32(0), True)
    deep, units = params["deep"], int(request.design["hidden_size"])  # columns beyond do nothing
    hidden = {
        "kernel": deep["hidden0"]["kernel"][:, :units],
        "norm": {"affine": deep["hidden0"]["norm"]["affine"][:, :units]},
    }
    deep = {**deep, "hidden0": hidden, "kernel": deep["kernel"][:, :units]}
    return request, {**params, "deep": deep}, logits


def convolutions(params, design):
    """Returns each width's kernel [width, E, F], bias, scale and shift in a child of ours."""
    kernel, affine = params["conv"]["kernel"], params["conv_norm"]["affine"]
    widths, filters = range(2, design["conv_max_ngram"] + 1), design["conv_filters"]
    size = len(kernel) // max(widths)
    for i, width in enumerate(widths):
        block = slice(i * filters, (i + 1) * filters)
        yield kernel[: width * size, block].reshape(width, size, filters), *affine[:, block]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalization": "batch", "conv_max_ngram": 2},
        FROZEN | {"conv_batch_norm": False, "normalization": "none"},
        {"embedding": "hashed32"},
    ],
)
def test_a_naive_child_is_the_same_function_as_ours(bench, changes):
    request, ours, expected = ours_with_random_parameters(bench, changes)
    deep = ours["deep"]
    theirs = {"Dense_1": {"kernel": deep["kernel"].T}}
    if "table" in deep:
        theirs["Embed_0"] = {"embedding": deep["table"]}
    for i, (kernel, bias, scale, shift) in enumerate(convolutions(deep, request.design)):
        theirs[f"Conv_{i}"] = {"kernel": kernel, "bias": bias}
        if request.design["conv_batch_norm"]:
            theirs[f"BatchNorm_{i}"] = {"scale": scale, "bias": shift}
    bias, scale, shift = deep["hidden0"]["norm"]["affine"]
    theirs["Dense_0"] = {"kernel": deep["hidden0"]["kernel"], "bias": bias}
    if request.design["normalization"] == "batch":
        theirs["BatchNorm_1"] = {"scale": scale, "bias": shift}  # after one convolution's
    elif request.design["normalization"] == "layer":
        theirs["LayerNorm_0"] = {"scale": scale, "bias": shift}
    wide = {"Embed_0": {"embedding": ours["wide"]["table"]}, "bias": ours["wide"]["bias"]}
    params = {"deep": theirs, "wide": wide}
    arrays = arrays_of(*bench, request)
    child = naive.Child(request.design, bench[1].sizes, 3)
    start = child.init(jax.random.key(0), arrays.train, arrays.table, train=False)
    assert jax.tree.map(jnp.shape, start["params"]) == jax.tree.map(jnp.shape, params)
    variables = {**start, "params": params}
    logits, _ = child.apply(
        variables, arrays.train, arrays.table, train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)


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
    # Widths 2 and 3 over 40 windows each, 32 + 16 + 16 features, 64 units, 3 classes.
    conv = 40 * 64 * 16 + 40 * 96 * 16
    design = DESIGN | CONV | HIDDEN
    assert step_flops(design, 40, 3) == 6 * BATCH_SIZE * (conv + 64 * 64 + 64 * 3)
    assert num_steps(design) == 40


def test_padding_of_sequences_counts_nothing(bench):
    for design in (DESIGN, DESIGN | {"embedding": "hashed32"}):
        arrays = arrays_of(*bench, Request(0, "one", 0, design))
        lengths = [sum(token > 0 for token in row) for row in arrays.train.tokens.tolist()]
        assert num_tokens(arrays) == pytest.approx(np.mean(lengths))
        assert num_tokens(arrays) < arrays.train.tokens.shape[1]


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
    stats = {"programs": 2, "compile_seconds": 3.0, "run_seconds": 1.0, "idle_share": 0.75}
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


@pytest.mark.parametrize("changes", [{}, FROZEN | {"conv_max_ngram": 2}])
def test_a_pytorch_child_is_the_same_function_as_ours(bench, changes):
    torch = pytest.importorskip("torch")
    from benchmarks import torch_eager

    request, ours, expected = ours_with_random_parameters(bench, changes)
    arrays = torch_eager.to_torch(jax.block_until_ready(arrays_of(*bench, request)))
    child = torch_eager.Child(request.design, arrays, bench[1].sizes)
    deep = ours["deep"]
    pairs = [(child.wide.table, ours["wide"]["table"]), (child.wide.bias, ours["wide"]["bias"])]
    if "table" in deep:
        pairs.append((child.deep.table, deep["table"]))
    layers = zip(child.deep.convs, child.deep.conv_norms, strict=True)
    for (conv, norm), found in zip(layers, convolutions(deep, request.design), strict=True):
        kernel, bias, scale, shift = found
        pairs += [(conv.weight, kernel.transpose(2, 1, 0)), (conv.bias, bias)]
        pairs += [(norm.weight, scale), (norm.bias, shift)]
    dense, norm, *_, head = child.deep.layers
    bias, scale, shift = deep["hidden0"]["norm"]["affine"]
    pairs += [(dense.weight, deep["hidden0"]["kernel"].T), (dense.bias, bias)]
    pairs += [(norm.weight, scale), (norm.bias, shift), (head.weight, deep["kernel"])]
    with torch.no_grad():
        for parameter, value in pairs:
            assert parameter.shape == value.shape
            parameter.copy_(torch.from_numpy(value.copy()))
        logits = child(arrays.train)
    np.testing.assert_allclose(logits.numpy(), expected, rtol=1e-3, atol=1e-3)


def test_parts_are_left_out_of_the_policy(key):
    actions = jnp.array([2, 1, 0])

    def evaluate(make, change):
        policy = make(SPACE, 2)
        params = policy.init(key)
        outputs = [
            policy.evaluate({**params, **changed}, actions, jnp.int32(task_id))
            for changed, task_id in (({}, 0), ({}, 1), (change(params), 0))
        ]
        return [np.asarray(output.log_probs) for output in outputs]

    def shift_skip(params):
        return {"head_kernel": params["head_kernel"].at[:, 64:].add(jnp.array([[1.0, 0, 0]]))}

    for make, blind, skips in (
        (make_policy, False, True),
        (transfer.blind, True, True),
        (functools.partial(make_policy, skip_connection=False), False, False),
    ):
        first, second, shifted = evaluate(make, shift_skip)
        assert np.array_equal(first, second) == blind
        assert np.array_equal(first, shifted) != skips


def test_useless_sources_have_their_rewards_elsewhere(key):
    bank = make_bank(SPACE, [[({"a": 1}, float(n)) for n in range(20)]] * 2)
    make = transfer.useless(lambda space, sources, number, key: sources.trials)
    made = make(SPACE, Sources(bank), 2, key)
    np.testing.assert_array_equal(made.actions, bank.actions)
    for row in made.rewards:
        assert sorted(row.tolist()) == list(range(20)) != row.tolist()


def test_every_method_of_the_transfer_benchmark_is_there():
    names = transfer._METHODS.default
    assert [transfer.make_method(name).name for name in names] == names
    assert transfer._POLICIES.keys() <= set(names)
