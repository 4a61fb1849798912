"""Image children made of cells that are searched for, in the manner of NASNet.

Zoph et al. (2018, "Learning Transferable Architectures for Scalable Image Recognition",
arXiv:1707.07012); the five operations are those of ENAS (Pham et al. 2018, arXiv:1802.03268). A
normal and a reduction cell are designed, of blocks that each add two operations on earlier hidden
states of the cell. The states that no block takes are concatenated. Cells are stacked, filters
doubling at reductions. Which states and operations a block takes are traced inputs, so that all
cells share one program. Departures, for the sake of CPUs: an operation convolves once, not twice; a
block normalises its sum, not each operation; a reduction cell halves its inputs as it projects
them, so that all its states have one shape; the stem halves larger images too.
"""

import functools
from collections.abc import Hashable, Iterator, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.children.dense import Normalization, batch_moments, dense_layers, normalize
from mnms_jax.children.image import (
    Convolution,
    ImageChildModule,
    augmentation_decisions,
    training_decisions,
)
from mnms_jax.children.layers import (
    keep_mask,
    make_child_model,
    optimizer_settings,
    uniform_param,
)
from mnms_jax.children.operations import MOST_TAPS, OPERATIONS, TAPS, operate
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.types import AnyArray, Array, ChildFamily, ChildModel, ChildSpec, Choice

BLOCKS = 3  # of a cell
KINDS = ("normal", "reduction")
INPUTS = ("last", "before", *(f"block{number}" for number in range(BLOCKS - 1)))
_STATES = 2 + BLOCKS  # hidden states of a cell: the outputs of the last two cells, and the blocks
_REDUCTIONS = 2
_MOMENTUM = 0.9  # weight of the past in moving statistics
_SMALL = 16  # pixels of a side that the stem leaves as they are
_BATCH = 1  # index into dense.NORMALIZATIONS


class CellArchitecture(NamedTuple):
    """What chooses the compiled program of a child of cells: not the cells."""

    cells: int  # normal cells before, between and behind the two reduction cells
    filters: int  # of the first cells

    def __str__(self) -> str:
        return f"cells {self.cells}x{self.filters}"


class CellHyperparameters(NamedTuple):
    """What the program of a child of cells takes as traced inputs; K kinds of cell, N blocks."""

    shift: AnyArray  # most pixels by which training images are moved, in each direction
    flip: AnyArray  # 1.0: half of the training images are mirrored, 0.0: none
    inputs: AnyArray  # int32 [K, N, 2], hidden states that the blocks' operations take
    operations: AnyArray  # int32 [K, N, 2], indices into OPERATIONS
    conv_dropout: AnyArray  # share of the feature maps


def make_cell_family() -> ChildFamily:
    """Returns image children made of cells, in a size that CPUs can train."""
    return ChildFamily(SearchSpace(_decisions()), _make_spec, make_cell_model)


def _decisions() -> list[Decision]:
    cells = [
        Decision(_name(kind, block, what, side), choices)
        for kind in KINDS
        for block in range(BLOCKS)
        for what, choices in (("input", INPUTS[: 2 + block]), ("operation", OPERATIONS))
        for side in (0, 1)
    ]
    return [
        *augmentation_decisions(cpu=True),
        Decision("cells", (1, 2)),
        Decision("filters", (8, 16)),
        *cells,
        Decision("conv_dropout", (0.0, 0.2, 0.5)),
        *training_decisions(cpu=True),
    ]


def _name(kind: str, block: int, what: str, side: int) -> str:
    return f"{kind}{block}_{what}{side}"


def cell_choices(design: Mapping[str, Choice], kind: str, what: str) -> list[list[str]]:
    """Returns what a design chose for a kind of cell: for each block, one for each of its sides.

    Args:
      design: choices by name.
      kind: "normal" or "reduction".
      what: "input" or "operation".
    """
    return [
        [str(design[_name(kind, block, what, side)]) for side in (0, 1)] for block in range(BLOCKS)
    ]


def _make_spec(design: Mapping[str, Choice]) -> ChildSpec:
    def indices(what: str, known: tuple[str, ...]) -> np.ndarray:
        chosen = [cell_choices(design, kind, what) for kind in KINDS]
        return np.vectorize(known.index)(chosen).astype(np.int32)

    architecture = CellArchitecture(int(design["cells"]), int(design["filters"]))
    hyper = CellHyperparameters(
        shift=np.float32(design["shift"]),
        flip=np.float32(design["flip"]),
        inputs=indices("input", INPUTS),
        operations=indices("operation", OPERATIONS),
        conv_dropout=np.float32(design["conv_dropout"]),
    )
    return ChildSpec(
        architecture,
        None,
        hyper,
        {"network": optimizer_settings(design)},
        int(design["samples"]),
        unused=_count_unused(architecture, hyper),
    )


def stack_of_cells(architecture: CellArchitecture) -> Iterator[tuple[int, int]]:
    """Yields each cell's index into KINDS and its filters, from the images on."""
    for stage in range(1 + _REDUCTIONS):
        filters = architecture.filters << stage
        if stage:
            yield 1, filters
        yield from [(0, filters)] * architecture.cells


def _count_unused(architecture: CellArchitecture, hyper: CellHyperparameters) -> int:
    """Returns how many of the parameters a design has no use for."""
    taken = [len(np.unique(inputs)) for inputs in hyper.inputs]
    stack = [*stack_of_cells(architecture)]
    unused = 0
    for number, (kind, filters) in enumerate(stack):
        for operation in hyper.operations[kind].ravel():
            taps = TAPS.get(OPERATIONS[operation], 0)
            unused += (MOST_TAPS - taps) * filters + (0 if taps else filters**2)
        # The outputs go to the next two cells, and to the readout, which is as wide as the last.
        readers = [*stack[number + 1 : number + 3], *stack[-1:] * (number + 1 == len(stack))]
        for _, columns in readers:
            fields = 4 if columns > filters else 1
            unused += taken[kind] * filters * fields * columns
    return unused


@functools.cache
def make_cell_model(architecture: Hashable, num_classes: int) -> ChildModel:
    """Returns the child of an architecture, always the same object for the same arguments.

    A batch is of images, uint8 [B, S, S, C]; its constants are their PixelStatistics.
    """
    assert isinstance(architecture, CellArchitecture)
    return make_child_model(ImageChildModule(_Network(architecture, num_classes)))


class _Network(nn.Module):
    architecture: CellArchitecture
    num_classes: int

    @nn.compact
    def __call__(self, x: Array, hyper: CellHyperparameters, seed: Array, training: Array) -> Array:
        stack = [*stack_of_cells(self.architecture)]
        stem = Convolution(stack[0][1], 3, 2 if x.shape[1] > _SMALL else 1, name="stem")
        last = before = stem(x, seed), jnp.float32(stack[0][1])
        for number, (kind, filters) in enumerate(stack):
            side = -(-last[0].shape[1] // (1 + kind))
            states = [
                _Projection(filters, side, name=f"{name}{number}")(*output, seed, training)
                for name, output in (("last", last), ("before", before))
            ]
            cell = _Cell(filters, kind, name=f"cell{number}")
            x, fan_in = cell(jnp.stack(states), hyper, seed, training)
            mask = keep_mask(
                seed, 100 + number, hyper.conv_dropout * training, (len(x), 1, 1, x.shape[3])
            )
            before, last = last, (x * mask, fan_in)
        readout = _Projection(filters, side, name="readout")(*last, seed, training)
        x = jnp.mean(jax.nn.relu(readout), (1, 2))
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        return dense_layers(self, x, 0, 0, self.num_classes, hyper, seed, training) + bias[None]


class _Projection(nn.Module):
    """Brings a cell's output to the filters and pixels of another cell, and normalises it."""

    filters: int
    side: int

    @nn.compact
    def __call__(self, x: Array, fan_in: Array, seed: Array, training: Array) -> Array:
        """Returns [B, side, side, filters] for x [B, H, H, C], H being side or twice that.

        Args:
          x: activations.
          fan_in: [], how many of the C columns may be other than zero.
          seed: uint32 [].
          training: bool [].
        """
        size = -(-x.shape[1] // self.side)
        x = jnp.pad(x, ((0, 0), *[(0, self.side * size - x.shape[1])] * 2, (0, 0)))
        fields = [x[:, row::size, column::size] for row in range(size) for column in range(size)]
        x = jnp.concatenate(fields, -1)
        shape, bound = (x.shape[-1], self.filters), jnp.sqrt(3 / (size**2 * fan_in))
        x @= uniform_param(self, "kernel", seed, shape, bound)
        norm = Normalization(self.filters, name="norm")
        flat = norm(x.reshape(-1, self.filters), self.filters, jnp.int32(_BATCH), training)
        return flat.reshape(x.shape)


class _Cell(nn.Module):
    filters: int
    kind: int  # index into KINDS

    @nn.compact
    def __call__(
        self, states: Array, hyper: CellHyperparameters, seed: Array, training: Array
    ) -> tuple[Array, Array]:
        """Returns activations [B, S, S, _STATES * filters], and how many columns aren't zero.

        Args:
          states: [2, B, S, S, filters], the outputs of the last cell and of the one before.
          hyper: has the wiring.
          seed: uint32 [].
          training: bool [].
        """
        inputs, operations = hyper.inputs[self.kind], hyper.operations[self.kind]
        weights = self._weights(operations, seed)
        affine = self.param("affine", lambda _: self._every_block([0.0, 1.0, 0.0]))
        moving = self.variable("batch_stats", "moments", lambda: self._every_block([0.0, 1.0]))

        def block(states: Array, known: tuple) -> tuple[Array, Array]:
            number, inputs, operations, weights, affine, fixed = known

            def add(total: Array, side: tuple) -> tuple[Array, None]:
                source, operation, weights = side
                x = jax.lax.dynamic_index_in_dim(states, source, keepdims=False)
                return total + operate(operation, x, weights), None

            y, _ = jax.lax.scan(add, jnp.zeros_like(states[0]), (inputs, operations, weights))
            flat = y.reshape(-1, self.filters)
            moments = batch_moments(jax.lax.stop_gradient(flat + affine[None, 0]))
            kind = jnp.int32(_BATCH)
            flat = normalize(flat, affine, kind, self.filters, fixed, jnp.asarray(training))
            y = flat.reshape(y.shape)
            return jax.lax.dynamic_update_index_in_dim(states, y, 2 + number, 0), moments

        # Loops, as one operation's code is compiled for all.
        states = jnp.pad(states, ((0, BLOCKS), *[(0, 0)] * 4))
        numbers = np.arange(BLOCKS)
        known = (numbers, inputs, operations, weights, affine, moving.value)
        states, moments = jax.lax.scan(block, states, known)
        if not self.is_initializing():
            moving.value += jnp.where(training, 1 - _MOMENTUM, 0.0) * (moments - moving.value)
        x = jnp.moveaxis(states, 0, 3)
        free = jnp.ones(_STATES).at[inputs.ravel()].set(0.0)
        x = jax.nn.relu(x) * free[None, None, None, :, None]
        return x.reshape(*x.shape[:3], -1), jnp.sum(free) * self.filters

    def _weights(self, operations: Array, seed: Array) -> tuple[Array, Array]:
        """Returns what separable convolutions multiply with; other operations have them too."""
        columns, blocks = self.filters, (BLOCKS, 2)
        taps = jnp.where(operations == OPERATIONS.index("sep3"), 9, 25)[..., None, None]
        depthwise = uniform_param(
            self, "depthwise", seed, (*blocks, MOST_TAPS, columns), jnp.sqrt(3 / taps)
        )
        bound = float(np.sqrt(3 / columns))
        return depthwise, uniform_param(self, "pointwise", seed, (*blocks, columns, columns), bound)

    def _every_block(self, rows: list[float]) -> Array:
        """Returns [BLOCKS, R, filters] for R numbers."""
        shape = (BLOCKS, len(rows), self.filters)
        return jnp.broadcast_to(jnp.asarray(rows)[None, :, None], shape)
