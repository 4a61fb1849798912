"""Runs the training of children: compiles, schedules, measures, and turns failures into results."""

import concurrent.futures
import functools
import os
import pathlib
import threading
import time
import zlib
from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.devices import lacks_memory, map_trials, trial_devices, trial_sharding
from mnms_jax.reward import ACCURACY
from mnms_jax.training.executables import ProgramFolder, program_key
from mnms_jax.training.judge import Judge, TrialResult, num_steps, variable_shapes
from mnms_jax.training.optimizer import coefficients
from mnms_jax.training.plan import Chunk, choose_lanes, cost_model, plan_chunks
from mnms_jax.training.pool import FutureProgram, IdleClock, Program, ProgramPool, Results
from mnms_jax.training.program import (
    BATCH_SIZE,
    Outcome,
    Recipe,
    num_logits_batches,
    with_lanes,
)
from mnms_jax.types import (
    AnyArray,
    Array,
    ChildData,
    ChildFamily,
    ChildSpec,
    Choice,
    Params,
)

# Task index and child -> the data that the child's program takes.
DataSource = Callable[[int, ChildSpec], ChildData]

# Children run for about a second: on a CPU it pays to compile faster, by up to a quarter. What a
# loop computes anew at every step need not be a kernel of its own before it, for the same reason.
# One thread trains a child, as several children on a core each are faster than one on all.
_COMPILER_OPTIONS: dict[str, dict] = {
    "cpu": {
        "xla_backend_optimization_level": 1,
        "xla_disable_hlo_passes": "while-loop-invariant-code-motion",
        "xla_cpu_multi_thread_eigen": False,
    }
}


class Request(NamedTuple):
    """A child to train.

    Attributes:
      task_id: index of its task, for the function that gives the trainer its data.
      task_name: decides about its random numbers, with the seed and the trial.
      trial: number of the trial on its task, from 0.
      design: choices of the active decisions by name.
      rung_accuracies: to be reached at the first rungs, or it is stopped.
    """

    task_id: int
    task_name: str
    trial: int
    design: Mapping[str, Choice]
    rung_accuracies: Sequence[float] = ()


class TrainerStats(NamedTuple):
    """Where the time went; several threads' seconds add up."""

    programs: int  # compiled, evicted ones too
    compile_seconds: float
    run_seconds: float
    idle_seconds: float  # of workers without a child to train while children waited for programs

    @property
    def idle_share(self) -> float:
        """The share of the workers' time in which they waited for the compiler."""
        return self.idle_seconds / max(self.idle_seconds + self.run_seconds, 1e-9)


class Trainer:
    """Trains children of one family on several tasks.

    A trial's result depends on the seed, the task's name, the trial's number and the design, and
    on nothing else: neither on its neighbours in a round nor on the number of workers. Several
    devices round otherwise than one.

    Programs are compiled by threads of their own while the workers train what is compiled already.

    Args:
      family: the kind of child.
      data: gives each child its data.
      num_classes: most classes of a task.
      seed: of all trials.
      num_workers: threads that train at once; 0: one a core on CPUs, else 2. XLA computes outside
        Python's lock.
      lanes: children that a device trains at once; 0: by the backend's cost model (plan.py).
        Numbers are rounded otherwise with another number. An architecture that still doesn't fit
        into the device's memory gets half as many, and again.
      devices: that each chunk of children is spread over; by default `trial_devices()`.
      max_programs: programs kept in memory, the last used ones.
      program_folder: where compiled programs are kept for later processes, up to 2 GB; the user's
        own, as they are code. Only those of this package's families are.
      rung_samples: training examples seen, ascending, after which children are evaluated and
        hopeless ones, by their accuracy, stopped; a child's own end counts as none.
      reward: what children are rewarded with, a metric or a formula of metrics (docs/flags.md).
    """

    def __init__(
        self,
        family: ChildFamily,
        data: DataSource,
        *,
        num_classes: int,
        seed: int = 0,
        num_workers: int = 0,
        lanes: int = 0,
        devices: Sequence[jax.Device] | None = None,
        max_programs: int = 512,
        program_folder: pathlib.Path | None = None,
        rung_samples: Sequence[int] = (),
        reward: str = ACCURACY,
    ):
        self._family = family
        self._data = data
        self._num_classes = num_classes
        self._seed = seed
        self._judge = Judge(family, reward)
        self._rung_steps = np.array([num_steps(samples) for samples in rung_samples], np.int32)
        devices = list(trial_devices() if devices is None else devices)
        self._sharding = trial_sharding(devices)
        self._platform = devices[0].platform
        self._costs = cost_model(self._platform)
        self._forced_lanes = lanes
        self._lanes: dict[Hashable, int] = {}  # by architecture
        num_workers = num_workers or (_num_cores() if self._platform == "cpu" else 2)
        self._num_workers = num_workers
        self._workers = concurrent.futures.ThreadPoolExecutor(num_workers, "mnms-train")
        self._clock = IdleClock(num_workers)
        self._programs = ProgramPool(num_workers, max_programs, self._clock)
        self._folder = ProgramFolder(program_folder) if program_folder else None
        self._lock = threading.Lock()
        self._run_seconds = 0.0
        self._upcoming: Sequence[Request] = ()
        self._num_calls = 0  # of `train` that go on

    @property
    def stats(self) -> TrainerStats:
        with self._lock:
            return TrainerStats(*self._programs.stats, self._run_seconds, self._clock.seconds)

    @property
    def most_at_once(self) -> int:
        """Children that a thread trains at once, if they fit into memory."""
        lanes = self._forced_lanes or choose_lanes(self._costs)
        return lanes * self._sharding.num_devices

    @property
    def layout(self) -> str:
        """How children are spread, in words."""
        num_devices = self._sharding.num_devices
        each = self.most_at_once // num_devices
        return (
            f"threads: {self._num_workers}, devices: {num_devices} ({self._platform}), "
            f"children at once by a thread on a device: {each}"
        )

    def prefetch(self, requests: Sequence[Request]) -> None:
        """Has the programs of children compiled that will probably be trained soon.

        While children are trained, after all that these need; what hasn't begun when no call of
        `train` goes on any more is forgotten.
        """
        self._upcoming = list(requests)
        if self._num_calls:
            self._begin_upcoming()

    def train(
        self, requests: Sequence[Request], arrived: Callable[[], None] = lambda: None
    ) -> Generator[tuple[int, TrialResult]]:
        """Has children trained from now on; yields (index of the request, result) as they finish.

        Each time, `arrived` is called by whatever thread. Closing the generator leaves out the
        children whose training hasn't begun. Several calls may go on at once.
        """
        outcomes = self._train_all(requests, Results(arrived))
        next(outcomes)  # as far as to hand them out
        return outcomes

    def _train_all(self, requests: Sequence[Request], results: Results) -> Generator[Any]:
        specs = [self._family.make_spec(request.design) for request in requests]
        closed = threading.Event()

        def guarded(function: Callable[..., None], *args: Any) -> None:
            try:
                if not closed.is_set():
                    function(*args)
            except BaseException as error:
                results.put(error)

        def train_chunk(chunk: Chunk, program: FutureProgram) -> None:
            members = [(requests[i], specs[i]) for i in chunk.members]
            for index, result in zip(chunk.members, self._train(program, members), strict=True):
                results.put((index, result))

        def submit(chunk: Chunk, program: FutureProgram) -> None:
            self._workers.submit(guarded, train_chunk, chunk, program)

        self._num_calls += 1
        try:
            for chunk in self._plan(requests, specs):
                program = self._program(requests[chunk.members[0]], specs[chunk.members[0]])
                program.add_done_callback(functools.partial(guarded, submit, chunk))
            self._begin_upcoming()
            yield None
            yield from results.take(len(requests))
        finally:
            closed.set()
            self._num_calls -= 1
            if not self._num_calls:
                self._programs.forget_queued()

    def fit(self, request: Request) -> tuple[Outcome, Params]:
        """Trains one child again, exactly as before, and returns its variables too."""
        spec = self._family.make_spec(request.design)
        program = self._program(request, spec).result()
        try:
            # To the host, whatever device the child was on.
            outputs = jax.device_get(self._run(program, [(request, spec)]))
        except Exception as error:
            if lacks_memory(error) and self._halve(spec.architecture, program.num_children):
                return self.fit(request)
            raise
        return jax.tree.map(lambda x: x[0], outputs)

    def _train(
        self, program: FutureProgram, members: Sequence[tuple[Request, ChildSpec]]
    ) -> list[TrialResult]:
        """Trains children of one architecture and returns their results."""
        size = program.result().num_children
        if len(members) > size:
            parts = [members[start : start + size] for start in range(0, len(members), size)]
            return [result for part in parts for result in self._train(program, part)]
        start = time.perf_counter()
        outcomes = None
        with self._clock.training():
            try:
                outcomes = jax.device_get(self._run(program.result(), members)[0])
            except Exception as error:
                if not lacks_memory(error):
                    raise
        seconds = time.perf_counter() - start
        with self._lock:
            self._run_seconds += seconds
        if outcomes is None and self._halve(members[0][1].architecture, size):
            return self._train(self._program(*members[0]), members)
        seconds /= len(members)
        if outcomes is None:
            label = str(members[0][1].architecture)
            return [TrialResult(None, "out of memory", seconds, 0, label)] * len(members)
        results = []
        for i, (request, spec) in enumerate(members):
            outcome = jax.tree.map(lambda x, i=i: x[i], outcomes)
            data = self._data(request.task_id, spec)
            results.append(self._judge(outcome, spec, data, seconds))
        return results

    def _halve(self, architecture: Hashable, size: int) -> bool:
        """Has a program that is too large replaced by one of half the lanes; not one of a lane."""
        with self._lock:
            if size == self._sharding.num_devices:
                return False
            if size == self._chunk_size(architecture):  # else another chunk was here first
                self._lanes[architecture] = size // self._sharding.num_devices // 2
                self._programs.drop(architecture)
            return True

    def _run(
        self, program: Program, members: Sequence[tuple[Request, ChildSpec]]
    ) -> tuple[Outcome, Params]:
        """Returns outcomes and variables of a chunk, stacked; more than members in a short one."""
        inputs = [self._inputs(request, spec) for request, spec in members]
        inputs += inputs[-1:] * (program.num_children - len(inputs))
        stacked = jax.tree.map(_stack, *inputs)
        return program.run(*jax.device_put(stacked, self._sharding))

    def _chunk_size(self, architecture: Hashable) -> int:
        return self._lanes[architecture] * self._sharding.num_devices

    def _plan(self, requests: Sequence[Request], specs: Sequence[ChildSpec]) -> list[Chunk]:
        for request, spec in zip(requests, specs, strict=True):
            self._choose_lanes(request, spec)
        return plan_chunks(specs, self._chunk_size, self._programs.done())

    def _choose_lanes(self, request: Request, spec: ChildSpec) -> None:
        """Chooses the lanes of an architecture when it is first seen."""
        with self._lock:
            if spec.architecture in self._lanes:
                return
            memory = (self._sharding.mesh.devices.flat[0].memory_stats() or {}).get("bytes_limit")
            if self._forced_lanes or memory is None:  # CPUs set no limit
                lanes = self._forced_lanes or choose_lanes(self._costs)
            else:
                child_bytes = self._child_bytes(request, spec)
                lanes = choose_lanes(self._costs, child_bytes, memory // self._num_workers)
            self._lanes[spec.architecture] = lanes

    def _child_bytes(self, request: Request, spec: ChildSpec) -> int:
        """Returns the size of a child's data, variables, gradients, optimiser's slots and logits.

        What a step stores on its way isn't counted.
        """
        data = self._data(request.task_id, spec)
        model = self._family.make_model(spec.architecture, self._num_classes)
        variables = variable_shapes(model, spec, data)
        logits = num_logits_batches(len(data.labels)) * BATCH_SIZE * self._num_classes
        # A parameter is there as itself, gradient, two slots, and in the result, as are logits.
        return _num_bytes(data) + 5 * _num_bytes(variables) + 2 * 4 * logits

    def _inputs(self, request: Request, spec: ChildSpec) -> tuple[Array, Recipe, ChildData]:
        optimizers = {name: coefficients(s) for name, s in spec.optimizers.items()}
        needed = np.full(len(self._rung_steps), -np.inf, np.float32)
        needed[: len(request.rung_accuracies)] = request.rung_accuracies
        steps = num_steps(spec.num_samples)
        recipe = Recipe(spec.hyperparameters, optimizers, steps, self._rung_steps, needed)
        return self._trial_seed(request), recipe, self._data(request.task_id, spec)

    def _trial_seed(self, request: Request) -> Array:
        task_key = jax.random.fold_in(
            jax.random.key(self._seed), zlib.crc32(request.task_name.encode())
        )
        return jax.random.bits(jax.random.fold_in(task_key, request.trial), dtype=np.uint32)

    def _begin_upcoming(self) -> None:
        upcoming, self._upcoming = self._upcoming, ()
        for request in upcoming:
            self._program(request, self._family.make_spec(request.design), needed=False)

    def _program(self, request: Request, spec: ChildSpec, *, needed: bool = True) -> FutureProgram:
        """Returns the program that trains a child, compiled or being compiled."""
        self._choose_lanes(request, spec)
        compile_new = functools.partial(self._compile, request, spec)
        return self._programs.get(spec.architecture, compile_new, needed=needed)

    def _compile(self, request: Request, spec: ChildSpec) -> Program:
        lanes = self._lanes[spec.architecture]
        number = (lanes * self._sharding.num_devices,)

        def stacked(x: AnyArray) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(number + np.shape(x), x.dtype, sharding=self._sharding)

        try:
            inputs = jax.tree.map(stacked, self._inputs(request, spec))
            return Program(self._load_or_compile(spec.architecture, lanes, inputs), *number)
        except Exception as error:
            if not lacks_memory(error):
                raise
            return Program(functools.partial(_fail, error), *number)  # as if it lacked when run

    def _load_or_compile(self, architecture: Hashable, lanes: int, inputs: Any) -> Any:
        options = _COMPILER_OPTIONS.get(self._platform)

        def compile_new() -> Any:
            model = self._family.make_model(architecture, self._num_classes)
            program = map_trials(with_lanes(model, lanes), self._sharding)
            return jax.jit(program).lower(*inputs).compile(options)

        if self._folder is None:
            return compile_new()
        devices = list(self._sharding.mesh.devices.flat)
        make_model = self._family.make_model
        key = program_key(make_model, architecture, self._num_classes, inputs, devices, options)
        return self._folder.load_or_compile(key, devices, compile_new)


def _fail(error: BaseException, *_: Any) -> NoReturn:
    raise error


def _num_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _stack(*arrays: AnyArray) -> AnyArray:
    """Stacks arrays where they are; the many small ones are on the host, where it takes no time."""
    return (jnp if isinstance(arrays[0], jax.Array) else np).stack(arrays)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
