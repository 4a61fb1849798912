"""Who trains the children of an experiment: threads of this process, or Ray's workers."""

import contextlib
import dataclasses
import functools
import socket
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Protocol

import jax

from mnms_jax.bench import Bench, make_bench
from mnms_jax.config import Config
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
def open_executor(config: Config, bench: Bench) -> Iterator[Executor]:
    """Gives what trains the children of an experiment's searches: its trainer, or Ray workers.

    Each worker loads the tasks itself, from its own cache or from the same paths.

    Raises:
      UserError: Ray is absent, can't be reached, or isn't to be used with `--distributed`, nor is
        `--tell=first_done`; a worker has other data. See `RayTrainer` too.
    """
    if config.tell == "first_done" and jax.process_count() > 1:
        raise UserError("--tell=first_done: several processes tell rounds in order; leave it out")
    if config.executor == "local":
        yield bench.trainer
        return
    if jax.process_count() > 1:
        raise UserError("--executor=ray: Ray has processes of its own; leave --distributed out")
    with connect_ray(config.ray_address, config.num_workers):
        make_trainer = functools.partial(
            _make_same_trainer, dataclasses.replace(config, num_workers=1), bench.inputs.digests
        )
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
