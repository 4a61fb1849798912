import json
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from absl import logging

from mnms_jax.tasks import table_files
from mnms_jax.tasks.table_files import read_table
from mnms_jax.tasks.tables import load_table
from mnms_jax.types import UserError

NAN = np.nan
CSV = """task,rate,act,deep,reward
one,0.1,tanh,true,0.5
one,1e-2,relu,true,0.25
one,0.1,tanh,true,0.75
one,0.1,relu,false,
two,.01,relu,TRUE,-1
two,0.1,tanh,True,nan
two, 0.10 ,tanh , true,2
"""


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Collects what is logged."""
    found: list[str] = []
    monkeypatch.setattr(logging, "info", lambda text, *args: found.append(text % args))
    return found


def write(tmp_path: pathlib.Path, text: str, encoding: str = "utf-8") -> pathlib.Path:
    path = tmp_path / "mine.csv"
    path.write_bytes(text.encode(encoding))
    return path


def refused(path: pathlib.Path, **columns) -> str:
    with pytest.raises(UserError) as error:
        read_table(path, **columns)
    message = str(error.value)
    start = f"cannot use {path}: "
    assert message.startswith(start)
    assert "\n" not in message
    return message.removeprefix(start)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_file_becomes_a_space_and_rewards(
    tmp_path: pathlib.Path, lines: list[str], encoding: str
) -> None:
    path = write(tmp_path, CSV, encoding)
    benchmark = read_table(path)
    assert benchmark.name == "mine"
    assert benchmark.metric == "reward"
    assert benchmark.task_names == ("one", "two")
    assert benchmark.test is None
    choices = {decision.name: decision.choices for decision in benchmark.space.decisions}
    assert choices == {"rate": (0.01, 0.1), "act": ("tanh", "relu"), "deep": (False, True)}
    table = benchmark.table
    assert table.strides.tolist() == [4, 2, 1]
    # .01 relu true, .1 tanh true, .1 relu false, all others
    assert table.rows.tolist() == [3, 3, 3, 0, 3, 1, 2, 3]
    expected = [
        [[0.25, NAN], [0.5, 0.75], [NAN, NAN], [NAN, NAN]],
        [[-1, NAN], [NAN, 2], [NAN, NAN], [NAN, NAN]],
    ]
    np.testing.assert_array_equal(table.rewards, expected)
    assert table.num_seeds.tolist() == [[1, 2, 1, 0], [1, 2, 0, 0]]
    assert [array.dtype for array in table] == [np.float32, np.int32, np.int32, np.int32]
    np.testing.assert_array_equal(benchmark.means, [[0.25, 0.625, NAN, NAN], [-1, 2, NAN, NAN]])
    assert lines == [
        f"{path}: its decisions are rate, act, deep",
        f"{path}: 11 of 16 combinations of task and design are missing and count as failed trials",
    ]


def test_load_table_takes_a_path_and_its_columns(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, "data,a,acc,held_out,seed\nx,1,.5,.25,0\nx,1,.7,.75,1\ny,2,.8,,0\n")
    benchmark = load_table(path, decisions=["a"], task="data", reward="acc", test="held_out")
    assert benchmark.space.names == ("a",)
    assert benchmark.task_names == ("x", "y")
    assert benchmark.metric == "acc"
    np.testing.assert_array_equal(benchmark.test, [[0.5, NAN], [NAN, NAN]])
    path = write(tmp_path, "data,a,acc,seed\nx,1,.5,0\ny,2,.8,1\n")
    assert load_table(str(path), task="data", reward="acc").space.names == ("a", "seed")
    with pytest.raises(UserError, match="takes no reward: only files do"):
        load_table("fcnet", reward="acc")


def test_a_full_grid_has_no_further_row(tmp_path: pathlib.Path, lines: list[str]) -> None:
    text = "b,task,a,reward\n" + "".join(
        f"{b},t,{a},{10 * a + b}\n" for b in (3, 1, 2) for a in (5, 4)
    )
    benchmark = read_table(write(tmp_path, text), ["a", "b"])
    assert benchmark.space.names == ("a", "b")
    assert benchmark.table.rows.tolist() == list(range(6))
    assert benchmark.table.rewards[0, :, 0].tolist() == [41, 42, 43, 51, 52, 53]
    assert lines[1].endswith(
        ": 0 of 6 combinations of task and design are missing and count as failed trials"
    )


def test_repeats_keep_their_order_whatever_the_order_of_rows(tmp_path: pathlib.Path) -> None:
    rng = np.random.default_rng(0)
    trials = [(rng.integers(3), rng.integers(4), rng.integers(5), i) for i in range(400)]
    text = "task,a,b,reward\n" + "".join(f"t{t},{a},{b},{i}\n" for t, a, b, i in trials)
    benchmark = read_table(write(tmp_path, text))
    for t, name in enumerate(benchmark.task_names):
        for row, actions in enumerate(benchmark.designs):
            a, b = actions
            expected = [i for *where, i in trials if where == [int(name[1:]), a, b]]
            assert benchmark.table.num_seeds[t, row] == len(expected)
            found = benchmark.table.rewards[t, row]
            assert found[: len(expected)].tolist() == expected
            assert np.isnan(found[len(expected) :]).all()


@pytest.mark.parametrize(
    ("values", "choices"),
    [
        (["2", "10", "-1"], (-1, 2, 10)),
        (["2", "10", "0.5"], (0.5, 2.0, 10.0)),
        (["1e-3", "1.", "+.5"], (0.001, 0.5, 1.0)),
        (["007", "7"], ("007", "7")),
        (["0012", "0.5"], ("0012", "0.5")),
        (["0", "-0.5", "9" * 20], (-0.5, 0.0, 1e20)),
        (["true", "FALSE"], (False, True)),
        (["true", "1"], ("true", "1")),
        (["nan", "1"], ("nan", "1")),
        (["1_0", "1"], ("1_0", "1")),
        (["1e999", "1"], ("1e999", "1")),
        (['"b, c"', "a"], ("b, c", "a")),
    ],
)
def test_types_of_choices(tmp_path: pathlib.Path, values: list[str], choices: tuple) -> None:
    text = "task,a,reward\n" + "".join(f"t,{value},1\n" for value in values)
    (decision,) = read_table(write(tmp_path, text)).space.decisions
    assert decision.choices == choices
    assert [type(c) for c in decision.choices] == [type(c) for c in choices]


def test_a_parquet_file_says_the_same(tmp_path: pathlib.Path) -> None:
    columns = {
        "task": ["one", "one", "two"],
        "rate": [0.1, 0.01, 0.1],
        "act": pa.array(["b", "a", "b"]).dictionary_encode(),
        "deep": [True, False, True],
        "size": pa.array([8, 4, 8], pa.int16()),
        "reward": pa.array([0.5, None, NAN], pa.float32()),
    }
    path = tmp_path / "mine.parquet"
    pa.parquet.write_table(pa.table(columns), path)
    benchmark = read_table(path)
    choices = {decision.name: decision.choices for decision in benchmark.space.decisions}
    assert choices == {
        "rate": (0.01, 0.1),
        "act": ("b", "a"),
        "deep": (False, True),
        "size": (4, 8),
    }
    assert [type(c) for c in choices["deep"] + choices["size"]] == [bool, bool, int, int]
    np.testing.assert_array_equal(
        benchmark.table.rewards[..., 0], [[NAN, 0.5, NAN], [NAN, NAN, NAN]]
    )
    assert benchmark.table.num_seeds.tolist() == [[1, 1, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("columns", "fault"),
    [
        ({"a": [1, None]}, "row 2 has no 'a'"),
        ({"a": [1.0, NAN]}, "row 2 has nan in 'a'; it must be finite"),
        ({"a": [[1], [2]]}, "texts, or numbers, or true and false are needed in 'a', not list"),
        ({"a": [1, 2], "reward": ["high", "low"]}, "row 1 has 'high' in 'reward'"),
        ({"a": [1, 2], "task": [None, "t"]}, "row 1 has no 'task'"),
        ({"a": [1, 2], "reward": [1.0, np.inf]}, "row 2 has inf in 'reward'"),
    ],
)
def test_faults_of_parquet_files(tmp_path: pathlib.Path, columns: dict, fault: str) -> None:
    path = tmp_path / "mine.parquet"
    pa.parquet.write_table(pa.table({"task": ["t", "t"], "reward": [1, 2]} | columns), path)
    assert refused(path).startswith(fault)


def test_what_is_no_parquet_file_is_told(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.parquet"
    for content in (b"", b"task,a,reward\n", b"PAR1" + bytes(100) + b"PAR1"):
        path.write_bytes(content)
        assert refused(path).startswith("it cannot be read: ")
    pa.parquet.write_table(pa.table({"task": [], "a": [], "reward": []}), path)
    assert refused(path) == "it has no rows"
    path.write_bytes(path.read_bytes()[:-10])
    assert refused(path).startswith("it cannot be read: ")


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "its first line must name the columns"),
        ("task,a,reward\n", "it has no rows"),
        ("task,a,a,reward\nt,1,1,1\n", "each column needs a name of its own, not 'a'"),
        ("task,,reward\nt,1,1\n", "each column needs a name of its own, not ''"),
        ("task,a,rewards\nt,1,1\n", "it has no column 'reward'; did you mean 'rewards'?"),
        ("data,a,reward\nt,1,1\n", "it has no column 'task'; known: data, a, reward"),
        ("task,reward\nt,1\n", "decisions, task, reward and test must be different columns"),
        ("task,a,reward\nt,1,1\n\nt,1\n", "row 4 has 2 fields where the header has 3"),
        ("task,a,reward\nt,,1\n", "row 2 has no 'a'"),
        ("task,a,reward\nt,1,1\n ,1,1\n", "row 3 has no 'task'"),
        (
            "task,a,reward\nt,1,1\nt,1,high\n",
            "row 3 has 'high' in 'reward'; a number of 32 bits, or nothing, is needed",
        ),
        ("task,a,reward\nt,1,inf\n", "row 2 has 'inf' in 'reward'"),
        ("task,a,reward\nt,1,1e39\n", "row 2 has '1e39' in 'reward'"),
        ('task,a,reward\nt,"1,1\n', "row 2 can't be read: "),
    ],
)
def test_faults_of_csv_files(tmp_path: pathlib.Path, text: str, fault: str) -> None:
    assert refused(write(tmp_path, text)).startswith(fault)


@pytest.mark.parametrize(
    ("row", "fault"),
    [
        ({"a": 1, "reward": 10**400}, "row 2 has 1000"),
        ({"a": 10**400, "reward": 1}, "row 2 has inf in 'a'; it must be finite"),
    ],
    ids=["reward", "decision"],
)
def test_numbers_that_no_float_holds_are_told(
    tmp_path: pathlib.Path, row: dict, fault: str
) -> None:
    path = tmp_path / "mine.jsonl"
    rows = [{"task": "t", "a": 1.5, "reward": 1}, {"task": "t", **row}]
    path.write_text("\n".join(map(json.dumps, rows)))
    assert refused(path).startswith(fault)


def test_faults_of_names(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, CSV)
    assert refused(path, decisions=["rat"]) == "it has no column 'rat'; did you mean 'rate'?"
    different = "decisions, task, reward and test must be different columns"
    for decisions in ([], ["rate", "rate"], ["rate", "reward"]):
        assert refused(path, decisions=decisions) == different
    assert refused(path, test="reward") == different
    assert refused(tmp_path / "mine.txt") == "its name must end in .csv, .tsv, .jsonl or .parquet"
    for name in ("none.csv", "none.parquet"):
        assert refused(tmp_path / name).startswith("it cannot be read: ")
    assert refused(write(tmp_path, CSV, "utf-16")).startswith("row 1 is not UTF-8 text: ")


def test_tables_that_are_too_large_are_refused(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, CSV)
    monkeypatch.setattr(table_files, "_MAX_CELLS", 7)
    assert refused(path) == (
        "its choices combine to 8 designs, more than 7 (rate 2, act 2, deep 2); name fewer columns "
        "as decisions"
    )
    monkeypatch.undo()
    monkeypatch.setattr(table_files, "_MAX_REWARDS", 15)
    assert refused(path) == (
        "2 tasks, 4 designs and up to 2 repeats of one make more than 15 rewards"
    )


def test_many_columns_of_many_values_are_refused_at_once(tmp_path: pathlib.Path) -> None:
    text = "task,a,b,c,d,e,f,reward\n" + "".join(
        f"t,{','.join(str(i * k) for k in range(1, 7))},1\n" for i in range(1, 1001)
    )
    assert "combine to 1000000000000000000 designs, more than 16777216" in refused(
        write(tmp_path, text)
    )


def test_a_column_that_a_parquet_file_lacks_is_named(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "mine.parquet"
    pa.parquet.write_table(pa.table({"data": ["t"], "a": [1], "reward": [1.0]}), path)
    assert refused(path) == "it has no column 'task'; known: data, a, reward"
