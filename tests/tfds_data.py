"""Writes small data sets in the real formats of TFDS, without a network.

The texts are made up; the label is decided by the sentiment words in them.
"""

import collections
import itertools
import pathlib
import random
import socket
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pytest

from mnms_jax.tasks import tfds as tfds_tasks
from mnms_jax.types import Split, Task, UserError

NUM_ROWS = 100  # of the tests that share a folder
PACKAGED = ("newsgroups", "reviews")
Rows = list[tuple[str | bytes, int]]

_WORDS = {
    0: ("dull", "tedious", "clumsy", "lifeless", "grating", "hollow", "dreadful", "muddled"),
    1: ("superb", "moving", "charming", "radiant", "witty", "gripping", "delightful", "tender"),
}
_PARTS = ("script", "cast", "score", "camera work", "ending", "dialogue", "pacing", "humour")
_OPENERS = ("all in all", "from the start", "in its own way", "for most viewers", "this time")


def _sentence(rng: random.Random, label: int) -> str:
    first, second = rng.sample(_WORDS[label], 2)
    part, other = rng.sample(_PARTS, 2)
    return f"{rng.choice(_OPENERS)} , the {part} is {first} and the {other} {second} "


def _distinct(seed: int, sentences: int) -> Iterator[tuple[str, int]]:
    """Yields (text, label) without end, labels in turn and no text twice."""
    rng = random.Random(seed)
    seen = set()
    for label in itertools.cycle((0, 1)):
        text = " ".join(_sentence(rng, label) for _ in range(sentences))
        while text in seen:
            text = " ".join(_sentence(rng, label) for _ in range(sentences))
        seen.add(text)
        yield text, label


def sst2_rows(num_rows: int) -> dict[str, Rows]:
    """Returns the rows by split: num_rows distinct ones in train, and some to be dropped.

    Dropped should be: a tenth repeated in capitals, a text with both labels, and one of validation.
    """
    rows = _distinct(seed=1, sentences=1)
    train, held = (list(itertools.islice(rows, n)) for n in (num_rows, max(10, num_rows // 4)))
    repeats = [(text.upper(), label) for text, label in train[::10]]
    clash = [("neither here nor there", 0), ("Neither here nor there .", 1)]
    unlabelled = [(text, -1) for text, _ in itertools.islice(rows, 20)]
    return {"train": train + repeats + clash + held[:1], "validation": held, "test": unlabelled}


def imdb_rows(num_rows: int) -> dict[str, Rows]:
    """As sst2_rows, with longer texts, and the same number of rows in train and test.

    The first text of test is not UTF-8.
    """
    rows = _distinct(seed=2, sentences=4)
    train, test = (
        [(text.replace(" , ", "<br /><br />"), label) for text, label in itertools.islice(rows, n)]
        for n in (num_rows, num_rows)
    )
    repeats = [(text.upper(), label) for text, label in train[::10]]
    clash = [("It was a film.", 0), ("it was a film", 1)]
    latin = (f"caf\xe9 {test[0][0]}".encode("latin-1"), test[0][1])
    unlabelled = [(text, -1) for text, _ in itertools.islice(rows, 20)]
    return {
        "train": train + repeats + clash + test[1:2],
        "test": [latin, *test[1:]],
        "unsupervised": unlabelled,
    }


def write(
    data_dir: pathlib.Path | str,
    dataset: str,
    features: Mapping[str, object],
    examples: Mapping[str, Sequence[dict[str, object]]],
    version: str = "1.0.0",
    file_format: str = "array_record",
) -> None:
    """Prepares a data set, with a configuration or without."""
    import tensorflow_datasets as tfds

    dataset_name, _, config_name = dataset.partition("/")

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        name = dataset_name
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = (tfds.core.BuilderConfig(name=config_name),) if config_name else ()

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, features=tfds.features.FeaturesDict(features)
            )

        def _split_generators(self, dl_manager):
            return {split: enumerate(rows) for split, rows in examples.items()}

        def _generate_examples(self):
            raise NotImplementedError("the splits above are generators already")

    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder = Builder(data_dir=data_dir, file_format=file_format)
    builder.download_and_prepare(download_config=config)


def write_sst2(
    data_dir: pathlib.Path | str,
    num_rows: int = 200,
    version: str = "2.0.0",
    file_format: str = "array_record",
) -> None:
    """Prepares glue/sst2 in data_dir: train, validation, and a test split without labels."""
    import tensorflow_datasets as tfds

    features = {
        "sentence": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["negative", "positive"]),
        "idx": np.int32,
    }
    examples = {
        split: [
            {"sentence": text, "label": label, "idx": i} for i, (text, label) in enumerate(rows)
        ]
        for split, rows in sst2_rows(num_rows).items()
    }
    write(data_dir, "glue/sst2", features, examples, version, file_format)


def write_imdb(data_dir: pathlib.Path | str, num_rows: int = 200) -> None:
    """Prepares imdb_reviews/plain_text in data_dir: train, test and unsupervised."""
    import tensorflow_datasets as tfds

    features = {
        "text": tfds.features.Text(),
        "label": tfds.features.ClassLabel(names=["neg", "pos"]),
    }
    examples = {
        split: [{"text": text, "label": label} for text, label in rows]
        for split, rows in imdb_rows(num_rows).items()
    }
    write(data_dir, "imdb_reviews/plain_text", features, examples)


def refused_url() -> str:
    """Returns an address that nobody answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/file.zip"


def load(name: str, path: pathlib.Path) -> Task:
    """Returns a task."""
    return tfds_tasks.load_tfds_task(name, str(path), PACKAGED)


def failure(name: str, path: pathlib.Path) -> str:
    """Returns why a task can't be had."""
    with pytest.raises(UserError) as caught:
        load(name, path)
    return str(caught.value)


def pairs(split: Split) -> collections.Counter[tuple[str, int]]:
    """Returns the rows, in no order."""
    return collections.Counter(zip(split.inputs, split.labels.tolist(), strict=True))
