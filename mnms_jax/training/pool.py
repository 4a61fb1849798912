"""Programs compiled in the background, those that children wait for first."""

import collections
import concurrent.futures
import contextlib
import queue
import threading
import time
from collections.abc import Callable, Generator, Hashable
from typing import Any, NamedTuple, TypeAlias

from mnms_jax.training.program import Outcome
from mnms_jax.types import Params


class Program(NamedTuple):
    """A compiled program."""

    run: Callable[..., tuple[Outcome, Params]]  # of stacked inputs
    num_children: int


FutureProgram: TypeAlias = concurrent.futures.Future[Program]


class Results:
    """What comes of a call of `train`, put by any thread and taken by one.

    Args:
      arrived: called each time that there is something to be taken.
    """

    def __init__(self, arrived: Callable[[], None]):
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._arrived = arrived

    def put(self, found: Any) -> None:
        self._queue.put(found)
        self._arrived()

    def take(self, number: int) -> Generator[Any]:
        """Yields so many results as they come; an exception among them is raised."""
        for _ in range(number):
            found = self._queue.get()
            if isinstance(found, BaseException):
                raise found
            yield found


class ProgramPool:
    """Programs by architecture, compiled by threads of their own.

    Args:
      num_threads: that compile.
      max_programs: kept, the last used ones.
      clock: told for how many programs children wait.
    """

    def __init__(self, num_threads: int, max_programs: int, clock: "IdleClock"):
        self._threads = concurrent.futures.ThreadPoolExecutor(num_threads, "mnms-compile")
        self._max_programs = max_programs
        self._clock = clock
        self._lock = threading.RLock()
        self._programs: collections.OrderedDict[Hashable, FutureProgram] = collections.OrderedDict()
        # Not begun: those needed now, and those that will be. How each is compiled.
        self._needed: dict[FutureProgram, Callable[[], Program]] = {}
        self._upcoming: dict[FutureProgram, Callable[[], Program]] = {}
        self._awaited: set[FutureProgram] = set()
        self._num_compiled = 0
        self._compile_seconds = 0.0

    @property
    def stats(self) -> tuple[int, float]:
        """Programs compiled, evicted ones too, and the threads' seconds that this took."""
        with self._lock:
            return self._num_compiled, self._compile_seconds

    def done(self) -> set[Hashable]:
        """Returns the architectures whose programs are there."""
        with self._lock:
            return {key for key, program in self._programs.items() if program.done()}

    def get(
        self, architecture: Hashable, compile_new: Callable[[], Program], *, needed: bool = True
    ) -> FutureProgram:
        """Returns an architecture's program, compiled or to be compiled.

        Args:
          architecture: of the program.
          compile_new: compiles it, in a thread of the pool.
          needed: children wait for it; else it is compiled when all needed ones have begun.
        """
        with self._lock:
            program = self._programs.get(architecture)
            if program is None:
                while len(self._programs) >= self._max_programs:
                    self._programs.popitem(last=False)
                program = self._programs[architecture] = FutureProgram()
                self._upcoming[program] = compile_new
                self._threads.submit(self._compile_next)
            self._programs.move_to_end(architecture)
            if needed:
                self._await(program)
            return program

    def drop(self, architecture: Hashable) -> None:
        """Forgets a program."""
        with self._lock:
            self._programs.pop(architecture, None)

    def forget_queued(self) -> None:
        """Leaves out programs not begun; compiling what nobody waits for would delay an exit."""
        with self._lock:
            for program in (*self._needed, *self._upcoming):
                program.cancel()
            self._needed.clear()
            self._upcoming.clear()
            for architecture, program in list(self._programs.items()):
                if program.cancelled():
                    del self._programs[architecture]
            for program in list(self._awaited):
                self._arrive(program)

    def _await(self, program: FutureProgram) -> None:
        if program in self._upcoming:
            self._needed[program] = self._upcoming.pop(program)
        if not program.done() and program not in self._awaited:
            self._awaited.add(program)
            self._clock.change(awaited=1)
            program.add_done_callback(self._arrive)

    def _arrive(self, program: FutureProgram) -> None:
        with self._lock:
            if program in self._awaited:
                self._awaited.remove(program)
                self._clock.change(awaited=-1)

    def _compile_next(self) -> None:
        with self._lock:
            queue = self._needed or self._upcoming
            if not queue:  # forgotten
                return
            program = next(iter(queue))
            compile_new = queue.pop(program)
            program.set_running_or_notify_cancel()
        start = time.perf_counter()
        try:
            result = compile_new()
        except BaseException as error:
            program.set_exception(error)
            return
        with self._lock:
            self._num_compiled += 1
            self._compile_seconds += time.perf_counter() - start
        program.set_result(result)


class IdleClock:
    """Adds up how long workers have nothing to train while children wait for programs."""

    def __init__(self, num_workers: int):
        self._lock = threading.Lock()
        self._num_workers = num_workers
        self._training = 0
        self._awaited = 0
        self._seconds = 0.0
        self._last = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Seconds so far, of all workers together."""
        self.change()
        return self._seconds

    @contextlib.contextmanager
    def training(self) -> Generator[None]:
        """Counts one more worker that trains."""
        self.change(training=1)
        try:
            yield
        finally:
            self.change(training=-1)

    def change(self, *, training: int = 0, awaited: int = 0) -> None:
        """Counts so many more workers that train, and programs that children wait for."""
        with self._lock:
            now = time.perf_counter()
            if self._awaited:
                self._seconds += (self._num_workers - self._training) * (now - self._last)
            self._last = now
            self._training += training
            self._awaited += awaited
