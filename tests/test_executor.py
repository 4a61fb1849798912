import sys
import types

import pytest

from mnms_jax import executor
from mnms_jax.config import Config
from mnms_jax.executor import connect_executor, open_executor
from mnms_jax.types import UserError


def test_the_default_is_the_experiments_own_trainer():
    class Bench:
        trainer = object()

    with connect_executor(Config()), open_executor(Config(), Bench) as opened:
        assert opened is Bench.trainer


def test_without_ray_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'Ray is not installed; pip install "mnms_jax\[ray\]"'):
        with connect_executor(Config(executor="ray")):
            pass


def test_ray_workers_in_other_folders_find_the_same_files(tmp_path, monkeypatch):
    made = []

    class Trainer:
        def __init__(self, make_trainer, make_spec, *, num_workers):
            made.append(make_trainer)

        def close(self):
            made.append("closed")

    monkeypatch.setattr(executor, "RayTrainer", Trainer)
    monkeypatch.chdir(tmp_path)
    config = Config(tasks=("mine=x.csv",), executor="ray", num_workers=3)
    bench = types.SimpleNamespace(
        inputs=types.SimpleNamespace(digests={}), family=types.SimpleNamespace(make_spec=None)
    )
    with open_executor(config, bench):
        (own, _) = made[0].args
    assert own.tasks == (f"mine={tmp_path}/x.csv",) and own.num_workers == 1
    assert made[1:] == ["closed"]
