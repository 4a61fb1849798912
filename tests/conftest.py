"""Tests run strict: 4 CPU devices, no silent broadcasting over ranks, warnings are errors."""

import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
)

import jax
import pytest
from tfds_data import write_imdb, write_sst2

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(scope="module", autouse=True)
def few_memory_maps():
    """Linux allows a process 65,530, and XLA crashes where none is left for a program."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_text().count("\n") > 20_000:
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory):
    """Both of these tasks, as TFDS's own builders write them."""
    path = tmp_path_factory.mktemp("tfds")
    write_sst2(path, num_rows=200)
    write_imdb(path, num_rows=200)
    return path


@pytest.fixture(scope="module")
def quick_compiler():
    """For tests that compile much and run little: the compiler optimises less."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
