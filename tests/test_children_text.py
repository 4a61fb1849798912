import jax
import jax.numpy as jnp
import numpy as np
import pytest
from text_child import CONVOLUTION, evaluate, make_child, make_inputs, text_design

from mnms_jax.children.text import (
    PRESETS,
    TextPreprocessing,
    make_text_family,
    make_text_model,
    padded_size,
)
from mnms_jax.controller import make_random_policy
from mnms_jax.migrate import match_spaces, migrate_trials
from mnms_jax.space import Decision
from mnms_jax.training.optimizer import apply_gradients, coefficients, init_slots
from mnms_jax.transfer import make_bank
from mnms_jax.types import UserError

# The 21 decisions of Houlsby et al. (2019) and the optimiser.
NAMES = """embedding fine_tune lowercase strip convolution conv_activation conv_batch_norm
conv_max_ngram conv_dropout conv_filters conv_embedding_dropout hidden_layers hidden_size
hidden_activation normalization hidden_dropout optimizer deep_learning_rate deep_regularization
wide_learning_rate wide_regularization samples""".split()


def random_designs(space, number, seed=0):
    sample = make_random_policy(space).sample
    actions = sample({}, jax.random.key(seed), jnp.int32(0), number).actions
    return [space.decode(row) for row in np.asarray(actions)]


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


def test_a_sentence_encoder_has_no_table_to_tune_and_no_words_to_convolve():
    plain = make_text_family("cpu").space
    assert make_text_family("cpu", encoders={}).space.fingerprint == plain.fingerprint
    family = make_text_family("cpu", encoders={"whole": 6})
    words = plain.decisions[0].choices
    changed = [a for a, b in zip(family.space.decisions, plain.decisions, strict=True) if a != b]
    assert changed == [
        Decision("embedding", (*words, "whole")),
        Decision("convolution", (False, True), {"embedding": words}),
    ]
    for name in ("random32", "glove50", "whole"):
        actions = family.space.encode(text_design(embedding=name, samples=20_000, **CONVOLUTION))
        design = family.space.decode(actions)
        architecture = family.make_spec(design).architecture
        assert architecture.encoded == (name == "whole") == ("convolution" not in design)
    assert not {"fine_tune", "conv_filters"} & design.keys() and architecture.pooled
    assert str(architecture) == "whole frozen linear" and architecture.size == 6
    with pytest.raises(UserError, match="'whole' is taken"):
        make_text_family("cpu", {"whole": 50}, encoders={"whole": 6})


def test_trials_move_into_a_space_with_an_encoder():
    old, new = (make_text_family("cpu", encoders=e).space for e in ({}, {"whole": 6}))
    designs = [text_design(samples=20_000, **changes) for changes in ({}, CONVOLUTION)]
    bank = make_bank(old, [[(design, 0.5) for design in designs]])
    moved = migrate_trials(match_spaces(old, new, {}), old, new, bank)
    assert [new.decode(row) for row in np.asarray(moved.actions[0])] == designs
    assert moved.size[0] == 2


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
