"""Batches of rows of different lengths, in a layout that the compiler knows.

A batch's rows stand in groups of equal size, one after another; each group has a length of its own
that none of its rows exceeds. So there is far less padding than at one length for all, and still
every shape is static: rows are sorted once, and every batch takes equally many from each group.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.types import AnyArray, Array


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=["lengths"]
)
@dataclasses.dataclass(frozen=True)
class Ragged:
    """Rows of numbers, zero beyond their ends.

    Attributes:
      values: int32 [B, L].
      lengths: of the groups' longest rows, each at most L; B is a multiple of their number.
    """

    values: AnyArray
    lengths: tuple[int, ...]

    def flatten(self, zeros: int) -> tuple[Array, "Layout"]:
        """Returns the rows one after another, int32 [P], each followed by so many more zeros."""
        values = jnp.pad(self.values, ((0, 0), (0, zeros)))
        size = len(values) // len(self.lengths)
        layout = Layout(size, tuple(length + zeros for length in self.lengths))
        groups = [
            values[i * size : (i + 1) * size, :length] for i, length in enumerate(layout.lengths)
        ]
        return jnp.concatenate([group.reshape(-1) for group in groups]), layout


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where the rows stand among the P positions of a flattened batch.

    Attributes:
      group_size: rows of a group.
      lengths: positions of each row, by group.
    """

    group_size: int
    lengths: tuple[int, ...]

    @property
    def first(self) -> np.ndarray:
        """Which positions are the first ones of rows, bool [P]."""
        rows = [np.tile(np.arange(length) == 0, self.group_size) for length in self.lengths]
        return np.concatenate(rows)

    def split(self, flat: Array) -> Iterator[Array]:
        """Yields the groups [group_size, length, ...] of what stands at the positions [P, ...]."""
        start = 0
        for length in self.lengths:
            end = start + self.group_size * length
            yield flat[start:end].reshape(self.group_size, length, *flat.shape[1:])
            start = end

    def reduce(self, function: Callable[[Array, int], Array], flat: Array) -> Array:
        """Reduces every row's positions, which are axis 1 of a group: [P, ...] -> [B, ...]."""
        return jnp.concatenate([function(group, 1) for group in self.split(flat)])

    def repeat(self, rows: Array) -> Array:
        """Gives every position what its row has: [B, ...] -> [P, ...]."""
        groups = jnp.split(rows, len(self.lengths))
        return jnp.concatenate(
            [
                jnp.broadcast_to(group[:, None], (len(group), length, *group.shape[1:])).reshape(
                    -1, *group.shape[1:]
                )
                for group, length in zip(groups, self.lengths, strict=True)
            ]
        )


def group_lengths(lengths: Sequence[np.ndarray], num_groups: int, most: int) -> tuple[int, ...]:
    """Returns lengths for groups of rows that are sorted by their lengths.

    Args:
      lengths: of the rows of several sets, each int [N].
      num_groups: groups of equal size that each set is cut into.
      most: the last group's length at most.
    """
    found = [
        [np.sort(rows)[-(-(group + 1) * len(rows) // num_groups) - 1] for rows in lengths]
        for group in range(num_groups)
    ]
    return tuple(min(max(1, *map(int, group)), most) for group in found)
