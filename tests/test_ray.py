"""Searches whose children are trained by Ray's workers, which die."""

import contextlib
import functools
import importlib.util
import os
import pathlib
import signal
import threading
import time
import types

import jax
import pytest
from commands import lines
from searching import Recorder
from toy import make_family, make_task, make_trainer

import mnms_jax as mnms
from mnms_jax.bench import make_bench
from mnms_jax.executor import open_executor
from mnms_jax.run import Budget, RoundSetup, run_rounds
from mnms_jax.store import open_workdir
from mnms_jax.training import ray_trainer
from mnms_jax.training.fit import Request
from mnms_jax.training.ray_trainer import RayTrainer, connect_ray
from mnms_jax.types import UserError

pytestmark = [
    # Not imported here: it is told to stay on the loopback before it is.
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    # Ray forks, and its own code warns of this and that.
    pytest.mark.filterwarnings("ignore"),
]

TASKS = (make_task("one", 200, seed=1), make_task("two", 150, seed=2))
NAMES = ("one", "two")
FAMILY = make_family(
    lowercase=(True, False), deep_learning_rate=(0.01, 0.02, 1e30), samples=(128, 256, 384)
)
DEADLY = 10**6  # trials from here on kill whoever trains them


# The same decisions, with children that train for long enough to be interrupted.
LONG = make_family(
    lowercase=(True, False),
    deep_learning_rate=(0.01, 0.02, 1e30),
    samples=(150_000, 160_000, 170_000),
)


class Mortal:
    """A trainer whose process is killed when it has trained a child, and before it says so.

    Once each, by the trials in the folder whose names are files there, or by deadly ones. While its
    program runs, a file there has its process's number as name.
    """

    def __init__(self, folder):
        self._folder = folder
        self._trainer = make_trainer(TASKS, FAMILY, num_workers=1, lanes=2)
        self._running = folder / str(os.getpid())
        run = self._trainer._run

        def note(*chunk):
            outputs = run(*chunk)  # which returns when the program has begun
            self._running.touch()
            return outputs

        self._trainer._run = note

    def __getattr__(self, name):
        return getattr(self._trainer, name)

    def train(self, requests):
        results = list(self._trainer.train(requests))
        self._running.unlink()
        for request in requests:
            with contextlib.suppress(FileNotFoundError):
                if request.trial < DEADLY:
                    (self._folder / f"{request.task_name}{request.trial}").unlink()
                os.kill(os.getpid(), signal.SIGKILL)
        return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("deaths")


@pytest.fixture(scope="module")
def connected():
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        # Workers load this module.
        patch.setenv("PYTHONPATH", str(pathlib.Path(__file__).parent), prepend=os.pathsep)
        stack.enter_context(connect_ray(num_workers=3))
        yield


@pytest.fixture(scope="module")
def workers(connected, folder):
    trainer = RayTrainer(functools.partial(Mortal, folder), FAMILY.make_spec, num_workers=2)
    with contextlib.closing(trainer):
        yield trainer


@pytest.fixture(scope="module")
def local():
    return make_trainer(TASKS, FAMILY, lanes=2)


@pytest.fixture(scope="module")
def search():
    policy = mnms.make_policy(FAMILY.space, 2)
    learner = mnms.make_ppo_learner(policy)
    return mnms.make_search(FAMILY.space, policy, learner, num_tasks=2, trials_per_task=3)


def trials(path, search, trainer, rounds_in_flight, **changes):
    """Returns the log of a search."""
    setup = RoundSetup(
        FAMILY.space, NAMES, search, trainer, Budget(9), rounds_in_flight=rounds_in_flight
    )
    setup = setup._replace(**changes)
    with open_workdir(path, {}) as workdir:
        run_rounds(setup, search.init(jax.random.key(0)), workdir, Recorder(), "ppo")
    return lines(path)


def child(trial, task_id=0, **choices):
    design = {d.name: d.choices[0] for d in FAMILY.space.decisions} | choices
    return Request(task_id, NAMES[task_id % 2], trial, design)


@pytest.mark.parametrize("rounds_in_flight", [1, 2])
def test_a_killed_worker_changes_nothing(
    tmp_path, search, local, workers, folder, rounds_in_flight
):
    expected = trials(tmp_path / "local", search, local, rounds_in_flight)
    assert [(r["task"], r["trial"]) for r in expected] == [(n, t) for t in range(9) for n in NAMES]
    assert any(r["failed"] for r in expected) and not all(r["failed"] for r in expected)
    assert trials(tmp_path / "undisturbed", search, workers, rounds_in_flight) == expected

    victim = next(r for r in expected if r["round"] == 1 and r["bucket"] != "log")
    (folder / f"{victim['task']}{victim['trial']}").touch()
    killed = trials(tmp_path / "killed", search, workers, rounds_in_flight)
    assert not list(folder.iterdir())  # it was
    assert killed == expected


@pytest.fixture(scope="module")
def long_trials(tmp_path_factory, search, local):
    path = tmp_path_factory.mktemp("long")
    return trials(path, search, local, 2, space=LONG.space, budget=Budget(6))


@pytest.mark.parametrize("in_order", [True, False], ids=["ordered", "first_done"])
def test_nothing_is_lost_when_a_worker_is_killed_in_mid_bucket(
    tmp_path, search, workers, folder, long_trials, in_order
):
    def kill():
        while not (running := list(folder.iterdir())):
            time.sleep(0.01)
        os.kill(int(running[0].name), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    changes = {"space": LONG.space, "budget": Budget(6), "in_order": in_order}
    found = trials(tmp_path, search, workers, 2, **changes)
    killer.join()
    (left,) = folder.iterdir()  # it died before its program had ended
    left.unlink()
    # In whatever order the two rounds are told, their trials are the same.
    assert found == long_trials or not in_order
    assert sorted(found, key=by_number) == long_trials
    assert sum(row["bucket"] != "log" for row in found) > 4


def by_number(row):
    return row["trial"], row["task"]


def test_workers_count_their_time(workers):
    before = workers.stats
    dict(workers.train([child(0), child(1)]))
    after = workers.stats
    assert after.programs >= 1 and after.compile_seconds > 0
    assert after.run_seconds > before.run_seconds


def test_closing_leaves_out_what_has_not_begun(workers):
    before = workers.stats.run_seconds
    workers.train([child(trial, samples=384) for trial in range(10**5)]).close()
    start = time.monotonic()
    assert dict(workers.train([child(0)]))[0].failed is None
    assert time.monotonic() - start < 30 and workers.stats.run_seconds - before < 30


def test_an_error_in_a_worker_keeps_its_traceback_and_the_worker_goes_on(workers):
    with pytest.raises(IndexError) as caught:
        dict(workers.train([child(0, task_id=8)]))
    assert "in child_data" in str(caught.value)
    assert dict(workers.train([child(0)]))[0].failed is None


def test_a_child_that_kills_every_worker_is_told(monkeypatch, connected, folder):
    monkeypatch.setattr(ray_trainer, "_MOST_DEATHS", 2)
    make = functools.partial(Mortal, folder)
    with contextlib.closing(RayTrainer(make, FAMILY.make_spec, num_workers=1)) as trainer:
        with pytest.raises(UserError, match=f"2 Ray workers in turn died .* {DEADLY} of one"):
            dict(trainer.train([child(DEADLY)]))
        with pytest.raises(UserError):  # at once, from now on
            trainer.train([child(0)])


def test_no_worker_for_too_long_is_told(monkeypatch, connected):
    monkeypatch.setattr(ray_trainer, "_START_SECONDS", 0.5)
    make = functools.partial(time.sleep, 60)
    with contextlib.closing(RayTrainer(make, FAMILY.make_spec, num_workers=1)) as trainer:
        with pytest.raises(UserError, match=r"there has been no Ray worker for \d seconds"):
            dict(trainer.train([child(0)]))


def test_an_experiments_workers_load_its_tasks_themselves(connected):
    config = mnms.Config(tasks=("iris",), executor="ray", num_workers=1)
    bench = make_bench(config)
    design = bench.family.space.decode(bench.family.space.action_mask.argmax(1))
    request = Request(0, "iris", 0, design)
    expected = dict(bench.trainer.train([request]))[0]
    with open_executor(config, bench) as executor:
        found = dict(executor.train([request]))[0]
    assert found._replace(seconds=0) == expected._replace(seconds=0)

    other = types.SimpleNamespace(digests={"iris": "another"})
    with open_executor(config, bench._replace(inputs=other)) as executor:
        with pytest.raises(UserError, match="has other data of iris"):
            dict(executor.train([request]))


def test_ray_stays_on_the_loopback(connected):
    import ray

    assert ray.util.get_node_ip_address() == "127.0.0.1"
