"""Children trained by Ray workers: processes on one machine or many, of any speed, that may die.

For clusters where one synchronous program is wrong: machines differ, and are taken away. Workers
train children asynchronously, whoever is free taking the next one, as the actors of Wong &
Gesmundo (2017) do. Which worker trains a child changes nothing, so the trials are those of the
local `Trainer`; to keep workers busy between rounds, have several in flight (run.py).
"""

import contextlib
import dataclasses
import itertools
import logging as stdlib_logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Generator, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from absl import logging

from mnms_jax.training.executables import foundation
from mnms_jax.training.fit import Request, Trainer, TrainerStats
from mnms_jax.training.judge import TrialResult
from mnms_jax.training.plan import plan_chunks
from mnms_jax.training.pool import Results
from mnms_jax.types import ChildSpec, Choice, UserError

_START_SECONDS = 300  # without a worker, after which a search gives up
_RETRY_SECONDS = 1.0  # between two attempts to start a worker
_MOST_DEATHS = 5  # of workers that train a child, after which the child is to blame
_STORE_BYTES = 100 * 2**20  # of Ray's own memory; nothing large is sent


@contextlib.contextmanager
def connect_ray(address: str = "", num_workers: int = 0) -> Iterator[None]:
    """Joins a Ray cluster, or starts one on this machine, and leaves it at the end.

    Where this process has joined one already, nothing is done.

    Args:
      address: `HOST:PORT` of a cluster, or `auto` to find one on this machine; empty: start one,
        which listens on the loopback alone.
      num_workers: that a cluster started here has room for, if more than its cores.

    Raises:
      UserError: Ray is not installed, or there is no cluster at the address.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if not address:
        # By its name for other systems; on Linux too, Ray stays on the loopback only with this.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise UserError(
            '--executor=ray: Ray is not installed; pip install "mnms_jax[ray]"'
        ) from None
    if ray.is_initialized():
        yield
        return
    options: dict[str, Any] = {"address": address or "local"}
    if not address:
        options["num_cpus"] = max(num_workers, os.cpu_count() or 1)
        options["object_store_memory"] = _STORE_BYTES
        options["include_dashboard"] = False
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)  # another program follows
            ray.init(log_to_driver=False, logging_level=stdlib_logging.ERROR, **options)
    except ConnectionError as error:
        raise UserError(
            f"--ray_address={address}: no Ray cluster can be reached there ({error}); start one "
            "by `ray start --head`, or leave the flag out"
        ) from error
    if not address and ray.util.get_node_ip_address() != "127.0.0.1":
        logging.warning("Ray listens on all interfaces, having been imported before this search")
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # which Ray has replaced
    try:
        yield
    finally:
        ray.shutdown()


@dataclasses.dataclass
class _Child:
    """A child to train."""

    call: int  # of `train`, from 0
    index: int  # in this call
    request: Request
    architecture: Hashable
    results: Results  # of this call
    deaths: int = 0  # of workers that trained it


class _Process:
    """What a worker's process does."""

    def prepare(self, make_trainer: Callable[[], Trainer]) -> tuple[int, tuple[str, ...]]:
        """Returns how many children it trains at once, and what their rounding may depend on."""
        self._trainer = make_trainer()
        kind = (self._trainer.layout, jax.devices()[0].device_kind, foundation().hex())
        return self._trainer.most_at_once, kind

    def train(
        self, requests: Sequence[Request]
    ) -> tuple[list[tuple[int, TrialResult]], TrainerStats]:
        """Returns results by index of the request, and where all its time went so far."""
        return list(self._trainer.train(requests)), self._trainer.stats


class _Worker(NamedTuple):
    """A worker that is ready."""

    actor: Any
    most_at_once: int
    architectures: set[Hashable]  # that it was given, and has compiled


class RayTrainer:
    """Trains children as a `Trainer` does, with equal results, in Ray's processes.

    A thread for each worker hands it children, one after another. When a worker dies, its children
    are handed to the next free one, and a new worker takes its place. What returns from `train` is
    being trained already; several calls may go on at once, the first one's children come first.

    Ray must be connected, see `connect_ray`. A worker takes one CPU, and where the cluster has
    GPUs one of these: children are to be trained by devices of one kind, as others round
    otherwise. If workers differ in devices, versions or CPUs, a warning says so.

    Args:
      make_trainer: makes a worker's own trainer, in its process; sent there by pickle.
      make_spec: of the children's family; children of one architecture share a program.
      num_workers: 0: as many as the cluster has GPUs, or cores.

    Raises:
      UserError: by `train`: there was no worker for five minutes, or a child's workers died five
        times. A worker's own errors are raised as they are, with its traceback.
    """

    def __init__(
        self,
        make_trainer: Callable[[], Trainer],
        make_spec: Callable[[Mapping[str, Choice]], ChildSpec],
        *,
        num_workers: int = 0,
    ):
        import ray

        self._ray = ray
        cluster = ray.cluster_resources()
        num_gpus = int(cluster.get("GPU", 0))
        self._new_actor = ray.remote(num_cpus=1, num_gpus=min(num_gpus, 1))(_Process).remote
        self._make_trainer = make_trainer
        self._make_spec = make_spec
        self._changed = threading.Condition()  # the lock of all that follows
        self._pending: list[_Child] = []
        self._calls = itertools.count()
        self._open: list[Results] = []  # of calls that go on
        self._actors: set[Any] = set()  # starting ones too
        self._num_ready = 0
        self._last_ready = time.monotonic()
        self._kinds: set[tuple[str, ...]] = set()
        self._given: set[Hashable] = set()  # architectures that some worker was given
        self._stats: dict[Any, TrainerStats] = {}  # by actor, dead ones too
        self._failure: BaseException | None = None
        self._closed = False
        num_workers = num_workers or num_gpus or int(cluster.get("CPU", 1))
        logging.info("children are trained by %d Ray workers", num_workers)
        self._threads = [
            threading.Thread(target=self._serve, name=f"mnms-ray-{i}", daemon=True)
            for i in range(num_workers)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def stats(self) -> TrainerStats:
        with self._changed:
            all_stats = [TrainerStats(0, 0.0, 0.0, 0.0), *self._stats.values()]
            return TrainerStats(*map(sum, zip(*all_stats, strict=True)))

    def prefetch(self, requests: Sequence[Request]) -> None:
        """Does nothing: a worker compiles what it needs while the others train."""

    def train(
        self, requests: Sequence[Request], arrived: Callable[[], None] = lambda: None
    ) -> Generator[tuple[int, TrialResult]]:
        """Has children trained from now on; yields (index of the request, result) as they finish.

        Each time, `arrived` is called by whatever thread. Closing the generator leaves out the
        children whose training hasn't begun.
        """
        outcomes = self._train(requests, Results(arrived))
        next(outcomes)  # as far as to hand them out
        return outcomes

    def close(self) -> None:
        """Ends all workers, at once."""
        with self._changed:
            self._closed = True
            actors = list(self._actors)
            self._changed.notify_all()
        for actor in actors:
            self._ray.kill(actor)
        for thread in self._threads:
            thread.join(10)

    def _train(self, requests: Sequence[Request], results: Results) -> Generator[Any]:
        specs = [self._make_spec(request.design) for request in requests]
        order = [index for chunk in plan_chunks(specs) for index in chunk.members]
        with self._changed:
            if self._failure:
                raise self._failure
            call = next(self._calls)
            self._pending += [
                _Child(call, i, requests[i], specs[i].architecture, results) for i in order
            ]
            self._open.append(results)
            self._changed.notify_all()
        try:
            yield None
            yield from results.take(len(requests))
        finally:
            with self._changed:
                self._pending = [child for child in self._pending if child.call != call]
                self._open.remove(results)

    def _serve(self) -> None:
        """Keeps one worker at work after another."""
        try:
            while not self._closed:
                worker = self._start()
                if worker is not None:
                    self._work(worker)
        except BaseException as error:
            with self._changed:
                self._failure = error
                for results in self._open:
                    results.put(error)

    def _start(self) -> _Worker | None:
        """Returns a new worker once it is ready, or None if that fails.

        Raises:
          UserError: there has been none for too long.
        """
        with self._changed:
            if self._closed:
                return None
            actor: Any = self._new_actor()
            self._actors.add(actor)
        try:
            ready = actor.prepare.remote(self._make_trainer)
            most_at_once, kind = self._ray.get(ready, timeout=_START_SECONDS)
        except self._ray.exceptions.RayTaskError as error:
            raise _original(error) from None
        except self._ray.exceptions.RayError as error:
            self._dismiss(actor)
            with self._changed:
                seconds = time.monotonic() - self._last_ready
                if not (self._closed or self._num_ready) and seconds >= _START_SECONDS:
                    raise UserError(
                        f"there has been no Ray worker for {seconds:.0f} seconds ({_line(error)}); "
                        "see to the cluster, and the same command goes on from here"
                    ) from error
                self._changed.wait_for(lambda: self._closed, _RETRY_SECONDS)
            return None
        with self._changed:
            self._num_ready += 1
            if self._kinds and kind not in self._kinds:
                logging.warning(
                    "Ray workers differ in devices, versions or kind of CPU: numbers are rounded "
                    "otherwise, and which one trains a child may change its reward a little"
                )
            self._kinds.add(kind)
        return _Worker(actor, most_at_once, set())

    def _work(self, worker: _Worker) -> None:
        """Hands children to a worker until it dies."""
        while children := self._take(worker):
            requests = [child.request for child in children]
            try:
                found, stats = self._ray.get(worker.actor.train.remote(requests))
            except self._ray.exceptions.RayTaskError as error:
                children[0].results.put(_original(error))
                continue
            except self._ray.exceptions.RayError as error:
                self._dismiss(worker.actor)
                self._give_back(children, error)
                return
            with self._changed:
                self._stats[worker.actor] = stats
            for i, result in found:
                children[i].results.put((children[i].index, result))

    def _take(self, worker: _Worker) -> list[_Child]:
        """Returns children of one architecture for a worker, once there are any; none at the end.

        Of the oldest call first; then those whose program the worker has, those whose program
        nobody has, and the rest.
        """

        def order(child: _Child) -> tuple[int, bool, bool]:
            own = child.architecture in worker.architectures
            return child.call, not own, not own and child.architecture in self._given

        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._pending)
            if self._closed:
                return []
            first = min(self._pending, key=order)
            children = [
                child
                for child in self._pending
                if (child.call, child.architecture) == (first.call, first.architecture)
            ][: worker.most_at_once]
            for child in children:
                self._pending.remove(child)
            worker.architectures.add(first.architecture)
            self._given.add(first.architecture)
            return children

    def _give_back(self, children: Sequence[_Child], error: Exception) -> None:
        """Puts the children of a worker that died before all others.

        Raises:
          UserError: it happened to one of them too often.
        """
        with self._changed:
            self._num_ready -= 1
            self._last_ready = time.monotonic()
            if self._closed:
                return
            logging.warning("a Ray worker died, another one trains its children: %s", _line(error))
            for child in children:
                child.deaths += 1
                if child.deaths >= _MOST_DEATHS:
                    raise UserError(
                        f"{child.deaths} Ray workers in turn died while they trained trial "
                        f"{child.request.trial} of {child.request.task_name} ({_line(error)}); "
                        "give them more memory, or search without what its design needs"
                    )
            self._pending[:0] = [child for child in children if child.results in self._open]
            self._changed.notify_all()

    def _dismiss(self, actor: Any) -> None:
        self._ray.kill(actor)
        with self._changed:
            self._actors.discard(actor)


def _original(error: Any) -> Exception:
    """Returns a worker's error: a user's mistake as it was, others with the worker's traceback."""
    return UserError(str(error.cause)) if isinstance(error.cause, UserError) else error


def _line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
