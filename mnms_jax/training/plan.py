"""Which children of a round share a compiled program, which are trained at once, and in what order.

A choice costs compilation, time and memory. Programs are exact: no child is padded to the shape of
another, which measured five to nine times slower on CPUs. So there is one program to compile for an
architecture, however its children are cut into chunks, and the order decides how much of that is
hidden; time and memory decide how many children are trained at once.
"""

import collections
from collections.abc import Callable, Container, Hashable, Mapping, Sequence
from typing import NamedTuple

from mnms_jax.types import ChildSpec


class CostModel(NamedTuple):
    """What training children at once costs on a backend."""

    child_seconds: Mapping[int, float]  # by lanes, relative to a child trained alone
    memory_share: float  # of a device's memory that arrays known beforehand may take


# On CPUs, as measured (benchmarks/RESULTS.md; the mean over kinds of children): one at a time, each
# with a core of its own. Elsewhere it is assumed, not measured, that small children wait for
# kernels to be launched, which those at once share; half of the memory is left to what a step
# stores on its way.
_CPU_COSTS = CostModel({1: 1.0, 4: 1.21, 8: 1.39}, memory_share=0.5)
_OTHER_COSTS = CostModel({1: 1.0, 2: 0.5, 4: 0.25, 8: 0.125}, memory_share=0.5)


class Chunk(NamedTuple):
    """Children of one architecture, trained at once."""

    architecture: Hashable
    members: tuple[int, ...]  # indices into the specs, ascending


def cost_model(backend: str) -> CostModel:
    """Returns what training costs on a backend, named as JAX does."""
    return _CPU_COSTS if backend == "cpu" else _OTHER_COSTS


def choose_lanes(costs: CostModel, child_bytes: int = 0, memory_bytes: int | None = None) -> int:
    """Returns how many children of an architecture a device trains at once: the fastest that fit.

    Args:
      costs: of the backend.
      child_bytes: arrays of one child.
      memory_bytes: of the device; None: not known, or no bound.
    """
    budget = float("inf") if memory_bytes is None else costs.memory_share * memory_bytes
    fitting = [lanes for lanes in costs.child_seconds if lanes * child_bytes <= budget]
    return min(fitting, key=lambda lanes: (costs.child_seconds[lanes], lanes), default=1)


def plan_chunks(
    specs: Sequence[ChildSpec],
    size: Callable[[Hashable], int] = lambda _: 1,
    compiled: Container[Hashable] = (),
) -> list[Chunk]:
    """Groups children by architecture, cuts the groups into chunks, and orders these.

    What is compiled already comes first, so that there is work while the rest compiles. The rest
    comes by the work that waits for a program, the most first: about the shortest way through two
    stages, compiling and training, when all programs take as long to compile (Johnson 1954,
    "Optimal two- and three-stage production schedules"). Among equals the longest chunk is first,
    so that no worker has a long one left when the others have finished.

    Args:
      specs: the children.
      size: most children of a chunk of an architecture.
      compiled: architectures whose programs are there.
    """
    members: dict[Hashable, list[int]] = {}
    for index, spec in enumerate(specs):
        members.setdefault(spec.architecture, []).append(index)
    chunks = [
        Chunk(architecture, tuple(indices[start : start + size(architecture)]))
        for architecture, indices in members.items()
        for start in range(0, len(indices), size(architecture))
    ]
    waiting: collections.Counter[Hashable] = collections.Counter()
    for spec in specs:
        if spec.architecture not in compiled:
            waiting[spec.architecture] += spec.num_samples

    def order(chunk: Chunk) -> tuple[bool, int, int, int]:
        longest = max(specs[i].num_samples for i in chunk.members)
        first = members[chunk.architecture][0]
        if chunk.architecture in compiled:
            return False, 0, -longest, first
        return True, -waiting[chunk.architecture], first, -longest

    return sorted(chunks, key=order)
