import contextlib
import io
import json
import sys
import types

import jax
import numpy as np
import pytest
from toy import SPACE

from benchmarks import peer_methods, peer_results, peer_worker
from mnms_jax.methods import Sources
from mnms_jax.replay import init_replay
from mnms_jax.transfer import make_bank
from mnms_jax.types import UserError


def guess(problem):
    """Returns a tuner that is random, whatever its seed, but by the process's state."""
    told = []

    def ask():
        return [int(np.random.randint(size)) for size in problem.sizes.values()] + [len(told)]

    return peer_worker.Tuner(ask, lambda design, reward: told.append((design, reward)))


def answers(monkeypatch, requests):
    out = io.StringIO()
    monkeypatch.setattr(
        sys, "stdin", io.StringIO("".join(map(json.dumps, requests)).replace("}{", "}\n{"))
    )
    monkeypatch.setattr(sys, "stdout", out)
    peer_worker.serve(guess)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def start(search, seed):
    problem = {"sizes": {"a": 100, "b": 100}, "ordered": {}, "num_trials": 9, "sources": []}
    return {"do": "start", "search": search, "problem": {**problem, "seed": seed}}


def test_searches_that_take_turns_are_what_they_are_alone(monkeypatch):
    def ask(search):
        return {"do": "ask", "search": search, "number": 2}

    def tell(search):
        return {"do": "tell", "search": search, "trials": [[[1, 2], 0.5]]}

    alone = [answers(monkeypatch, [start(0, seed), ask(0), tell(0), ask(0)]) for seed in (3, 4)]
    both = answers(
        monkeypatch,
        [start(0, 3), start(1, 4), ask(0), ask(1), tell(1), tell(0), ask(1), ask(0)],
    )
    assert [both[i] for i in (0, 2, 5, 7)] == alone[0]
    assert [both[i] for i in (1, 3, 4, 6)] == alone[1]
    assert alone[0] != alone[1]
    assert [design[-1] for design in alone[0][1] + alone[0][3]] == [0, 0, 1, 1]


def test_a_peer_is_told_of_space_and_sources():
    bank = make_bank(SPACE, [[({"a": 1}, 0.5), ({"a": 2, "b": True}, None)], []])
    told = peer_methods.describe(SPACE, Sources(bank), 7, 20)
    problem = peer_worker.Problem(**json.loads(json.dumps(told)))
    assert problem.sizes == {d.name: len(d.choices) for d in SPACE.decisions}
    design = SPACE.encode({"a": 1}).tolist()
    assert problem.sources == [[[design, 0.5]]]  # neither failed trials nor tasks without any
    assert (problem.seed, problem.num_trials) == (7, 20)


@pytest.mark.parametrize(
    ("choices", "ordered"),
    [
        ((1, 2.5, 7), True),
        ((4, 2), False),
        (("a", "b"), False),
        ((False, True), False),
        ((1, "b"), False),
    ],
)
def test_numbers_that_ascend_are_ordered(choices, ordered):
    assert peer_methods.is_ordered(choices) is ordered


def test_versions_are_of_those_that_are_compared():
    assert peer_methods.find_versions(["random", "smac"]) == {"smac": "smac==2.4.1"}
    assert peer_methods.find_versions(["tpe_enqueued"])["tpe"].startswith("optuna==")


@pytest.fixture
def peer(monkeypatch, tmp_path):
    """A method whose process answers with the same designs again and again."""
    script = """
import json, os, sys
log = open(sys.argv[1], "w")
assert os.environ["PYTHONHASHSEED"] == "0"  # or designs would differ when a run is resumed
for line in sys.stdin:
    request = json.loads(line)
    print(line, end="", file=log, flush=True)
    print(json.dumps([[1, 1, 0], [2, 0, 1]] if request["do"] == "ask" else None), flush=True)
"""
    (tmp_path / "worker.py").write_text(script)
    requests = tmp_path / "requests"

    command = [sys.executable, str(tmp_path / "worker.py"), str(requests)]
    monkeypatch.setattr(peer_methods, "worker_command", lambda name: command)
    with contextlib.closing(peer_methods.Worker("smac", tmp_path / "log")) as worker:
        yield peer_methods.make_peer("smac", worker, 20), requests


def test_a_peer_is_a_method(peer, key):
    method, requests = peer
    nothing = Sources(init_replay(0, 1, SPACE.num_decisions))
    search = method.make(SPACE, nothing, 2, key)
    state = search.init(key)
    proposal = search.ask(state)
    np.testing.assert_array_equal(proposal.actions, [[1, 1, 0], [2, 0, 1]])
    np.testing.assert_array_equal(search.ask(state).actions, proposal.actions)
    state, _ = search.tell(state, proposal, jax.numpy.array([0.5, np.nan]))
    search.ask(state)
    lines = [json.loads(line) for line in requests.read_text().splitlines()]
    assert [line["do"] for line in lines] == ["start", "ask", "tell", "ask"]
    assert lines[2]["trials"] == [[[1, 1, 0], 0.5], [[2, 0, 1], 0.5]]  # a failed one is the worst
    np.testing.assert_array_equal(state.replay.rewards[0, :2], [0.5, np.nan])


def test_a_process_that_ended_is_told_with_its_log(monkeypatch, tmp_path):
    command = [sys.executable, peer_worker.__file__, "nothing"]
    monkeypatch.setattr(peer_methods, "worker_command", lambda name: command)
    with contextlib.closing(peer_methods.Worker("nothing", tmp_path / "log")) as worker:
        with pytest.raises(UserError, match=f"the process of nothing has ended, see {tmp_path}"):
            worker.start({})
    assert "KeyError: 'nothing'" in (tmp_path / "log").read_text()


def test_tasks_that_defaults_were_chosen_on_are_left_out_of_the_untuned(monkeypatch):
    tables = {"a": ("cora", "photo"), "b": ("phoneme",), "c": ("naval_propulsion",)}
    monkeypatch.setattr(
        peer_results.mnms, "load_table", lambda name: types.SimpleNamespace(task_names=tables[name])
    )
    regrets = {  # [1 method, 2 seeds, T, 10 trials]
        name: np.broadcast_to(np.reshape(values, (1, 2, -1, 1)), (1, 2, len(values[0]), 10))
        for name, values in {"a": [[9, 1], [9, 3]], "b": [[9], [9]], "c": [[3], [5]]}.items()
    }
    rows = peer_results.summarise(["cold"], regrets)
    means = {(row["benchmark"], row["task"]): row["regret"] for row in rows}
    assert len(means) == len(rows) == 8
    assert means["a", "mean over tasks"] == 5.5
    assert means["a", "photo"] == 2
    assert means["untuned", "mean over tasks"] == 3
    (untuned,) = (row for row in rows if row["benchmark"] == "untuned")
    assert untuned["low"] == pytest.approx(3 - 12.706, abs=1e-3)  # of 2 and 4, one degree
    assert (untuned["method"], untuned["trials"]) == ("cold", 10)
