"""Text to numbers: normalising, splitting, tokenising and vocabularies."""

import functools
import itertools
import re
import unicodedata
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from mnms_jax.children.ragged import Ragged
from mnms_jax.children.text import TextArchitecture, TextBatch, TextPreprocessing, TextSizes
from mnms_jax.tasks.splits import split_rows, take, unique_rows
from mnms_jax.types import AnyArray, Split

_WORD = re.compile(r"\w+")
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
# Scripts that put no spaces between words, whose characters are taken for words: Thai, Lao,
# Tibetan, Burmese, Khmer, Japanese and Chinese.
_SPACELESS = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff"
    "\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"
)
PADDING, UNKNOWN = 0, 1
_SUBWORD = 3  # characters of an n-gram; longer ones too would make texts thrice as long
_MOST_SUBWORDS = 8  # n-grams a word, in the mean over the longest text; the rest is cut off


@functools.cache
def _patterns() -> tuple[re.Pattern, re.Pattern]:
    """Returns patterns of words, and of words and punctuation marks, in any script.

    What Python takes for letters lacks marks that combine with them, as the vowel signs of Hindi.
    """
    marks = "".join(c for c in map(chr, range(0x20000)) if unicodedata.category(c).startswith("M"))
    marks += "\u200c\u200d\u00ad"  # joiners within words, and hyphens that aren't shown
    letters = rf"[^\W{_SPACELESS}]+"
    word = rf"{letters}(?:[{marks}]+(?:{letters})?)*|(?=\w)[{_SPACELESS}][{marks}]*"
    return re.compile(word), re.compile(rf"{word}|[^\w\s{marks}]")


def find_words(text: str, *, marks: bool = False) -> list[str]:
    """Returns the words of a text, and its punctuation marks if asked to.

    In scripts that put no spaces between words, each character counts as one.
    """
    words, words_or_marks = (_WORD, _WORD_OR_MARK) if text.isascii() else _patterns()
    return (words_or_marks if marks else words).findall(text)


def normalize(text: str) -> str:
    """Returns the lower-case words of a text: two texts with the same words are repeats."""
    return " ".join(find_words(text.lower()))


def deduplicate(
    texts: Sequence[str], labels: Sequence[int], held_out: Sequence[Split] = ()
) -> tuple[list[str], list[int]]:
    """Keeps the first of each group of repeats, and none where their labels disagree.

    Texts without a single word are dropped too, and so are those that are held out.
    """
    excluded = {"", *(normalize(text) for split in held_out for text in split.inputs)}
    rows = unique_rows([normalize(text) for text in texts], labels, excluded)
    return [texts[row] for row in rows], [labels[row] for row in rows]


def exclude(split: Split, held_out: Split) -> Split:
    """Returns a split without the texts that another one has too."""
    known = {normalize(text) for text in held_out.inputs}
    return take(
        split, [row for row, text in enumerate(split.inputs) if normalize(text) not in known]
    )


def split_texts(
    texts: Sequence[str],
    labels: Sequence[int],
    fractions: Mapping[str, float],
    seed: int = 0,
    *,
    stratify: bool = False,
) -> dict[str, Split]:
    """Splits texts at random into named parts, see `split_rows`; the texts are the keys."""
    parts = split_rows(texts, labels, fractions, seed, stratify=stratify)
    return {
        name: Split(tuple(texts[row] for row in own), np.array([labels[r] for r in own], np.int32))
        for name, own in parts.items()
    }


class TextEncoder(NamedTuple):
    """All that turns a task's texts into numbers; fitted on its training texts alone."""

    preprocessing: TextPreprocessing
    length: int  # L, most words of a text; the rest is cut off
    num_ngrams: int  # W, most known n-grams of a text; the rest is cut off
    vocabulary: tuple[str, ...]  # words by token; the first two are padding and unknown
    hashes: np.ndarray  # int64 [G], of the commonest unigrams and bigrams, ascending
    idf: np.ndarray  # float32 [G], their inverse document frequencies


class TextRows(NamedTuple):
    """Encoded texts, padded with zeros."""

    tokens: AnyArray  # int32 [N, L]
    ngrams: AnyArray  # int32 [N, W], known unigrams and bigrams in their order, none twice
    weights: AnyArray  # float32 [N, W], their TF-IDF, of unit length
    subwords: AnyArray | None = None  # int32 [N, 8 L], hashed n-grams of characters, if asked for


def tokenize(text: str, preprocessing: TextPreprocessing) -> list[str]:
    """Returns the words of a text, and its punctuation marks unless they are stripped."""
    text = text.lower() if preprocessing.lowercase else text
    return find_words(text, marks=not preprocessing.strip)


def text_lengths(split: Split) -> np.ndarray:
    """Returns how many words each text has at most, whatever the preprocessing, int [N]."""
    longest = TextPreprocessing(lowercase=False, strip=False)
    return np.array([len(tokenize(text, longest)) for text in split.inputs])


def common_length(lengths: Sequence[np.ndarray], limit: int, percentile: float = 95.0) -> int:
    """Returns the number of words, a multiple of 8, that this share of every task's texts fits."""
    fits = [np.percentile(own, percentile) for own in lengths]
    return min(limit, _round_up(max(*fits, 1)))


def common_ngrams(encoders: Sequence[TextEncoder], splits: Sequence[Split]) -> int:
    """Returns the number of known n-grams, a multiple of 8, that 95 % of every task's texts fit.

    Args:
      encoders: one a task, without a limit of their own.
      splits: each task's training texts.
    """
    fits = [
        np.percentile((encode(encoder, split.inputs).ngrams > 0).sum(1), 95)
        for encoder, split in zip(encoders, splits, strict=True)
    ]
    return _round_up(max(*fits, 1))


def _round_up(number: float) -> int:
    return 8 * int(np.ceil(number / 8))


def fit_encoder(
    texts: Sequence[str], preprocessing: TextPreprocessing, sizes: TextSizes, length: int
) -> TextEncoder:
    """Returns the encoder of a task: its commonest words and its n-grams' frequencies.

    N-grams of a single text say nothing about others and are left out.

    Args:
      texts: training texts.
      preprocessing: how they become words.
      sizes: bounds of the vocabulary and of the n-grams.
      length: L, most words of a text.
    """
    words = [tokenize(text, preprocessing)[:length] for text in texts]
    counts = Counter(itertools.chain.from_iterable(words))
    common = sorted(counts, key=lambda word: (-counts[word], word))[: sizes.vocabulary - 2]
    ngrams = _hash_ngrams(words, length)
    hashes, documents = np.unique(ngrams[~_repeats(ngrams)], return_counts=True)
    hashes, documents = hashes[hashes != PADDING], documents[hashes != PADDING]
    hashes, documents = hashes[documents > 1], documents[documents > 1]
    known = np.sort(np.lexsort((hashes, -documents))[: sizes.ngrams - 1])
    idf = np.log((1 + len(texts)) / (1 + documents[known])) + 1
    vocabulary = ("<padding>", "<unknown>", *common)
    return TextEncoder(
        preprocessing, length, 2 * length, vocabulary, hashes[known], idf.astype(np.float32)
    )


def encode(encoder: TextEncoder, texts: Sequence[str], *, subwords: bool = False) -> TextRows:
    """Returns N texts as arrays, those of subwords if asked for."""
    words = [tokenize(text, encoder.preprocessing)[: encoder.length] for text in texts]
    index = {word: token for token, word in enumerate(encoder.vocabulary)}
    tokens = _pad([[index.get(word, UNKNOWN) for word in row] for row in words], encoder.length)
    hashes = _hash_ngrams(words, encoder.length)
    place = np.searchsorted(encoder.hashes, hashes)
    # With an end mark, which no hash equals: there may be no known n-gram at all.
    known = (np.append(encoder.hashes, -1)[place] == hashes) & ~_repeats(hashes)
    first = np.argsort(~known, axis=1, kind="stable")[:, : encoder.num_ngrams]
    place, known = (np.take_along_axis(array, first, 1) for array in (place, known))
    ngrams = np.where(known, 1 + place, 0).astype(np.int32)
    weights = np.where(known, np.append(encoder.idf, 0)[place], 0)
    norm = np.linalg.norm(weights, axis=1, keepdims=True)
    weights = weights / np.maximum(norm, 1e-12)
    return TextRows(
        tokens.astype(np.int32),
        ngrams,
        weights.astype(np.float32),
        _hash_subwords(words, _MOST_SUBWORDS * encoder.length) if subwords else None,
    )


def make_batch(
    rows: TextRows,
    architecture: TextArchitecture,
    table: np.ndarray | None,
    lengths: tuple[int, ...] | None = None,
    features: np.ndarray | None = None,
) -> TextBatch:
    """Returns the inputs that an architecture takes, for N encoded texts.

    Args:
      rows: the texts.
      architecture: of the child.
      table: float32 [V, E], the architecture's pre-trained embeddings, if it has any.
      lengths: bounds on the texts of each group of a batch; by default one for all.
      features: float32 [N, E], of the architecture's sentence encoder, if it has one.
    """
    if architecture.encoded:
        return TextBatch(features, None, rows.ngrams, rows.weights)
    if architecture.pooled:
        assert table is not None
        pooled = _mean_embedding(np.asarray(rows.tokens), table)
        return TextBatch(pooled, None, rows.ngrams, rows.weights)
    tokens = getattr(rows, architecture.sequence)
    if architecture.hashed:
        tokens = _hash_rows(np.asarray(tokens), architecture.rows)
    ragged = Ragged(tokens, lengths or tokens.shape[1:])
    return TextBatch(None, ragged, rows.ngrams, rows.weights)


def _pad(rows: Sequence[Sequence[int]], length: int) -> np.ndarray:
    padded = np.zeros((len(rows), length), np.int64)
    for i, row in enumerate(rows):
        padded[i, : len(row)] = row
    return padded


def _hash_ngrams(words: Sequence[Sequence[str]], length: int) -> np.ndarray:
    """Returns positive hashes of unigrams and bigrams, int64 [N, 2 L]; 0 is padding."""
    hashes = {word: zlib.crc32(word.encode()) for word in {w for row in words for w in row}}
    unigrams = _pad([[hashes[word] for word in row] for row in words], length).astype(np.uint64)
    lengths = np.array([len(row) for row in words]).reshape(-1, 1)
    position = np.arange(length)
    following = np.roll(unigrams, -1, axis=1)
    # A linear map modulo 2^64 of the pair, cut to 48 bits: both words and their order matter.
    odd = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F], np.uint64)
    bigrams = (unigrams * odd[0] + following * odd[1]) >> np.uint64(16)
    unigrams = np.where(position < lengths, 1 + unigrams, PADDING)
    bigrams = np.where(position < lengths - 1, 2**33 + bigrams, PADDING)
    return np.stack([unigrams, bigrams], -1).reshape(len(words), 2 * length).astype(np.int64)


def _hash_subwords(words: Sequence[Sequence[str]], length: int) -> np.ndarray:
    """Returns positive hashes of words and their n-grams of characters, int32 [N, length].

    The n-grams of a word are those of "<word>", whose ends tell prefixes and suffixes from other
    parts, and that itself (Bojanowski et al. 2017); 0 is padding.
    """
    hashes = {}
    for word in {word for row in words for word in row}:
        marked = f"<{word}>"
        parts = [marked[i : i + _SUBWORD] for i in range(len(marked) - _SUBWORD + 1)]
        parts += [marked] * (len(word) > 1)  # else it is the one n-gram
        hashes[word] = [1 + zlib.crc32(part.encode()) % (2**31 - 1) for part in parts]
    rows = [itertools.chain.from_iterable(hashes[word] for word in row) for row in words]
    return _pad([list(itertools.islice(row, length)) for row in rows], length).astype(np.int32)


def _hash_rows(ngrams: np.ndarray, size: int) -> np.ndarray:
    """Returns n-grams as rows of a smaller table: 0 stays, all others share rows 1 to size - 1."""
    return np.where(ngrams == PADDING, PADDING, 1 + (ngrams - 1) % (size - 1)).astype(np.int32)


def _repeats(ngrams: np.ndarray) -> np.ndarray:
    """Returns where a row holds an n-gram that it has held before: bool like ngrams."""
    order = np.argsort(ngrams, axis=1, kind="stable")
    ordered = np.take_along_axis(ngrams, order, 1)
    same = np.zeros_like(ngrams, bool)
    same[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeats = np.zeros_like(same)
    np.put_along_axis(repeats, order, same, 1)
    return repeats


def _mean_embedding(tokens: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Returns the mean of the words' vectors, float32 [N, E], as a child's pooling has it."""
    mask = (tokens != PADDING)[..., None]
    total = np.zeros((len(tokens), table.shape[1]), np.float32)
    for position in range(tokens.shape[1]):  # not at once, which would take N L E floats
        total += table[tokens[:, position]] * mask[:, position]
    return total / np.maximum(mask.sum(1), 1)
