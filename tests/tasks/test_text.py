import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from toy import make_task

from mnms_jax.children.text import PRESETS, TextPreprocessing, TextSizes, make_text_family
from mnms_jax.tasks.embeddings import WordVectors
from mnms_jax.tasks.inputs import TextInputs
from mnms_jax.tasks.text import (
    common_length,
    common_ngrams,
    deduplicate,
    encode,
    fit_encoder,
    make_batch,
    normalize,
    split_texts,
    text_lengths,
    tokenize,
)
from mnms_jax.types import Split, Task

_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  tabs\tand\nlines ", "tabs and lines"),
        ("don't", "don t"),
        ("ÜBER Straße, ¿Qué?", "über straße qué"),
        ("日本語。テスト", "日 本 語 テ ス ト"),
        ("call 0845-021 now_or_never", "call 0845 021 now_or_never"),
        ("... :-) !", ""),
        ("", ""),
    ],
)
def test_normalize_keeps_the_words_alone(text: str, expected: str) -> None:
    assert normalize(text) == expected
    assert normalize(expected) == expected


def test_deduplicate_keeps_the_first_of_repeats_as_it_was_written() -> None:
    texts = ["Good film.", "bad film", "good   FILM!", "Bad film?", "fair film"]
    assert deduplicate(texts, [1, 0, 1, 0, 1]) == (
        ["Good film.", "bad film", "fair film"],
        [1, 0, 1],
    )


def test_deduplicate_drops_contradictions_altogether() -> None:
    texts = ["so so", "fine", "So so!", "so-so"]
    assert deduplicate(texts, [0, 1, 1, 0]) == (["fine"], [1])


def test_deduplicate_drops_texts_without_words() -> None:
    assert deduplicate(["!!!", "", ":-)", "ok"], [0, 0, 1, 1]) == (["ok"], [1])


def test_deduplicate_tells_other_scripts_apart() -> None:
    texts = ["хорошо", "плохо", "bueno", "buenó"]
    assert deduplicate(texts, [1, 0, 1, 0]) == (texts, [1, 0, 1, 0])


def test_deduplicate_of_nothing_is_nothing() -> None:
    assert deduplicate([], []) == ([], [])


def test_deduplicate_needs_a_label_of_each_text() -> None:
    with pytest.raises(ValueError, match="shorter"):
        deduplicate(["a", "b"], [0])


@pytest.mark.parametrize(
    ("rows", "sizes"), [(100, [80, 10, 10]), (33, [26, 3, 4]), (5, [4, 0, 1]), (0, [0, 0, 0])]
)
def test_split_texts_takes_the_shares_and_loses_no_row(rows: int, sizes: list[int]) -> None:
    texts = [f"text {row}" for row in range(rows)]
    labels = [row % 7 for row in range(rows)]
    parts = split_texts(texts, labels, _SHARES)
    assert list(parts) == list(_SHARES)
    assert [len(part.inputs) for part in parts.values()] == sizes
    assert all(part.labels.dtype == np.int32 for part in parts.values())
    pairs = [
        pair
        for part in parts.values()
        for pair in zip(part.inputs, part.labels.tolist(), strict=True)
    ]
    assert sorted(pairs) == sorted(zip(texts, labels, strict=True))


def test_split_texts_orders_by_a_hash_of_seed_and_text() -> None:
    texts = ["alpha", "beta", "gamma", "delta"]
    order = sorted(texts, key=lambda text: hashlib.sha256(b"3:" + text.encode()).digest())
    parts = split_texts(texts, [0, 1, 2, 3], {"first": 0.5, "second": 0.5}, seed=3)
    assert [*parts["first"].inputs, *parts["second"].inputs] == order
    assert parts["first"].labels.tolist() == [texts.index(text) for text in order[:2]]


def test_split_texts_depends_on_the_seed_and_not_on_the_order() -> None:
    texts = [f"text {row}" for row in range(60)]
    labels = list(range(60))
    forward = split_texts(texts, labels, _SHARES, seed=0)
    backward = split_texts(texts[::-1], labels[::-1], _SHARES, seed=0)
    other = split_texts(texts, labels, _SHARES, seed=1)
    for name in _SHARES:
        assert forward[name].inputs == backward[name].inputs
        np.testing.assert_array_equal(forward[name].labels, backward[name].labels)
        assert set(forward[name].inputs) != set(other[name].inputs)


def test_split_texts_needs_a_label_of_each_text_at_least() -> None:
    with pytest.raises(IndexError):
        split_texts(["a", "b", "c"], [0], {"all": 1.0})


SIZES = TextSizes(vocabulary=6, length=5, ngrams=64, hashed=32)
PLAIN = TextPreprocessing(lowercase=True, strip=True)


@pytest.mark.parametrize(
    ("lowercase", "strip", "expected"),
    [
        (True, True, ["it", "s", "a", "été", "42"]),
        (False, True, ["It", "s", "a", "ÉTÉ", "42"]),
        (True, False, ["it", "'", "s", "a", "été", "!", "!", "42"]),
    ],
)
def test_tokenize(lowercase, strip, expected):
    assert tokenize("It's a ÉTÉ!! 42", TextPreprocessing(lowercase, strip)) == expected


def test_common_length_is_a_multiple_of_eight_that_fits_most():
    lengths = text_lengths(Split(tuple("a " * n for n in range(1, 101)), np.zeros(100, np.int32)))
    assert lengths.tolist() == [*range(1, 101)]
    assert common_length([lengths], limit=256) == 96  # the 95th percentile is 95.05
    assert common_length([lengths], limit=40) == 40
    assert common_length([np.zeros(1, int)], limit=40) == 8


def test_it_is_said_when_many_texts_are_cut(caplog):
    caplog.set_level("INFO")
    splits = {
        name: Split(tuple("word " * n for n in range(30, 50)), np.arange(20, dtype=np.int32) % 2)
        for name in ("train", "validation", "test")
    }
    long, short = (Task(name, splits, ("a", "b")) for name in ("long", "short"))
    TextInputs([short], PRESETS["full"], {})
    assert not caplog.messages
    TextInputs([long], PRESETS["cpu"], {})
    assert caplog.messages == [
        "long: 45 % of its texts are longer than 40 words, the most that this space takes, and "
        "are cut there"
    ]


def test_vocabulary_holds_the_commonest_words_of_the_training_texts():
    encoder = fit_encoder(["b a", "b a c", "b d e f"], PLAIN, SIZES, 5)
    assert encoder.vocabulary == ("<padding>", "<unknown>", "b", "a", "c", "d")
    rows = encode(encoder, ["b zzz a", "", "d d d d d d d"])
    assert rows.tokens.tolist() == [[2, 1, 3, 0, 0], [0] * 5, [5] * 5]
    assert rows.tokens.dtype == np.int32


def test_tf_idf_by_hand():
    encoder = fit_encoder(["b a", "c b a", "a c", "b d"], PLAIN, SIZES, 4)
    rows = encode(encoder, ["d b a b a"])  # cut to "d b a b": d, "d b", b, "b a", a, "a b", b
    assert rows.ngrams.shape == rows.weights.shape == (1, 8)
    # d is in one training text alone, "d b" and "a b" in none, and the second b repeats the first.
    # What remains moves to the left: b, "b a" and a, in three, two and three of four texts.
    three, two = np.log(5 / 4) + 1, np.log(5 / 3) + 1
    expected = np.array([three, two, three, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(rows.weights[0], expected / np.linalg.norm(expected), rtol=1e-6)
    assert (rows.ngrams[0] > 0).tolist() == [True] * 3 + [False] * 5
    assert len(set(rows.ngrams[0, :3])) == 3


def test_ngrams_of_a_single_text_are_unknown():
    encoder = fit_encoder(["b b b b", "a c"], PLAIN, SIZES, 4)  # repeats within a text count once
    assert encoder.hashes.size == 0
    rows = encode(encoder, ["b a", "c", ""])
    assert not rows.ngrams.any() and not rows.weights.any()
    assert rows.tokens[0, :2].all()


def test_known_ngrams_beyond_a_limit_are_cut_off():
    texts = ["a b c d", "a b c d"]
    encoder = fit_encoder(texts, PLAIN, SIZES, 4)
    whole, cut = (encode(encoder._replace(num_ngrams=n), ["z z a b"]) for n in (8, 2))
    assert (whole.ngrams[0] > 0).tolist() == [True] * 3 + [False] * 5  # a, "a b" and b
    np.testing.assert_array_equal(cut.ngrams, whole.ngrams[:, :2])
    np.testing.assert_allclose(np.linalg.norm(cut.weights), 1, rtol=1e-6)


def test_common_number_of_ngrams_is_a_multiple_of_eight_that_fits_most():
    words = [f"w{i}" for i in range(25)]
    # Every text is there twice; one with n words has n + n - 1 known n-grams.
    texts = [" ".join(words[:n]) for n in range(1, 21) for _ in range(2)] + [" ".join(words)]
    split = Split(tuple(texts), np.zeros(len(texts), np.int32))
    encoder = fit_encoder(texts, PLAIN, SIZES._replace(ngrams=1000), 25)
    assert common_ngrams([encoder], [split]) == 40  # the 95th percentile is 39
    one = Split(("a a",), np.zeros(1, np.int32))
    tiny = fit_encoder(one.inputs, PLAIN, SIZES, 25)
    assert common_ngrams([tiny], [one]) == 8
    assert common_ngrams([tiny, encoder], [one, split]) == 40


def test_ngrams_are_told_apart_and_the_commonest_kept():
    texts = 2 * [f"w{i} w{j}" for i in range(30) for j in range(30) if i != j]
    everything = fit_encoder(texts, PLAIN, SIZES._replace(ngrams=2**12), 2)
    assert everything.hashes.size == 30 + 30 * 29  # no two collide
    few = fit_encoder(texts, PLAIN, SIZES._replace(ngrams=31), 2)
    assert few.hashes.size == 30  # the words, which are commoner than any pair
    assert set(few.hashes) < set(everything.hashes)
    assert encode(few, texts).ngrams.max() == 30
    assert (encode(few, ["w1 w2"]).ngrams[0] > 0).tolist() == [True, True, False, False]


def test_tf_idf_agrees_with_scikit_learn():
    from sklearn.feature_extraction.text import TfidfVectorizer

    texts = ["the film was good", "the film was bad", "a very very good book", "bad bad bad"]
    encoder = fit_encoder(texts, PLAIN, SIZES._replace(ngrams=2**12), 8)
    rows = encode(encoder, texts)
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), binary=True, token_pattern=r"\w+", min_df=2)
    expected = vectorizer.fit_transform(texts)
    assert encoder.hashes.size == len(vectorizer.vocabulary_) == 7
    for weights, reference in zip(rows.weights, expected, strict=True):
        np.testing.assert_allclose(
            np.sort(weights[weights > 0]), np.sort(reference.data), rtol=1e-5
        )


def test_batches_hold_what_their_architecture_reads():
    encoder = fit_encoder(["b a", "b c d", "d a"], PLAIN, SIZES, 3)
    rows = encode(encoder, ["b d zzz", ""])
    assert rows.ngrams[0].any()
    table = np.arange(12, dtype=np.float32).reshape(6, 2)
    family = make_text_family("cpu", {"mine": 2})
    base = {d.name: d.choices[0] for d in family.space.decisions}
    frozen = family.make_spec({**base, "embedding": "mine"}).architecture
    batch = make_batch(rows, frozen, table)
    assert batch.tokens is None
    np.testing.assert_allclose(batch.pooled, [(table[2] + table[5] + table[1]) / 3, [0, 0]])
    hashed = family.make_spec({**base, "embedding": "hashed32"}).architecture._replace(rows=4)
    batch = make_batch(rows, hashed, None)
    assert batch.pooled is None and batch.tokens.values.shape == (2, 6)
    tokens = batch.tokens.values
    assert ((tokens > 0) == (rows.ngrams > 0)).all() and tokens.max() < 4


def test_subwords_are_of_words_never_seen_too():
    encoder = fit_encoder(["b a", "b c d", "d a"], PLAIN, SIZES, 3)
    assert encode(encoder, ["a"]).subwords is None
    texts = ["walking", "walked", "a", "walking a", "", "x" * 40]
    rows = encode(encoder, texts, subwords=True)
    assert rows.subwords.shape == (6, 24)
    walking, walked, single, both, empty, long = (
        set(row[row > 0].tolist()) for row in rows.subwords
    )
    # <wa wal alk lki kin ing ng> and the word; <wa wal alk lke ked ed> and the word.
    assert (len(walking), len(walked), len(walking & walked)) == (8, 7, 3)
    assert len(single) == 1 and both == walking | single and not empty
    assert len(long) == 2 and (rows.subwords[5] > 0).all()  # <xx xxx, and what is cut off
    family = make_text_family("cpu", {"mine": 2}, subwords=True)
    base = {d.name: d.choices[0] for d in family.space.decisions}
    architecture = family.make_spec({**base, "embedding": "subwords32"}).architecture
    assert str(architecture).startswith("subwords32") and architecture.rows == 2**13
    tokens = make_batch(rows, architecture, None).tokens.values
    assert tokens.shape == (6, 24) and tokens.max() < 2**13
    assert ((tokens > 0) == (rows.subwords > 0)).all()
    assert "subwords32" not in make_text_family("cpu").space.decisions[0].choices
    words = family.make_spec({**base, "embedding": "random32"}).architecture
    np.testing.assert_array_equal(make_batch(rows, words, None).tokens.values, rows.tokens)


def test_all_tasks_share_shapes_and_padding_is_never_counted():
    short = make_task("short", 30, num_classes=2, seed=1)
    long = make_task("long", 90, num_classes=4, seed=2)
    inputs = TextInputs((short, long), PRESETS["cpu"], {})
    family = make_text_family("cpu", {})
    base = {d.name: d.choices[0] for d in family.space.decisions}
    spec = family.make_spec(base)
    first, second = (inputs.child_data(i, spec) for i in (0, 1))
    assert jax.tree.map(jnp.shape, first) == jax.tree.map(jnp.shape, second)
    assert (int(first.num_train), int(second.num_train)) == (30, 90)
    assert (int(first.num_classes), inputs.num_classes) == (2, 4)
    # Training rows, padding to a batch, then rows to evaluate on, and padding again.
    assert (int(first.first_evaluation), int(first.num_evaluation)) == (128, 10)
    assert first.labels.shape == (128 + 30,)
    used = np.r_[0:30, 128:138]
    for array in (first.inputs.tokens.values, first.inputs.ngrams, first.inputs.weights):
        assert len(array) == 158
        assert np.asarray(array[used]).any(1).all()
        assert not np.delete(np.asarray(array), used, 0).any()
    encoder = inputs.encoder(0, spec.preprocessing)
    for split, rows in (("train", slice(0, 30)), ("validation", slice(128, 138))):
        expected = encode(encoder, short.splits[split].inputs)
        assert expected.ngrams.shape[1] == encoder.num_ngrams
        order = np.argsort((expected.tokens > 0).sum(1), kind="stable")  # by length
        assert (order != np.arange(len(order))).any()
        np.testing.assert_array_equal(first.labels[rows], short.splits[split].labels[order])
        np.testing.assert_array_equal(first.inputs.tokens.values[rows], expected.tokens[order])
        np.testing.assert_array_equal(first.inputs.ngrams[rows], expected.ngrams[order])
    assert inputs.child_data(0, spec) is first  # kept, not made again


def test_pretrained_tables_are_padded_with_zeros():
    task = make_task("one", 30)
    vectors = WordVectors({"film": 0, "book": 1}, np.arange(1, 11, dtype=np.float32).reshape(2, 5))
    family = make_text_family("cpu", {"mine": 5})
    base = {d.name: d.choices[0] for d in family.space.decisions}
    spec = family.make_spec({**base, "embedding": "mine", "fine_tune": True})
    inputs = TextInputs([task], PRESETS["cpu"], {"mine": vectors})
    table = inputs.child_data(0, spec).constants
    assert table.shape == (PRESETS["cpu"].vocabulary, 8)
    row = inputs.encoder(0, spec.preprocessing).vocabulary.index("book")
    np.testing.assert_array_equal(table[row], [6, 7, 8, 9, 10, 0, 0, 0])
    assert not table[:2].any() and not table[:, 5:].any()
