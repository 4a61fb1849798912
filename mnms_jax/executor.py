"""Who trains the children of an experiment: threads of this process, or Ray's workers."""

import contextlib
import dataclasses
import functools
import json
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax

from mnms_jax.bench import Bench, make_bench, with_absolute_paths
from mnms_jax.config import Config
from mnms_jax.devices import exchange
from mnms_jax.training.fit import Request, Trainer, TrainerStats
from mnms_jax.training.judge import TrialResult
from mnms_jax.training.ray_trainer import RayTrainer, connect_ray
from mnms_jax.types import UserError


class Executor(Protocol):
    """What trains children: a `Trainer`, or another one with the same results.

    Several calls of `train` may go on at once, each from when it is made; the first one's children
    come first. Each time that there is something to be taken, a child or an error, `arrived` is
    called.
    """

    @property
    def stats(self) -> TrainerStats: ...

    def prefetch(self, requests: Sequence[Request]) -> None: ...

    def train(
        self, requests: Sequence[Request], arrived: Callable[[], None] = ...
    ) -> Generator[tuple[int, TrialResult]]: ...


@contextlib.contextmanager
def connect_executor(config: Config) -> Iterator[None]:
    """Sees that who is to train the children can be had, and joins the Ray cluster if it's Ray.

    Raises:
      UserError: Ray is absent, can't be reached, or isn't to be used with `--distributed`, nor is
        `--tell=first_done`.
    """
    if config.tell == "first_done" and jax.process_count() > 1:
        raise UserError("--tell=first_done: several processes tell rounds in order; leave it out")
    if config.executor == "local":
        yield
        return
    if jax.process_count() > 1:
        raise UserError("--executor=ray: Ray has processes of its own; leave --distributed out")
    with connect_ray(config.ray_address, config.num_workers):
        yield


@contextlib.contextmanager
def open_executor(config: Config, bench: Bench) -> Iterator[Executor]:
    """Gives what trains the children of an experiment's searches: its trainer, or Ray workers.

    Each worker loads the tasks itself, from its own cache or from the same paths. It must be
    connected, see `connect_executor`.

    Raises:
      UserError: by `train`: a worker has other data. See `RayTrainer` too.
    """
    if config.executor == "local":
        yield bench.trainer
        return
    own = dataclasses.replace(with_absolute_paths(config), num_workers=1)
    make_trainer = functools.partial(_make_same_trainer, own, bench.inputs.digests)
    trainer = RayTrainer(make_trainer, bench.family.make_spec, num_workers=config.num_workers)
    with contextlib.closing(trainer):
        yield trainer


def _make_same_trainer(config: Config, digests: Mapping[str, str]) -> Trainer:
    """Returns a worker's trainer, once it's sure that its data are those of the search."""
    bench = make_bench(config)
    found = bench.inputs.digests
    different = [name for name, digest in digests.items() if found.get(name) != digest]
    if different:
        raise UserError(
            f"the Ray worker on {socket.gethostname()} has other data of {', '.join(different)} "
            "than this process; all need the same files and versions"
        )
    return bench.trainer


def train_shared(
    trainer: Executor,
    requests: Sequence[Request],
    arrived: Callable[[], None],
    count: Callable[[int, int], None],
) -> Generator[tuple[int, TrialResult]]:
    """Returns what `Executor.train` does, in every process; each has trained its share.

    Args:
      trainer: of this process.
      requests: children to train, the same in every process.
      arrived: see `Executor`; not called where there are several processes.
      count: there told how many children of this process's share are done, and of how many.
    """
    if jax.process_count() == 1:
        return trainer.train(requests, arrived)
    return _train_share(trainer, requests, count)


def own_share(children: Sequence[Any]) -> Sequence[Any]:
    """Returns what of a round's children this process trains."""
    return children[jax.process_index() :: jax.process_count()]


def _train_share(
    trainer: Executor, requests: Sequence[Request], count: Callable[[int, int], None]
) -> Generator[tuple[int, TrialResult]]:
    numbers, own = own_share(range(len(requests))), []
    for i, result in trainer.train(own_share(requests)):
        own.append((numbers[i], result))
        count(len(own), len(numbers))
    for message in exchange(json.dumps(own).encode()):
        for index, result in json.loads(message):
            yield index, TrialResult(*result)
