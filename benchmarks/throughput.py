"""How many children a minute, against one jitted JAX program a child and against PyTorch?

Claim: what a design decides beyond shapes is a traced input here, so children share compiled
programs, which are kept on disk; a loop that builds and compiles every child anew mostly compiles.
The same children, drawn at random from the `cpu` space, on the same samples, in four ways:
`naive` (benchmarks/naive.py: own module and own jitted step for each child), `cold` and `warm`
(mnms_jax.Trainer with an empty and with a filled compilation cache) and `torch`
(benchmarks/torch_eager.py). Each has a process of its own; they take turns, chunk by chunk.
Imports and the preparation of data are not counted, tracing and compilation are.

Command: python -m benchmarks.throughput --json=throughput.json
Variants: --long=400 (a cold search of 400 trials against naive), --ways=naive,cold
Cost: 25 minutes on two CPU cores that others used too. Ways that keep both cores busy (cold, warm)
lose most to others' load: see the CPU seconds too, and measure on an idle machine.
"""

import importlib.util
import json
import pathlib
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import rich.console
from absl import flags, logging

import mnms_jax as mnms
from benchmarks import summary
from benchmarks.children import arrays_of, kind_of, make_work, num_steps, num_tokens, step_flops
from benchmarks.workers import FILL, ROUND, WAYS, Reply, Worker, serve

_TASKS = flags.DEFINE_list("tasks", ["vader_movie", "vader_amazon"], "Tasks, taking turns.")
_CHILDREN = flags.DEFINE_integer("children", 64, "Number of children.", lower_bound=1)
_CHUNK = flags.DEFINE_integer("chunk", 16, "Children that a way trains at a turn.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Of the designs and of their training.")
_WAYS = flags.DEFINE_list("ways", list(WAYS), f"Some of {', '.join(WAYS)}.")
_TORCH_THREADS = flags.DEFINE_integer(
    "torch_threads", 1, "PyTorch's threads within an operation; 0: its default, one a core."
)
_LONG = flags.DEFINE_integer("long", 0, "Trials of the cold search; 0: none.", lower_bound=0)
_LONG_NAIVE = flags.DEFINE_integer(
    "long_naive_trials", 64, "How many of them naive trains; the rest is extrapolated."
)
_JSON = flags.DEFINE_string("json", None, "File to write the figures to.")
_WAY = flags.DEFINE_string("way", None, "For the benchmark's own processes.")

_LONG_TURN = 5 * ROUND  # children that the long search trains before naive has a turn

_PROGRESS = rich.console.Console(stderr=True, soft_wrap=True)


def matmul_gflops(size: int = 2048, repeats: int = 3) -> float:
    """Returns the best rate of float32 matrix products of this machine, in GFLOP/s."""
    x = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - start)
    return 2 * size**3 / min(seconds) / 1e9


def _worker(way: str, num_children: int, cache: str) -> Worker:
    shared = (
        f"--tasks={','.join(_TASKS.value)}",
        f"--children={num_children}",
        f"--seed={_SEED.value}",
        f"--torch_threads={_TORCH_THREADS.value}",
    )
    worker = Worker(way, shared, cache)
    worker.train([])
    return worker


def _chunks(count: int, size: int) -> list[list[int]]:
    return [list(range(i, min(i + size, count))) for i in range(0, count, size)]


def take_turns(
    workers: Mapping[str, Worker], limits: Mapping[str, int], size: int
) -> tuple[dict[str, list[Reply]], list[float]]:
    """Trains chunk after chunk, all ways one after another on each; another begins every time.

    Args:
      workers: by way.
      limits: children that each trains.
      size: of a chunk.

    Returns:
      Replies of every way, and the machine's matmul rates in between, GFLOP/s.
    """
    replies: dict[str, list[Reply]] = {way: [] for way in workers}
    peaks = []
    ways = list(workers)
    for turn, chunk in enumerate(_chunks(max(limits.values()), size)):
        peaks.append(matmul_gflops())
        for way in ways[turn % len(ways) :] + ways[: turn % len(ways)]:
            indices = [index for index in chunk if index < limits[way]]
            if indices:
                replies[way].append(workers[way].train(indices))
                first, last, seconds = indices[0], indices[-1], replies[way][-1].seconds
                _PROGRESS.print(f"{way}, children {first} to {last}: {seconds:.1f} s")
    return replies, peaks


def compare(ways: Sequence[str], work: summary.Load) -> dict[str, Any]:
    """Trains all children all ways and returns the figures."""
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as filled:
        noise = None
        if "warm" in ways:
            filler = _worker(FILL, _CHILDREN.value, filled)
            noise = [filler.train(chunk) for chunk in _chunks(_CHILDREN.value, _CHUNK.value)]
            filler.close()
        workers = {
            way: _worker(way, _CHILDREN.value, filled if way == "warm" else empty) for way in ways
        }
        replies, peaks = take_turns(workers, dict.fromkeys(ways, _CHILDREN.value), _CHUNK.value)
        figures = summary.compare(replies, noise, work, peaks)
        ours = workers.get("warm", workers.get("cold"))
        if ours is not None:
            figures["ours_ms_a_step"] = _by_kind(ours, work)
            figures["matmul_fraction"] = _matmul_fraction(ours, work)
        for worker in workers.values():
            worker.close()
    return figures


def _by_kind(ours: Worker, work: summary.Load) -> dict[str, float]:
    """Returns milliseconds a step, by the clock, of training all children of a kind at once."""
    found = {}
    for kind in sorted(set(work.kinds)):
        indices = [i for i, own in enumerate(work.kinds) if own == kind]
        seconds = ours.train([len(work.kinds) + i for i in indices]).seconds
        found[kind] = 1000 * seconds / sum(work.steps[i] for i in indices)
    return found


def _matmul_fraction(ours: Worker, work: summary.Load, children: int = 4, turns: int = 3) -> float:
    """Returns the useful share of the matmul peak when training the children with most work.

    Several children of the design with most operations a step are trained, their program being
    compiled, in turns with the measurement of the peak; the median is returned.
    """
    widest = max(range(len(work.flops)), key=lambda i: work.flops[i])
    indices = [widest + len(work.flops) * (1 + repeat) for repeat in range(children)]
    total = children * work.steps[widest] * work.flops[widest]
    fractions = []
    for _ in range(turns):
        peak = matmul_gflops()
        fractions.append(total / ours.train(indices).seconds / 1e9 / peak)
    return sorted(fractions)[len(fractions) // 2]


def measure_long(num_trials: int, num_naive: int) -> dict[str, Any]:
    """Runs a cold search of many random trials against naive, which may train fewer of them.

    In rounds, like a real search: while one trains, the programs of the next are compiled.
    """
    with tempfile.TemporaryDirectory() as empty:
        limits = {"cold": num_trials, "naive": min(num_naive, num_trials)}
        workers = {way: _worker(way, num_trials, empty) for way in limits if limits[way]}
        replies, _ = take_turns(workers, limits, _LONG_TURN)
        for worker in workers.values():
            worker.close()
    return summary.long_run(replies, limits)


def main() -> None:
    """Measures, then shows and writes the figures; or is one of the benchmark's processes."""
    if _WAY.value:
        serve(_WAY.value, _TASKS.value, _CHILDREN.value, _SEED.value, _TORCH_THREADS.value)
        return
    ways = list(_WAYS.value)
    if unknown := set(ways) - set(WAYS):
        raise mnms.UserError(f"ways {', '.join(unknown)} are unknown; there are {', '.join(WAYS)}")
    if "torch" in ways and importlib.util.find_spec("torch") is None:
        logging.warning("PyTorch isn't installed, so it isn't compared: pip install .[benchmarks]")
        ways.remove("torch")
    tasks = mnms.load_tasks(_TASKS.value)
    family, inputs, requests = make_work(tasks, _CHILDREN.value, _SEED.value)
    designs = [request.design for request in requests]
    work = summary.Load(
        [kind_of(design) for design in designs],
        [num_steps(design) for design in designs],
        [
            step_flops(
                design,
                num_tokens(arrays_of(family, inputs, request)),
                tasks[request.task_id].num_classes,
            )
            for design, request in zip(designs, requests, strict=True)
        ],
    )
    figures = compare(ways, work)
    if _LONG.value:
        figures["long"] = measure_long(_LONG.value, _LONG_NAIVE.value)
        figures["compile_share"] = figures["long"]["compile_share"]
    figures = {"tasks": _TASKS.value, "seed": _SEED.value, **figures}
    summary.show(figures, rich.console.Console(width=120))
    if _JSON.value:
        pathlib.Path(_JSON.value).write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    mnms.run_main(main)
