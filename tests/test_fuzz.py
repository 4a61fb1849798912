"""Properties that hold for whatever comes in: random spaces, logs, files and flags.

A modest number of examples; MNMS_FUZZ=5000 tries so many of each, with other ones at every run.
"""

import contextlib
import io
import json
import os
import pathlib
import tempfile
import zipfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from absl import flags, logging
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mnms_jax.cli import config_from_flags, define_flags
from mnms_jax.config import Config
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.store import TrialLog, TrialRecord
from mnms_jax.tasks.embeddings import load_word_vectors
from mnms_jax.tasks.files import load_file_task, parse_file_task
from mnms_jax.tasks.images import load_idx_task
from mnms_jax.tasks.registry import check_tasks
from mnms_jax.tasks.table_files import read_table
from mnms_jax.types import Task, UserError

_MANY = int(os.environ.get("MNMS_FUZZ", "0"))
settings.register_profile(
    "fuzz",
    max_examples=_MANY or 60,
    derandomize=not _MANY,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
settings.load_profile("fuzz")


@pytest.fixture(autouse=True)
def quiet():
    before = logging.get_verbosity()
    logging.set_verbosity(logging.FATAL)
    yield
    logging.set_verbosity(before)


@contextlib.contextmanager
def written(content: bytes, name: str):
    """A file with this content, in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / name
        path.write_bytes(content)
        yield path


def refused_or(function, *args):
    """Returns what a function returns, or None where it refuses, in one line that says why."""
    try:
        return function(*args)
    except UserError as error:
        assert str(error) and "\n" not in str(error)
        return None


# Search spaces.
_names = st.text("abcdefgh", min_size=1, max_size=3)
_choices = st.one_of(
    st.booleans(), st.integers(-3, 3), st.floats(-2, 2, width=16), st.text("xyz", max_size=2)
)


@st.composite
def spaces(draw):
    decisions = []
    for name in draw(st.lists(_names, min_size=1, max_size=6, unique=True)):
        unique_by = lambda c: (isinstance(c, bool), c)  # noqa: E731
        choices = draw(st.lists(_choices, min_size=1, max_size=4, unique_by=unique_by))
        condition = {}
        if decisions and draw(st.booleans()):
            for parent in draw(st.lists(st.sampled_from(decisions), max_size=2, unique_by=id)):
                some = st.lists(st.sampled_from(parent.choices), min_size=1, max_size=3)
                condition[parent.name] = tuple(draw(some))
        decisions.append(Decision(name, tuple(choices), condition or None))
    return SearchSpace(decisions)


@given(spaces(), st.data())
def test_designs_are_encoded_as_they_are_decoded(space, data):
    actions = np.array(
        [data.draw(st.integers(0, len(d.choices) - 1)) for d in space.decisions], np.int32
    )
    design = space.decode(actions)
    active = space.active(actions)
    assert list(design) == [
        d.name for d, is_on in zip(space.decisions, active, strict=True) if is_on
    ]
    encoded = space.encode(design)
    np.testing.assert_array_equal(encoded, np.where(active, actions, 0))
    np.testing.assert_array_equal(space.active(encoded), active)
    assert space.decode(encoded) == design
    for decision, is_on in zip(space.decisions, active, strict=True):
        parents = decision.active_if or {}
        kinds = {n: [(type(v) is bool, v) for v in values] for n, values in parents.items()}
        allowed = all(
            name in design and (type(design[name]) is bool, design[name]) in values
            for name, values in kinds.items()
        )
        assert bool(is_on) is allowed
    again = SearchSpace.from_json(json.loads(json.dumps(space.to_json())))
    assert again.fingerprint == space.fingerprint and again.decisions == space.decisions


@given(spaces(), st.dictionaries(_names, _choices, max_size=6))
def test_any_design_is_encoded_or_refused(space, design):
    actions = refused_or(space.encode, design)
    assert actions is None or actions.shape == (space.num_decisions,)


# Trial logs.
_numbers = st.floats(0, 1)


@st.composite
def records(draw, number):
    failed = draw(st.none() | st.text(max_size=5))
    return TrialRecord(
        draw(st.sampled_from(("one", "zwei ü"))),
        number,
        draw(st.dictionaries(_names, _choices, max_size=3)),
        None if failed is not None else draw(_numbers),
        failed,
        draw(_numbers),
        draw(st.integers(0, 9)),
        draw(st.text(max_size=5)),
        number // 2,
        tuple(draw(st.lists(_numbers, max_size=2))),
        draw(st.booleans()),
    )


@st.composite
def logs(draw):
    return [draw(records(number)) for number in range(draw(st.integers(0, 4)))]


def line(record):
    return (json.dumps(record._asdict(), ensure_ascii=False) + "\n").encode()


@given(logs(), st.data())
def test_a_log_that_is_cut_anywhere_holds_all_whole_lines_and_goes_on(found, data):
    lines = [line(record) for record in found]
    content = b"".join(lines)
    cut = data.draw(st.integers(0, len(content)))
    with written(content[:cut], "trials.jsonl") as path:
        log = TrialLog(path)
        whole = sum(len(b"".join(lines[: i + 1])) <= cut for i in range(len(lines)))
        assert log.records == found[:whole]
        for record in found[whole:]:
            log.append(record)
        assert path.read_bytes() == log.content == content
        assert TrialLog(path).records == found


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=4,
)


@given(logs(), st.data())
def test_any_log_is_read_or_refused(found, data):
    """Lines in any order, doubled, with a field changed, and bytes changed or put between."""
    rows = [record._asdict() for record in found]
    for row in rows:
        if data.draw(st.booleans()):
            row[data.draw(st.sampled_from([*row, "more"]))] = data.draw(_json)
    lines = [(json.dumps(row) + "\n").encode() for row in rows]
    lines += [data.draw(st.binary(max_size=20)) for _ in range(data.draw(st.integers(0, 1)))]
    chosen = data.draw(st.lists(st.sampled_from(lines), max_size=5)) if lines else []
    content = bytearray(b"".join(chosen))
    if content and data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with written(bytes(content), "trials.jsonl") as path:
        log = refused_or(TrialLog, path)
        assert path.read_bytes() == content
        if log is None:
            return
        assert len({(r.task, r.trial) for r in log.records}) == len(log.records)
        before = list(log.records)
        record = TrialRecord("last", 0, {"a": 1}, 0.5, None, 0.1, 1, "b", 0)
        log.append(record)
        assert TrialLog(path).records == [*before, record]


# Files of data.
_cells = st.one_of(
    st.sampled_from(
        ["", "a", "b", "good film", "1", "2.5", "nan", "1e999", "NA", "True", '"', "\t"]
    ),
    st.text(max_size=6),
)
_headers = st.sampled_from(["text", "label", "x", "y", "", "class"]) | st.text(max_size=3)


def check_task(task):
    assert task is None or (isinstance(task, Task) and task.num_classes >= 2)
    for split in task.splits.values() if task else ():
        assert (
            len(split.labels) and 0 <= split.labels.min() <= split.labels.max() < task.num_classes
        )


def read_file(path):
    check_task(refused_or(load_file_task, parse_file_task(f"mine={path}")))
    refused_or(read_table, path)


@given(st.data(), st.sampled_from([",", "\t"]), st.integers(1, 30))
def test_any_lines_are_a_task_or_refused(data, comma, repeats):
    names = data.draw(st.lists(_headers, min_size=1, max_size=3))
    rows = data.draw(
        st.lists(st.lists(_cells, min_size=len(names), max_size=len(names)), max_size=8)
    )
    rows = [row if i == 0 else [f"{c} {i}" for c in row] for i in range(repeats) for row in rows]
    labels = st.sampled_from(["yes", "no"])
    content = "\n".join(
        comma.join([*row, "label" if n == 0 else data.draw(labels)])
        for n, row in enumerate([names, *rows])
    ).encode(errors="surrogatepass")
    noise = data.draw(st.binary(max_size=3))
    place = data.draw(st.integers(0, len(content)))
    name = "rows.tsv" if comma == "\t" else "rows.csv"
    with written(content[:place] + noise + content[place:], name) as path:
        read_file(path)


@given(st.lists(st.dictionaries(_headers, _json, max_size=3), max_size=8), st.integers(1, 20))
def test_any_json_lines_are_a_task_or_refused(rows, repeats):
    lines = [json.dumps({"label": i % 2, **row}) for i in range(repeats) for row in rows]
    with written("\n".join(lines).encode(), "rows.jsonl") as path:
        read_file(path)


@given(
    st.dictionaries(_headers, st.lists(_json | st.binary(max_size=2), min_size=4, max_size=4)),
    st.integers(1, 10),
    st.data(),
)
def test_any_parquet_file_is_a_task_or_refused(columns, repeats, data):
    columns = {name: column * repeats for name, column in columns.items()}
    columns = {"label": ["a", "b"] * (2 * repeats)} | columns
    try:
        table = pyarrow.table({name: pyarrow.array(v) for name, v in columns.items()})
        file = io.BytesIO()
        pyarrow.parquet.write_table(table, file)
    except (pyarrow.ArrowException, OverflowError, TypeError, UnicodeError):
        return  # no column has values of several types
    content = bytearray(file.getvalue())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with written(bytes(content), "rows.parquet") as path:
        read_file(path)


@given(st.sampled_from([".csv", ".tsv", ".jsonl", ".parquet"]), st.binary(max_size=60))
def test_any_bytes_are_a_task_or_refused(suffix, content):
    with written(content, f"rows{suffix}") as path:
        read_file(path)


_axes = st.lists(st.integers(0, 40) | st.integers(0, 2**32 - 1), min_size=0, max_size=4)


@given(_axes, _axes, st.binary(max_size=400), st.binary(max_size=40), st.binary(max_size=8))
def test_any_idx_files_are_a_task_or_refused(image_axes, label_axes, pixels, labels, noise):
    def header(axes):
        return bytes([0, 0, 8, len(axes)]) + np.array(axes, ">u4").tobytes()

    with written(header(image_axes) + pixels + noise, "train-images-idx3-ubyte") as path:
        (path.parent / "train-labels-idx1-ubyte").write_bytes(header(label_axes) + labels)
        check_task(refused_or(load_idx_task, "mine", path.parent))
    # And those that fit each other.
    number = len(labels)
    content = header([number, 2, 3]) + (pixels + bytes(6 * number))[: 6 * number]
    with written(content, "train-images-idx3-ubyte") as path:
        (path.parent / "train-labels-idx1-ubyte").write_bytes(header([number]) + labels)
        check_task(refused_or(load_idx_task, "mine", path.parent))


@given(st.lists(st.lists(_cells, max_size=4), max_size=5), st.binary(max_size=4), st.booleans())
def test_any_text_is_word_vectors_or_refused(rows, noise, has_header):
    lines = [f"{len(rows)} 2"] * has_header + [" ".join(row) for row in rows]
    with written("\n".join(lines).encode() + noise, "mine.txt") as path:
        found = refused_or(load_word_vectors, path)
        assert found is None or np.isfinite(found.vectors).all()
        assert found is None or "".join(found.words).encode() is not None


@given(st.binary(min_size=1, max_size=3), st.integers(0, 10**6), st.booleans(), st.booleans())
def test_any_npz_file_is_word_vectors_or_refused(noise, place, packed, inside):
    """Bytes are changed in the archive, or in the arrays before they are packed."""
    arrays = {"words.npy": np.array(["a", "bü"]), "vectors.npy": np.eye(2, 3, dtype=np.float32)}

    def changed(content):
        start = place % len(content)
        return content[:start] + noise + content[start + len(noise) :]

    archive = io.BytesIO()
    kind = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(archive, "w", kind) as members:
        for name, array in arrays.items():
            file = io.BytesIO()
            np.save(file, array)
            members.writestr(name, changed(file.getvalue()) if inside else file.getvalue())
    content = archive.getvalue()
    with written(content if inside else changed(content), "mine.npz") as path:
        found = refused_or(load_word_vectors, path)
        assert found is None or np.isfinite(found.vectors).all()
        assert found is None or "".join(found.words).encode() is not None


# Flags.
_FLAGS = [
    *(name for field in Config.__dataclass_fields__ for name in (field, f"no{field}")),
    *("preset", "distributed", "num_processes", "process_id", "coordinator_address", "tsks"),
]
_values = st.one_of(
    st.integers().map(str),
    st.floats().map(str),
    st.sampled_from(["", "ppo", "cpu", "true", "mnms2017", "iris", "a=b.csv", "tfds:a/b?text=c"]),
    st.text(max_size=8),
)
_given_flags = st.one_of(
    st.builds("--{}={}".format, st.sampled_from(_FLAGS), _values),
    st.builds("--{}".format, st.sampled_from(_FLAGS)),
    st.text(max_size=4).map(lambda text: f"--{text}"),
)


@pytest.fixture(scope="module")
def own_flags():
    """Flags in a namespace of their own."""
    own, common = flags.FlagValues(), flags.FLAGS
    flags.FLAGS = own
    names = ("DEFINE_enum", "DEFINE_list", "DEFINE_boolean", "DEFINE_integer", "DEFINE_float")
    with pytest.MonkeyPatch.context() as patch:
        for name in (*names, "DEFINE_string"):
            define = getattr(flags, name)
            patch.setattr(flags, name, lambda *a, d=define, **k: d(*a, **{"flag_values": own, **k}))
        define_flags()
    yield own
    flags.FLAGS = common


@given(st.lists(_given_flags, max_size=4))
def test_any_flags_are_a_configuration_or_refused(own_flags, given_flags):
    own_flags.unparse_flags()
    for name in own_flags:
        own_flags[name].unparse()
    try:
        own_flags(["multitask", *given_flags])
    except (flags.Error, ValueError):  # the second one for --noNAME=VALUE
        return
    config = refused_or(config_from_flags)
    if config is not None:
        assert config.trials_per_task >= 1 and config.num_trials >= 1
        refused_or(check_tasks, config.tasks)
        json.dumps(config.__dict__, ensure_ascii=False).encode()
