import hashlib

import numpy as np
import pytest

from mnms_jax.tasks.text import deduplicate, normalize, split_rows

_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello, World!", "hello world"),
        ("  tabs\tand\nlines ", "tabs and lines"),
        ("don't", "don t"),
        ("ÜBER Straße, ¿Qué?", "über straße qué"),
        ("日本語。テスト", "日本語 テスト"),
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
def test_split_rows_takes_the_shares_and_loses_no_row(rows: int, sizes: list[int]) -> None:
    texts = [f"text {row}" for row in range(rows)]
    labels = [row % 7 for row in range(rows)]
    parts = split_rows(texts, labels, _SHARES)
    assert list(parts) == list(_SHARES)
    assert [len(part.texts) for part in parts.values()] == sizes
    assert all(part.labels.dtype == np.int32 for part in parts.values())
    pairs = [
        pair
        for part in parts.values()
        for pair in zip(part.texts, part.labels.tolist(), strict=True)
    ]
    assert sorted(pairs) == sorted(zip(texts, labels, strict=True))


def test_split_rows_orders_by_a_hash_of_seed_and_text() -> None:
    texts = ["alpha", "beta", "gamma", "delta"]
    order = sorted(texts, key=lambda text: hashlib.sha256(b"3:" + text.encode()).digest())
    parts = split_rows(texts, [0, 1, 2, 3], {"first": 0.5, "second": 0.5}, seed=3)
    assert [*parts["first"].texts, *parts["second"].texts] == order
    assert parts["first"].labels.tolist() == [texts.index(text) for text in order[:2]]


def test_split_rows_depends_on_the_seed_and_not_on_the_order() -> None:
    texts = [f"text {row}" for row in range(60)]
    labels = list(range(60))
    forward = split_rows(texts, labels, _SHARES, seed=0)
    backward = split_rows(texts[::-1], labels[::-1], _SHARES, seed=0)
    other = split_rows(texts, labels, _SHARES, seed=1)
    for name in _SHARES:
        assert forward[name].texts == backward[name].texts
        np.testing.assert_array_equal(forward[name].labels, backward[name].labels)
        assert set(forward[name].texts) != set(other[name].texts)


def test_split_rows_needs_a_label_of_each_text_at_least() -> None:
    with pytest.raises(IndexError):
        split_rows(["a", "b", "c"], [0], {"all": 1.0})
