"""Which children of a round share a compiled program, and which are trained at once."""

from collections.abc import Callable, Container, Hashable, Sequence
from typing import NamedTuple

from mnms_jax.types import ChildSpec

# Children that a device trains at once, by backend. On CPUs each has a core of its own. Elsewhere
# small children wait for kernels to be launched, which several at once share; not measured.
_LANES = {"cpu": 1}
_OTHER_LANES = 8


class Chunk(NamedTuple):
    """Children of one architecture, trained at once."""

    architecture: Hashable
    members: tuple[int, ...]  # indices into the specs, ascending


def default_lanes(backend: str) -> int:
    """Returns the number of children that a device of this backend trains at once."""
    return _LANES.get(backend, _OTHER_LANES)


def plan_chunks(
    specs: Sequence[ChildSpec],
    size: Callable[[Hashable], int] = lambda _: 1,
    compiled: Container[Hashable] = (),
) -> list[Chunk]:
    """Groups children by architecture and cuts the groups into chunks.

    No child is padded to the shape of another: children of different architectures never share a
    chunk. What is compiled already comes first, so that there is work while the rest compiles;
    otherwise architectures come in the order in which they first appear.

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
    return sorted(chunks, key=lambda chunk: chunk.architecture not in compiled)
