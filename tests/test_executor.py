import sys

import pytest

from mnms_jax.config import Config
from mnms_jax.executor import open_executor
from mnms_jax.types import UserError


def test_the_default_is_the_experiments_own_trainer():
    class Bench:
        trainer = object()

    with open_executor(Config(), Bench) as executor:
        assert executor is Bench.trainer


def test_without_ray_one_line_says_what_to_do(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'Ray is not installed; pip install "mnms_jax\[ray\]"'):
        with open_executor(Config(executor="ray"), None):
            pass
