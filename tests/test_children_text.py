import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.children.ragged import Ragged
from mnms_jax.children.text import (
    PRESETS,
    TextBatch,
    TextPreprocessing,
    make_text_family,
    make_text_model,
    padded_size,
)
from mnms_jax.controller import make_random_policy
from mnms_jax.training.optimizer import apply_gradients, coefficients, init_slots
from mnms_jax.types import UserError

# The 21 decisions of Houlsby et al. (2019) and the optimiser.
NAMES = """embedding fine_tune lowercase strip convolution conv_activation conv_batch_norm
conv_max_ngram conv_dropout conv_filters conv_embedding_dropout hidden_layers hidden_size
hidden_activation normalization hidden_dropout optimizer deep_learning_rate deep_regularization
wide_learning_rate wide_regularization samples""".split()


def random_designs(space, number, seed=0):
    keys = jax.random.split(jax.random.key(seed), number)
    sample = make_random_policy(space).sample
    actions = jax.vmap(lambda key: sample({}, key, jnp.int32(0)).actions)(keys)
    return [space.decode(row) for row in np.asarray(actions)]


def ragged(tokens):
    return Ragged(tokens, tokens.shape[1:])


def make_inputs(architecture, num_rows=6, length=5):
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, architecture.rows, (num_rows, length)).astype(np.int32)
    tokens[:, 3:] = 0
    table = rng.normal(size=(architecture.rows, architecture.size)).astype(np.float32)
    table[0] = 0
    pooled = table[tokens[:, :3]].mean(1)
    ngrams = rng.integers(0, architecture.ngrams, (num_rows, 2 * length)).astype(np.int32)
    weights = rng.uniform(size=ngrams.shape).astype(np.float32)
    batch = TextBatch(
        pooled if architecture.pooled else None,
        None if architecture.pooled else ragged(tokens),
        ngrams,
        weights,
    )
    table = table if architecture.pretrained and not architecture.pooled else None
    return jax.tree.map(jnp.asarray, (batch, table))


def make_child(**changes):
    """Returns the spec, the model (two classes), a batch, the table and the variables."""
    spec = make_text_family("cpu").make_spec(text_design(**changes))
    model = make_text_model(spec.architecture, 2)
    batch, table = make_inputs(spec.architecture)
    variables = model.init(jnp.uint32(1), batch, table, spec.hyperparameters)
    return spec, model, batch, table, variables


def evaluate(child, **inputs):
    """Returns the logits of a child with other inputs than its own."""
    spec, model, batch, table, variables = child
    hyper, batch = spec.hyperparameters, batch._replace(**inputs)
    return model.apply(variables, batch, table, hyper, jnp.uint32(0), False)[0]


def test_both_presets_have_the_same_decisions():
    full, cpu = (make_text_family(preset).space for preset in ("full", "cpu"))
    assert list(full.names) == list(cpu.names) == NAMES
    for a, b in zip(full.decisions, cpu.decisions, strict=True):
        assert len(b.choices) >= 2 and len(a.choices) >= len(b.choices)
    by_name = {decision.name: decision.choices for decision in full.decisions}
    assert by_name["hidden_layers"] == (0, 1, 2, 3, 5)
    assert by_name["samples"] == (100_000, 200_000, 500_000, 1_000_000, 2_000_000)
    assert set(by_name["embedding"]) >= {"glove50", "random32", "random128", "hashed64"}


@pytest.mark.parametrize("preset", ["cpu", "full"])
def test_every_design_has_a_spec_that_only_active_decisions_change(preset):
    family = make_text_family(preset)
    for design in random_designs(family.space, 50):
        spec = family.make_spec(design)
        architecture = spec.architecture
        assert hash(architecture) is not None and str(architecture)
        assert bool(architecture.conv_widths) == design["convolution"]
        assert architecture.hidden_layers == design["hidden_layers"]
        assert architecture.pretrained == ("fine_tune" in design)
        assert architecture.pooled == (
            design.get("fine_tune") is False and not design["convolution"]
        )
        assert spec.num_samples == design["samples"]
        assert spec.optimizers["wide"].learning_rate == design["wide_learning_rate"]


def test_architecture_holds_nothing_that_could_be_traced():
    family = make_text_family("cpu")
    traced = {"lowercase", "strip", "optimizer", "samples", "normalization", "conv_batch_norm"}
    for design in random_designs(family.space, 30):
        spec = family.make_spec(design)
        for decision in family.space.decisions:
            changes = any(
                word in decision.name for word in ("rate", "regular", "drop", "activation")
            )
            if decision.name in design and (changes or decision.name in traced):
                other = {**design, decision.name: decision.choices[-1]}
                assert family.make_spec(other).architecture == spec.architecture


@pytest.mark.parametrize("seed", range(4))
def test_models_apply(seed):
    family = make_text_family("cpu")
    spec = family.make_spec(random_designs(family.space, 1, seed)[0])
    model = make_text_model(spec.architecture, 3)
    batch, table = make_inputs(spec.architecture)
    hyper = spec.hyperparameters
    variables = model.init(jnp.uint32(1), batch, table, hyper)
    assert set(variables["params"]) == {"deep", "wide"}
    start = variables.get("batch_stats", {})
    apply = jax.jit(model.apply)
    for training in (False, True):
        logits, stats = apply(variables, batch, table, hyper, jnp.uint32(2), training)
        assert logits.shape == (6, 3) and bool(jnp.all(jnp.isfinite(logits)))
        assert jax.tree.structure(stats) == jax.tree.structure(start)
        for a, b in zip(jax.tree.leaves(stats), jax.tree.leaves(start), strict=True):
            assert bool(jnp.all(a == b)) != training


def text_design(**changes):
    design = {
        "embedding": "glove50",
        "fine_tune": False,
        "lowercase": True,
        "strip": True,
        "convolution": False,
        "hidden_layers": 0,
        "optimizer": "sgd",
        "deep_learning_rate": 0.001,
        "deep_regularization": 0.0,
        "wide_learning_rate": 0.001,
        "wide_regularization": 0.0,
        "samples": 10_000,
    }
    return {**design, **changes}


CONVOLUTION = {
    "convolution": True,
    "conv_activation": "relu",
    "conv_batch_norm": False,
    "conv_max_ngram": 3,
    "conv_dropout": 0.0,
    "conv_filters": 16,
    "conv_embedding_dropout": 0.0,
}


def test_wide_and_deep_towers_by_hand():
    child = make_child()
    spec, _, batch, _, variables = child
    rng = np.random.default_rng(1)
    wide = rng.normal(size=(spec.architecture.ngrams, 2)).astype(np.float32)
    bias = jnp.array([0.5, -0.5])
    variables["params"]["wide"] = {"table": jnp.asarray(wide), "bias": bias}
    expected = np.einsum("bw,bwc->bc", batch.weights, wide[batch.ngrams])
    expected += np.array([[0.5, -0.5]])
    expected += batch.pooled @ np.asarray(variables["params"]["deep"]["kernel"]).T
    np.testing.assert_allclose(evaluate(child), expected, rtol=1e-4, atol=1e-5)


def test_pooled_data_and_pooling_in_the_model_agree():
    """A frozen child reads means made beforehand; the fine-tuned one starts with the same means."""
    tuned, frozen = make_child(fine_tune=True), make_child()
    _, _, batch, table, _ = tuned
    pooled = table[batch.tokens.values[:, :3]].mean(1)
    np.testing.assert_allclose(
        evaluate(tuned), evaluate(frozen, pooled=pooled), rtol=1e-4, atol=1e-5
    )


def numpy_maxima(embedded, num_words, kernels):
    """Returns each filter's largest response over the windows that begin in the text, in loops.

    Args:
      embedded: [B, L, E].
      num_words: [B].
      kernels: [width, E, F] each.
    """
    out = []
    for text, words in zip(np.asarray(embedded, np.float64), num_words, strict=True):
        text[words:] = 0
        row = []
        for kernel in kernels:
            width, _, filters = kernel.shape
            zeros = np.zeros((width, text.shape[1]))
            windows = [np.concatenate([text, zeros])[i : i + width] for i in range(max(words, 1))]
            row += [max((w * kernel[..., f]).sum() for w in windows) for f in range(filters)]
        out.append(row)
    return np.array(out)


def cut_kernel(kernel, widths, filters, size):
    """Returns each width's part, [width, E, F], of the convolutions' common kernel."""
    return [
        np.asarray(kernel[: width * size, i * filters : (i + 1) * filters], np.float64).reshape(
            width, size, filters
        )
        for i, width in enumerate(widths)
    ]


@pytest.mark.parametrize("max_ngram", [2, 3])
def test_convolutions_equal_loops_over_windows(max_ngram):
    child = make_child(embedding="random32", **CONVOLUTION | {"conv_max_ngram": max_ngram})
    spec, _, batch, _, variables = child
    lengths = np.array([3, 5, 1, 0, 2, 4])
    rng = np.random.default_rng(3)
    words = rng.integers(1, spec.architecture.rows, (6, 5))
    tokens = jnp.asarray(np.where(np.arange(5)[None] < lengths[:, None], words, 0), jnp.int32)
    deep = variables["params"]["deep"]
    deep["conv_norm"]["affine"] = (
        deep["conv_norm"]["affine"]
        .at[0]
        .set(0.1 * jnp.arange(-1.0, 1.0, 2 / (16 * (max_ngram - 1))))
    )
    embedded = np.asarray(deep["table"])[tokens]
    kernels = cut_kernel(deep["conv"]["kernel"], range(2, max_ngram + 1), 16, 32)
    maxima = numpy_maxima(embedded, lengths, kernels)
    maxima = np.maximum(maxima + np.asarray(deep["conv_norm"]["affine"][:1]), 0)
    assert 0.1 < (maxima > 0).mean() < 1
    mean = embedded.sum(1) / np.maximum(lengths, 1)[:, None]
    expected = np.concatenate([mean, maxima], 1) @ np.asarray(deep["kernel"]).T
    logits = evaluate(child, tokens=ragged(tokens), weights=jnp.zeros_like(batch.weights))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_convolutions_start_with_the_variance_of_one_over_fan_in():
    _, _, _, _, variables = make_child(embedding="random32", **CONVOLUTION)
    kernel = variables["params"]["deep"]["conv"]["kernel"]
    assert kernel.shape == (3 * 32, 2 * 16)
    for width, part in zip((2, 3), cut_kernel(kernel, (2, 3), 16, 32), strict=True):
        assert np.abs(part).max() <= np.sqrt(3 / (width * 32)) + 1e-6
        assert part.var() == pytest.approx(1 / (width * 32), rel=0.1)


def test_what_lies_beyond_a_narrow_kernel_changes_nothing_and_has_no_gradient():
    spec, model, batch, table, variables = make_child(embedding="random32", **CONVOLUTION)

    def loss(kernel):
        changed = jax.tree.map(lambda x: x, variables)
        changed["params"]["deep"]["conv"]["kernel"] = kernel
        return evaluate((spec, model, batch, table, changed)).sum()

    kernel = variables["params"]["deep"]["conv"]["kernel"]
    beyond = np.zeros(kernel.shape, bool)
    beyond[2 * 32 :, :16] = True
    value, grad = jax.value_and_grad(loss)(kernel)
    assert not grad[beyond].any() and grad[~beyond].any()
    assert float(loss(jnp.where(beyond, 100.0, kernel))) == float(value)


def test_convolution_sees_order_and_no_padding():
    child = make_child(embedding="random32", **CONVOLUTION)
    tokens = child[2].tokens.values
    swapped = tokens[:, jnp.array([1, 0, 2, 3, 4])]
    assert not np.allclose(evaluate(child), evaluate(child, tokens=ragged(swapped)), atol=1e-4)
    longer = jnp.pad(tokens, ((0, 0), (0, 4)))
    np.testing.assert_allclose(evaluate(child), evaluate(child, tokens=ragged(longer)), atol=1e-5)
    assert np.isfinite(evaluate(child, tokens=ragged(0 * tokens))).all()  # empty texts


def test_batch_norm_of_convolutions_leaves_out_padding():
    changes = {**CONVOLUTION, "conv_batch_norm": True}
    spec, model, batch, _, variables = make_child(embedding="random32", **changes)

    def train(tokens):
        inputs = batch._replace(tokens=ragged(tokens))
        return model.apply(variables, inputs, None, spec.hyperparameters, jnp.uint32(1), True)

    tokens = batch.tokens.values
    short, long = train(tokens), train(jnp.pad(tokens, ((0, 0), (0, 24))))
    for a, b in zip(jax.tree.leaves(short), jax.tree.leaves(long), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


def test_embedding_dropout_drops_whole_components():
    """A dropped component gets no gradient at any word; a kept one is scaled at all of them."""
    changes = {**CONVOLUTION, "conv_embedding_dropout": 0.5, "conv_activation": "tanh"}
    child = make_child(embedding="random32", **changes)
    spec, model, batch, _, variables = child
    num_features = 32 + 2 * 16
    # One text, read six times; its mean embedding doesn't reach the logits.
    batch = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), batch)
    kernel = jnp.ones((2, num_features)).at[:, :32].set(0.0)
    variables["params"]["deep"]["kernel"] = kernel

    def responses(table, training, seed=3):
        changed = jax.tree.map(lambda x: x, variables)
        changed["params"]["deep"]["table"] = table
        hyper = spec.hyperparameters
        return model.apply(changed, batch, None, hyper, jnp.uint32(seed), training)[0][:, 0]

    table = variables["params"]["deep"]["table"]
    per_text = jax.jacrev(lambda t: responses(t, True))(table)[:, batch.tokens.values[0, :3]]
    dropped = (per_text == 0).all(1)  # [6, 32]
    assert 0.3 < dropped.mean() < 0.7
    assert ((per_text == 0).any(1) == dropped).mean() > 0.9
    assert len({tuple(row.tolist()) for row in dropped}) == 6  # each text has its own
    outputs = responses(table, True)
    assert len(set(outputs.tolist())) == 6 and (outputs != responses(table, True, 4)).all()
    assert len(set(responses(table, False).tolist())) == 1
    # As if the table had zeros in place of the dropped components, and twice the others.
    masked = responses(jnp.where(dropped[:1], 0.0, 2 * table), False)[0]
    np.testing.assert_allclose(outputs[0], masked, rtol=1e-4)


@pytest.mark.parametrize("name", ["conv_dropout", "hidden_dropout"])
def test_dropout_acts_in_training_alone(name):
    hidden = {"hidden_layers": 1, "hidden_size": 64, "hidden_activation": "tanh"}
    rest = {"normalization": "none", "hidden_dropout": 0.0}
    changes = {"embedding": "random32", **CONVOLUTION, **hidden, **rest, name: 0.5}
    spec, model, batch, _, variables = make_child(**changes)

    def logits(seed, training, hyper=spec.hyperparameters):
        return model.apply(variables, batch, None, hyper, jnp.uint32(seed), training)[0]

    assert (logits(1, True) != logits(2, True)).any()
    np.testing.assert_array_equal(logits(1, False), logits(2, False))
    without = spec.hyperparameters._replace(**{name: np.float32(0)})
    np.testing.assert_array_equal(logits(1, True, without), logits(1, False))


def test_random_tables_start_with_zeros_for_padding():
    for name in ("random32", "hashed32"):
        table = make_child(embedding=name)[-1]["params"]["deep"]["table"]
        assert not table[0].any() and table[1:].any(1).all()
        assert float(jnp.abs(table).max()) <= 0.1


def test_regularization_moves_kernels_and_tables_alone():
    family = make_text_family("cpu")
    hidden = {
        "hidden_layers": 1,
        "hidden_size": 64,
        "hidden_activation": "relu",
        "normalization": "layer",
        "hidden_dropout": 0.0,
    }
    changes = {**CONVOLUTION, **hidden, "deep_regularization": 0.01, "wide_regularization": 0.01}
    spec = family.make_spec(text_design(embedding="random32", **changes))
    batch, _ = make_inputs(spec.architecture)
    variables = make_text_model(spec.architecture, 2).init(
        jnp.uint32(1), batch, None, spec.hyperparameters
    )
    params = jax.tree.map(lambda w: w + 1.0, variables["params"])
    groups = {name: coefficients(settings) for name, settings in spec.optimizers.items()}
    zeros = jax.tree.map(jnp.zeros_like, params)
    moved, _ = apply_gradients(params, zeros, init_slots(params, groups), groups, jnp.int32(0), 10)
    for (path, before), after in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves(moved), strict=True
    ):
        assert bool(jnp.all(before != after)) == (path[-1].key in ("kernel", "table")), path
        assert bool(jnp.any(before != after)) == (path[-1].key in ("kernel", "table")), path


def test_draws_do_not_depend_on_padded_classes_or_rows():
    family = make_text_family("cpu")
    spec = family.make_spec(text_design(embedding="random32"))
    longer = spec.architecture._replace(rows=spec.architecture.rows + 100)
    starts = []
    for architecture, classes in ((spec.architecture, 2), (longer, 5)):
        batch, _ = make_inputs(spec.architecture)
        model = make_text_model(architecture, classes)
        variables = model.init(jnp.uint32(1), batch, None, spec.hyperparameters)
        starts.append(variables["params"]["deep"])
    rows = spec.architecture.rows
    np.testing.assert_array_equal(starts[0]["table"], starts[1]["table"][:rows])
    np.testing.assert_array_equal(starts[0]["kernel"], starts[1]["kernel"][:2])


def test_own_embeddings_join_the_choices():
    space = make_text_family("cpu", {"glove50": 50, "mine": 7}).space
    assert space.decisions[0].choices[:2] == ("glove50", "mine")
    assert space.decisions[1].active_if == {"embedding": ("glove50", "mine")}
    without = make_text_family("cpu", {}).space
    assert "fine_tune" not in without.names
    spec = make_text_family("cpu", {"mine": 7}).make_spec(text_design(embedding="mine"))
    assert spec.architecture.size == 8 and spec.architecture.pretrained  # padded
    assert spec.preprocessing == TextPreprocessing(lowercase=True, strip=True)
    assert spec.architecture.rows == PRESETS["cpu"].vocabulary


@pytest.mark.parametrize(("size", "padded"), [(1, 4), (4, 4), (50, 52), (300, 300)])
def test_padded_sizes(size, padded):
    assert padded_size(size) == padded


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(("gpu",), "there are cpu, full"), (("cpu", {"random32": 5}), "'random32' is taken")],
)
def test_refusals(arguments, message):
    with pytest.raises(UserError, match=message):
        make_text_family(*arguments)
