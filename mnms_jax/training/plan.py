"""Which children of a round share a compiled program."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

from mnms_jax.types import ChildSpec


class Bucket(NamedTuple):
    """Children of one architecture."""

    architecture: Hashable
    members: tuple[int, ...]  # indices into the specs, ascending


def plan_buckets(specs: Sequence[ChildSpec]) -> list[Bucket]:
    """Groups children by architecture, in the order in which each first appears."""
    members: dict[Hashable, list[int]] = {}
    for index, spec in enumerate(specs):
        members.setdefault(spec.architecture, []).append(index)
    return [Bucket(architecture, tuple(indices)) for architecture, indices in members.items()]
