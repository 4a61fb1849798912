"""Processes that train children one way each, on request, so that ways can take turns.

The parent writes a line `[index, ...]` and gets a line back, a Reply as JSON. Data is prepared
before the first line is read and costs a way nothing.
"""

import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

import mnms_jax as mnms
from benchmarks.children import Arrays, Result, Work, arrays_of, make_work, nth_request

# Ours thrice: with an empty compilation cache, with a filled one, and to fill that (other seed).
WAYS = ("naive", "cold", "warm", "torch")
FILL = "fill"
ROUND = 16  # children that ours trains before the next ones, as a search does by default
_COMPILATION = "/jax/core/compile/backend_compile_duration"

Train = Callable[[Sequence[int]], list[Result]]


class Reply(NamedTuple):
    """What training some children took; the last three fields count from the process's start."""

    seconds: float  # by the clock, tracing and compilation included
    cpu_seconds: float  # of all threads, which a shared machine slows down less
    results: list[Result]  # in the order asked for
    stats: dict[str, float]  # mnms.TrainerStats and its idle share; naive's: the first fields
    peak_mb: float
    prepared_mb: float  # its part before the first child: interpreter, libraries, data


class Worker:
    """A process that trains children one way.

    Args:
      way: one of WAYS, or FILL.
      flags: of the process, beside the way.
      cache: folder of compiled programs.
    """

    def __init__(self, way: str, flags: Sequence[str], cache: str):
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.throughput", f"--way={way}", *flags],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "JAX_COMPILATION_CACHE_DIR": cache},
        )
        self._way = way

    def train(self, indices: Sequence[int]) -> Reply:
        """Trains children and waits for them; no indices: only waits until data is prepared.

        Raises:
          mnms.UserError: the process has ended.
        """
        assert self._process.stdin and self._process.stdout
        line = ""
        if self._process.poll() is None:
            self._process.stdin.write(json.dumps(list(indices)) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        if not line:
            raise mnms.UserError(f"the process of way {self._way!r} ended, see above")
        seconds, cpu_seconds, results, *rest = json.loads(line)
        return Reply(seconds, cpu_seconds, [Result(*result) for result in results], *rest)

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def serve(way: str, tasks: Sequence[str], num_children: int, seed: int, torch_threads: int) -> None:
    """Answers the parent's lines until there are no more."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever else is printed goes to the error stream
    work = make_work(mnms.load_tasks(tasks), num_children, seed)
    stats: Callable[[], dict[str, float]]
    if way == "torch":
        train, stats = _torch(work, torch_threads)
    elif way == "naive":
        train, stats = _naive(work)
    else:
        train, stats = _ours(work, seed + (way == FILL))
    prepared = _peak_mb()
    for line in sys.stdin:
        start, cpu_start = time.perf_counter(), time.process_time()
        results = train(json.loads(line))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
        reply = Reply(seconds, cpu_seconds, results, stats(), _peak_mb(), prepared)
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def _ours(work: Work, seed: int) -> tuple[Train, Callable[[], dict[str, float]]]:
    inputs = work.inputs
    trainer = mnms.Trainer(
        work.family,
        inputs.child_data,
        num_classes=inputs.num_classes,
        seed=seed,
        program_folder=pathlib.Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "programs",
    )
    for request in work.requests:
        spec = work.family.make_spec(request.design)
        jax.block_until_ready(inputs.child_data(request.task_id, spec))

    def train(indices: Sequence[int]) -> list[Result]:
        requests = [nth_request(work.requests, index) for index in indices]
        results = []
        for start in range(0, len(requests), ROUND):
            # After the turn's last round nothing is compiled while another way has its turn.
            trainer.prefetch(requests[start + ROUND : start + 2 * ROUND])
            found = dict(trainer.train(requests[start : start + ROUND]))
            results += [Result(found[i].reward, found[i].seconds, 0.0) for i in sorted(found)]
        return results

    def stats() -> dict[str, float]:
        stats = trainer.stats
        return {**stats._asdict(), "idle_share": stats.idle_share}

    return train, stats


def _naive(work: Work) -> tuple[Train, Callable[[], dict[str, float]]]:
    from benchmarks.naive import train_child

    jax.config.update("jax_enable_compilation_cache", False)
    data = _prepare(work, jax.block_until_ready)
    totals = {"programs": 0, "compile_seconds": 0.0, "run_seconds": 0.0}

    def count(event: str, duration_secs: float, **_: str | int) -> None:
        totals["programs"] += event == _COMPILATION

    jax.monitoring.register_event_duration_secs_listener(count)

    def train(indices: Sequence[int]) -> list[Result]:
        results = []
        for index in indices:
            request, arrays = nth_request(work.requests, index), data[index % len(data)]
            results.append(train_child(request.design, arrays, work.inputs.sizes, index))
            totals["compile_seconds"] += results[-1].compile_seconds
            totals["run_seconds"] += results[-1].seconds - results[-1].compile_seconds
        return results

    return train, totals.copy


def _torch(work: Work, num_threads: int) -> tuple[Train, Callable[[], dict[str, float]]]:
    import torch

    from benchmarks.torch_eager import to_torch, train_child

    if num_threads:
        torch.set_num_threads(num_threads)
    data = _prepare(work, to_torch)

    def train(indices: Sequence[int]) -> list[Result]:
        return [
            train_child(
                nth_request(work.requests, index).design,
                data[index % len(data)],
                work.inputs.sizes,
                index,
            )
            for index in indices
        ]

    return train, lambda: {}


def _prepare(work: Work, convert: Callable[[Arrays], Any]) -> list[Any]:
    """Returns every child's converted data; children that read the same share it."""
    kept: dict[tuple, Any] = {}
    data = []
    for request in work.requests:
        names = ("embedding", "lowercase", "strip")
        key = (request.task_id, *(request.design[name] for name in names))
        if key not in kept:
            kept[key] = convert(arrays_of(work.family, work.inputs, request))
        data.append(kept[key])
    return data


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
