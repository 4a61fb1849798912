"""Runs the training of children: compiles, schedules, measures, and turns failures into results."""

import concurrent.futures
import threading
import time
import zlib
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from mnms_jax.training.optimizer import coefficients
from mnms_jax.training.plan import plan_buckets
from mnms_jax.training.program import BATCH_SIZE, Outcome, Recipe, make_program
from mnms_jax.types import Array, ChildData, ChildFamily, ChildSpec, Choice, Params

# Task index and child -> the data that the child's program takes.
DataSource = Callable[[int, ChildSpec], ChildData]

# Children run for about a second: on a CPU it pays to compile faster, by up to a quarter.
_COMPILER_OPTIONS: dict[str, dict] = {"cpu": {"xla_backend_optimization_level": 1}}


class Request(NamedTuple):
    """A child to train."""

    task_id: int
    task_name: str
    trial: int  # number of the trial on its task, from 0
    design: Mapping[str, Choice]


class TrialResult(NamedTuple):
    """What became of a trial."""

    reward: float | None  # validation accuracy in [0, 1]; None when failed
    failed: str | None  # the reason
    seconds: float  # of training, without compilation
    samples: int  # training examples seen
    bucket: str  # the compiled program


class TrainerStats(NamedTuple):
    """Where the time went; several threads' seconds add up."""

    programs: int
    compile_seconds: float
    run_seconds: float


class Trainer:
    """Trains children of one family on several tasks.

    A trial's result depends on the seed, the task's name, the trial's number and the design, and
    on nothing else: neither on its neighbours in a round nor on the number of workers.

    Args:
      family: the kind of child.
      data: gives each child its data.
      num_classes: most classes of a task.
      seed: of all trials.
      num_workers: threads that compile and train at once; XLA computes outside Python's lock.
    """

    def __init__(
        self,
        family: ChildFamily,
        data: DataSource,
        *,
        num_classes: int,
        seed: int = 0,
        num_workers: int = 2,
    ):
        self._family = family
        self._data = data
        self._num_classes = num_classes
        self._seed = seed
        self._pool = concurrent.futures.ThreadPoolExecutor(num_workers, "mnms-train")
        self._programs: dict[Hashable, Callable] = {}
        self._program_locks: dict[Hashable, threading.Lock] = {}
        self._lock = threading.Lock()
        self._compile_seconds = 0.0
        self._run_seconds = 0.0

    @property
    def stats(self) -> TrainerStats:
        with self._lock:
            return TrainerStats(len(self._programs), self._compile_seconds, self._run_seconds)

    def train(self, requests: Sequence[Request]) -> Generator[tuple[int, TrialResult]]:
        """Trains children and yields (index of the request, result) as they finish.

        Closing the generator leaves out the children whose training hasn't begun.
        """
        specs = [self._family.make_spec(request.design) for request in requests]
        buckets = plan_buckets(specs)
        # One child of every program first, so that no worker waits for another's compilation.
        order = [bucket.members[0] for bucket in buckets]
        order += sorted(i for bucket in buckets for i in bucket.members[1:])
        futures = {self._pool.submit(self._train_one, requests[i], specs[i]): i for i in order}
        try:
            for done in concurrent.futures.as_completed(futures):
                yield futures[done], done.result()
        finally:
            for future in futures:
                future.cancel()

    def fit(self, request: Request) -> tuple[Outcome, Params]:
        """Trains one child again, exactly as before, and returns its variables too."""
        spec = self._family.make_spec(request.design)
        inputs = self._inputs(request, spec)
        return self._program(spec.architecture, inputs)(*inputs)

    def _train_one(self, request: Request, spec: ChildSpec) -> TrialResult:
        label = str(spec.architecture)
        start = time.perf_counter()
        try:
            inputs = self._inputs(request, spec)
            program = self._program(spec.architecture, inputs)
            start = time.perf_counter()
            outcome, _ = program(*inputs)
            accuracy, steps = float(outcome.accuracy), int(outcome.num_steps)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return TrialResult(None, "out of memory", time.perf_counter() - start, 0, label)
        seconds = time.perf_counter() - start
        with self._lock:
            self._run_seconds += seconds
        if not np.isfinite(accuracy):
            reason = f"diverged: not finite after step {steps} of {inputs[1].num_steps}"
            return TrialResult(None, reason, seconds, steps * BATCH_SIZE, label)
        return TrialResult(accuracy, None, seconds, steps * BATCH_SIZE, label)

    def _inputs(self, request: Request, spec: ChildSpec) -> tuple[Array, Recipe, ChildData]:
        optimizers = {name: coefficients(s) for name, s in spec.optimizers.items()}
        num_steps = np.int32(-(-spec.num_samples // BATCH_SIZE))
        recipe = Recipe(spec.hyperparameters, optimizers, num_steps)
        return self._trial_seed(request), recipe, self._data(request.task_id, spec)

    def _trial_seed(self, request: Request) -> Array:
        task_key = jax.random.fold_in(
            jax.random.key(self._seed), zlib.crc32(request.task_name.encode())
        )
        return jax.random.bits(jax.random.fold_in(task_key, request.trial), dtype=np.uint32)

    def _program(self, architecture: Hashable, inputs: tuple[Any, ...]) -> Callable:
        with self._lock:
            own_lock = self._program_locks.setdefault(architecture, threading.Lock())
        with own_lock:
            if architecture not in self._programs:
                start = time.perf_counter()
                model = self._family.make_model(architecture, self._num_classes)
                lowered = jax.jit(make_program(model)).lower(*inputs)
                compiled = lowered.compile(_COMPILER_OPTIONS.get(jax.default_backend()))
                with self._lock:
                    self._compile_seconds += time.perf_counter() - start
                    self._programs[architecture] = compiled
            return self._programs[architecture]
