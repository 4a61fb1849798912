import json
import pathlib
import sys

import jax
import numpy as np
import pytest
import tokenizers
from toy import make_task

from mnms_jax.bench import make_bench
from mnms_jax.card import write_card
from mnms_jax.config import Config
from mnms_jax.drawing import outline
from mnms_jax.export import load_child, save_child
from mnms_jax.stablehlo import export_stablehlo
from mnms_jax.tasks import sentences
from mnms_jax.tasks.sentences import (
    ENCODERS,
    EncoderSource,
    SentenceEncoder,
    check_encoder,
    encode_sentences,
    group_weights,
    kept_features,
    sentence_features,
)
from mnms_jax.training.fit import Request
from mnms_jax.types import UserError

TASK = make_task("one", 120, num_classes=2, seed=1)
SIZE, HIDDEN = 8, 12


def make_tiny() -> SentenceEncoder:
    """Returns an encoder of random weights, and of the words of the toy task."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "film", "book", "was", "so"]
    words += [f"onecue{c}{i}" for c in range(2) for i in range(3)]
    vocabulary = {word: i for i, word in enumerate(words)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, "[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_truncation(256)
    shapes = {f"embeddings.{name}_embeddings.weight": (rows, SIZE) for name, rows in [
        ("word", len(words)), ("position", 256), ("token_type", 2),
    ]}  # fmt: skip
    shapes |= {f"embeddings.LayerNorm.{part}": (SIZE,) for part in ("weight", "bias")}
    for layer in range(2):
        for name, (rows, columns) in {
            **{f"attention.self.{part}": (SIZE, SIZE) for part in ("query", "key", "value")},
            "attention.output.dense": (SIZE, SIZE),
            "intermediate.dense": (HIDDEN, SIZE),
            "output.dense": (SIZE, HIDDEN),
        }.items():
            shapes[f"encoder.layer.{layer}.{name}.weight"] = (rows, columns)
            shapes[f"encoder.layer.{layer}.{name}.bias"] = (rows,)
        for name in ("attention.output", "output"):
            for part in ("weight", "bias"):
                shapes[f"encoder.layer.{layer}.{name}.LayerNorm.{part}"] = (SIZE,)
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    return SentenceEncoder(tokenizer, group_weights(tensors), num_heads=2)


@pytest.fixture
def tiny(monkeypatch, tmp_path):
    """Has a tiny encoder in place of the real one, and the features in a folder of their own."""
    monkeypatch.setitem(ENCODERS, "minilm_encoder", EncoderSource(SIZE, "f" * 64, make_tiny))
    monkeypatch.setattr(sentences, "cache_folder", lambda: tmp_path / "cache")
    forget()
    yield "minilm_encoder"
    forget()


def forget():
    sentences._load.cache_clear()
    sentences._remembered.cache_clear()


def test_the_real_encoder_gives_what_its_authors_library_does():
    texts = ["A film that nobody should miss.", "Un café, s'il vous plaît!", "good " * 600]
    # By sentence-transformers 6.2.0 with PyTorch 2.13.0, from the same archive.
    expected = [
        [-0.06412626, 0.01842714, 0.04648646, 0.00563531, 0.03295763],
        [-0.0369525, -0.00745827, -0.0007668, 0.00517866, -0.09104034],
        [-0.03083705, 0.03463009, 0.0601917, 0.0105347, 0.00906013],
    ]
    features = sentence_features("minilm_encoder", texts)
    assert features.shape == (3, 384) and features.dtype == np.float32
    np.testing.assert_allclose(np.mean(features**2, axis=1), 1, rtol=1e-5)
    features = features / np.sqrt(384)  # theirs have unit length
    np.testing.assert_allclose(features[:, [0, 1, 100, 200, 383]], expected, atol=1e-6)
    np.testing.assert_allclose(features.sum(1), [0.07936022, -0.04763094, -1.3460505], atol=2e-5)


def test_a_texts_features_depend_on_nothing_else():
    encoder = make_tiny()
    texts = ["", "the film", "film the", "so " * 14, "so " * 15, "so " * 254, "so " * 900, "was"]
    features = encode_sentences(encoder, texts * 30)
    for i, text in enumerate(texts):
        (alone,) = encode_sentences(encoder, [text])
        np.testing.assert_array_equal(features[i :: len(texts)], np.tile(alone, (30, 1)))
    # Order counts; so does length, up to the most word pieces, and [CLS] and [SEP] are two of them.
    assert np.abs(features[1] - features[2]).max() > 1e-3
    assert np.abs(features[3] - features[4]).max() > 1e-3
    np.testing.assert_array_equal(features[5], features[6])
    assert encode_sentences(encoder, []).shape == (0, SIZE)


def test_padding_changes_no_more_than_rounding(monkeypatch):
    texts = ["", "the film was so so", "so " * 10]
    features = encode_sentences(make_tiny(), texts)
    monkeypatch.setattr(sentences, "_LENGTHS", (64,))
    np.testing.assert_allclose(encode_sentences(make_tiny(), texts), features, atol=1e-6)


def test_features_are_computed_once(tiny, tmp_path, monkeypatch, caplog):
    texts = ("the film", "was so", "\0")
    features = kept_features(tiny, texts)
    np.testing.assert_array_equal(features, encode_sentences(make_tiny(), texts))
    forget()
    (file,) = (tmp_path / "cache" / "features").glob("*.npz")
    with monkeypatch.context() as patch:
        patch.setattr(sentences, "encode_sentences", lambda *_: pytest.fail("encoded again"))
        np.testing.assert_array_equal(kept_features(tiny, texts), features)
    # Others are others, even where the characters are the same.
    assert len(kept_features(tiny, ("the film", "was so\0"))) == 2
    content = bytearray(file.read_bytes())
    for damage in (content[:-30], content[:-200] + b"?" + content[-199:], b""):
        file.write_bytes(damage)
        np.testing.assert_array_equal(kept_features(tiny, texts), features)
        assert file.read_bytes() == content


def test_a_cache_that_can_not_be_written_is_said(tiny, tmp_path):
    (tmp_path / "cache").touch()
    with pytest.raises(UserError, match=r"cannot keep .*\.npz in the cache folder"):
        kept_features(tiny, ["the film"])


def test_what_is_missing_is_said(monkeypatch):
    with pytest.raises(UserError, match="'other' is unknown; there are minilm_encoder"):
        check_encoder("other")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    forget()
    with pytest.raises(UserError, match=r"pip install 'mnms_jax\[encoder\]'"):
        make_bench(Config(tasks=("one",), embeddings=("minilm_encoder",)), [TASK])


def test_a_child_of_an_encoder_from_its_training_to_its_programs(tiny, tmp_path: pathlib.Path):
    bench = make_bench(Config(tasks=("one",), embeddings=(tiny,)), [TASK])
    assert bench.inputs.digests[tiny] == "f" * 16
    design = {
        **{"embedding": tiny, "lowercase": True, "strip": True, "hidden_layers": 0},
        **{"optimizer": "adam", "deep_learning_rate": 0.05, "deep_regularization": 0.0},
        **{"wide_learning_rate": 0.001, "wide_regularization": 0.0, "samples": 20_000},
    }
    assert bench.family.space.decode(bench.family.space.encode(design)) == design
    outcome, variables = bench.trainer.fit(Request(0, "one", 0, design))
    assert set(variables["params"]["deep"]) == {"kernel"}  # the encoder isn't trained
    child = bench.make_child(0, design, variables)
    split = TASK.splits["validation"]
    found = child.predict_proba(split.inputs)
    # The texts' features stood beside their labels, though rows are sorted.
    assert np.mean(found.argmax(1) == split.labels) == pytest.approx(float(outcome.accuracy))
    assert outcome.accuracy > 0.8

    save_child(tmp_path / "child", child)
    write_card(tmp_path / "child", TASK, "one", design, [], "")
    assert "all-MiniLM-L6-v2, Apache-2.0" in (tmp_path / "child" / "README.md").read_text()
    again = load_child(tmp_path / "child")
    np.testing.assert_array_equal(again.predict_proba(split.inputs), found)
    assert again.predict([]) == [] and np.isfinite(again.predict_proba(["", "new"])).all()
    saved = json.loads((tmp_path / "child" / "child.json").read_text())
    assert [box.title for box in outline(saved).towers[0]] == ["text", tiny, "linear"]

    export_stablehlo(tmp_path / "out", again)
    program = jax.export.deserialize(bytearray((tmp_path / "out/child.stablehlo").read_bytes()))
    about = json.loads((tmp_path / "out" / "child.json").read_text())
    assert about["inputs"]["pooled"]["shape"] == ["n", SIZE]
    assert about["encoder"]["sentence_encoder"] == tiny
    arrays = {name: x for name, x in child.encode(split.inputs)._asdict().items() if x is not None}
    np.testing.assert_allclose(program.call(arrays), found, atol=1e-5)
