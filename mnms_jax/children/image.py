"""Image classification children: convolutional networks, and their search space."""

import functools
from collections.abc import Hashable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from mnms_jax.children.dense import (
    NORMALIZATIONS,
    Normalization,
    dense_hyperparameters,
    dense_layers,
    padded_units,
    unpadded,
)
from mnms_jax.children.layers import (
    ACTIVATIONS,
    activate,
    activation_coefficients,
    keep_mask,
    layer_bits,
    make_child_model,
    optimizer_settings,
    to_uniform,
    uniform_param,
)
from mnms_jax.space import Decision, SearchSpace
from mnms_jax.types import (
    AnyArray,
    Array,
    ChildFamily,
    ChildModel,
    ChildSpec,
    Choice,
    UserError,
)


class ImageArchitecture(NamedTuple):
    """What chooses the compiled program of an image child."""

    blocks: int  # each a convolution, a 2 x 2 pooling, normalisation, activation and dropout
    filters: int  # of the first block; each further one has twice as many
    kernel_size: int  # of all convolutions
    pooling: str  # "max", "mean", or "stride": the convolution moves by two
    skip: bool  # whether a block's pooled input is added to its output
    readout: str  # what the dense layers see: "flat", all positions; "mean", their mean
    hidden_layers: int
    hidden_size: int  # most units of a hidden layer

    def __str__(self) -> str:
        skip = " skip" if self.skip else ""
        hidden = f" {self.hidden_layers}x{self.hidden_size}" if self.hidden_layers else " linear"
        convolutions = f"conv{self.kernel_size}x{self.filters} {self.blocks}x{self.pooling}"
        return f"{convolutions}{skip} {self.readout}{hidden}"


class ImageHyperparameters(NamedTuple):
    """What the program of an image child takes as traced inputs."""

    shift: AnyArray  # most pixels by which training images are moved, in each direction
    flip: AnyArray  # 1.0: half of the training images are mirrored, 0.0: none
    conv_activation: AnyArray  # [7], see layers.ACTIVATIONS
    conv_normalization: AnyArray  # index into dense.NORMALIZATIONS
    conv_dropout: AnyArray  # share of the feature maps
    hidden_size: AnyArray  # units of each hidden layer
    hidden_activation: AnyArray  # [7]
    normalization: AnyArray  # index into dense.NORMALIZATIONS
    hidden_dropout: AnyArray


class PixelStatistics(NamedTuple):
    """What a task's training images are scaled by."""

    mean: AnyArray  # float32 [C]
    deviation: AnyArray  # float32 [C]


PRESETS = {"cpu": 32, "full": 96}  # most pixels of a side; larger images are made smaller


def make_image_family(preset: str = "cpu") -> ChildFamily:
    """Returns the image children of a preset.

    Args:
      preset: "full" (all choices) or "cpu" (the same decisions with fewer and lighter choices).

    Raises:
      UserError: an unknown preset.
    """
    if preset not in PRESETS:
        raise UserError(f"space {preset!r} is unknown; there are {', '.join(sorted(PRESETS))}")
    return ChildFamily(SearchSpace(_decisions(preset == "cpu")), _make_spec, make_image_model)


def _make_spec(design: Mapping[str, Choice]) -> ChildSpec:
    architecture = ImageArchitecture(
        blocks=int(design["blocks"]),
        filters=int(design["filters"]),
        kernel_size=int(design["kernel_size"]),
        pooling=str(design["pooling"]),
        skip=bool(design["skip"]),
        readout=str(design["readout"]),
        hidden_layers=int(design["hidden_layers"]),
        hidden_size=padded_units(design),
    )
    samples = int(design["samples"])
    return ChildSpec(
        architecture,
        None,
        _hyperparameters(design),
        {"network": optimizer_settings(design)},
        samples,
        unpadded(architecture, design),
    )


def _hyperparameters(design: Mapping[str, Choice]) -> ImageHyperparameters:
    def number(name: str) -> np.float32:
        return np.float32(design.get(name, 0.0))

    return ImageHyperparameters(
        shift=number("shift"),
        flip=number("flip"),
        conv_activation=activation_coefficients(str(design["conv_activation"])),
        conv_normalization=np.int32(NORMALIZATIONS.index("batch") * number("conv_batch_norm")),
        conv_dropout=number("conv_dropout"),
        **dense_hyperparameters(design),
    )


def _decisions(cpu: bool) -> list[Decision]:
    activations = ("relu", "swish", "tanh") if cpu else tuple(ACTIVATIONS)
    dropouts = (0.0, 0.2, 0.5) if cpu else (0.0, 0.1, 0.2, 0.3, 0.5)
    layers = (0, 1) if cpu else (0, 1, 2)
    hidden: dict[str, tuple[Choice, ...]] = {"hidden_layers": layers[1:]}
    return [
        *augmentation_decisions(cpu),
        Decision("blocks", (1, 2, 3) if cpu else (1, 2, 3, 4)),
        Decision("filters", (8, 16) if cpu else (16, 32, 64, 128)),
        Decision("kernel_size", (3, 5)),
        Decision("pooling", ("max", "mean", "stride")),
        Decision("skip", (False, True)),
        Decision("conv_activation", activations),
        Decision("conv_batch_norm", (False, True)),
        Decision("conv_dropout", dropouts),
        Decision("readout", ("flat", "mean")),
        Decision("hidden_layers", layers),
        Decision("hidden_size", (64, 128) if cpu else (128, 256, 512), hidden),
        Decision("hidden_activation", activations, hidden),
        Decision("normalization", NORMALIZATIONS, hidden),
        Decision("hidden_dropout", dropouts, hidden),
        *training_decisions(cpu),
    ]


def augmentation_decisions(cpu: bool) -> list[Decision]:
    """Returns what is decided of how training images are changed, in the space for CPUs or not."""
    return [
        Decision("shift", (0, 1, 2) if cpu else (0, 1, 2, 4)),
        Decision("flip", (False, True)),
    ]


def training_decisions(cpu: bool) -> list[Decision]:
    """Returns what is decided of how children are trained, in the space for CPUs or not."""
    samples = (10_000, 20_000, 40_000) if cpu else (200_000, 500_000, 1_000_000, 2_000_000)
    return [
        Decision("optimizer", ("sgd", "adam", "adagrad")),
        Decision("learning_rate", (0.001, 0.003, 0.01, 0.03, 0.1)),
        Decision("schedule", ("linear", "cosine", "constant")),
        Decision("regularization", (0.0, 1e-4, 1e-3)),
        Decision("samples", samples),
    ]


@functools.cache
def make_image_model(architecture: Hashable, num_classes: int) -> ChildModel:
    """Returns the child of an architecture, always the same object for the same arguments.

    A batch is of images, uint8 [B, S, S, C]; its constants are their PixelStatistics.
    """
    assert isinstance(architecture, ImageArchitecture)
    return make_child_model(ImageChildModule(_Network(architecture, num_classes)))


class ImageChildModule(nn.Module):
    """Scales images, augments them in training, and shows them to a network.

    Attributes:
      network: takes images [B, H, W, C], hyperparameters, a seed and whether it is trained.
    """

    network: nn.Module

    def __call__(
        self, images: Array, statistics: PixelStatistics, hyper: Any, seed: Array, training: Array
    ) -> Array:
        """Returns logits [B, number of classes] for images, uint8 [B, H, W, C].

        Args:
          images: the batch.
          statistics: of the task.
          hyper: has shift and flip, see ImageHyperparameters, and what the network reads.
          seed: uint32 [].
          training: bool [].
        """
        mean, deviation = (x.reshape(1, 1, 1, -1) for x in statistics)
        x = (images - mean) / deviation
        x = augment(x, seed, hyper.shift * training, hyper.flip * training)
        logits: Array = self.network(x, hyper, seed, training)
        return logits


def augment(x: Array, seed: Array, shift: Array, flip: Array) -> Array:
    """Mirrors images at random, and moves them; what comes in at the border is zero.

    Args:
      x: [B, H, W, C].
      seed: uint32 [].
      shift: [], most pixels in each of the two directions.
      flip: [], 1.0: each is mirrored with probability 1/2; 0.0: none is.
    """
    num_images, height, width, _ = x.shape
    down, right, mirrored = to_uniform(layer_bits(seed, 200, (3, num_images, 1)))
    down, right = (jnp.floor(u * (2 * shift + 1) - shift).astype(int) for u in (down, right))
    rows = jnp.arange(height)[None] + down
    columns = jnp.arange(width)[None]
    columns = jnp.where(mirrored < flip / 2, width - 1 - columns, columns) + right
    # A negative index would count from the end.
    rows, columns = (jnp.where(i < 0, max(height, width), i) for i in (rows, columns))
    image = jnp.arange(num_images)[:, None, None]
    return x.at[image, rows[:, :, None], columns[:, None]].get(mode="fill", fill_value=0)


class _Network(nn.Module):
    architecture: ImageArchitecture
    num_classes: int

    @nn.compact
    def __call__(
        self, x: Array, hyper: ImageHyperparameters, seed: Array, training: Array
    ) -> Array:
        arch = self.architecture
        for number in range(arch.blocks):
            x = self._block(x, number, hyper, seed, training)
        x = jnp.mean(x, (1, 2)) if arch.readout == "mean" else x.reshape(len(x), -1)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        logits = dense_layers(
            self, x, arch.hidden_layers, arch.hidden_size, self.num_classes, hyper, seed, training
        )
        return logits + bias[None]

    def _block(
        self, x: Array, number: int, hyper: ImageHyperparameters, seed: Array, training: Array
    ) -> Array:
        """Returns [B, ceil(H / 2), ceil(W / 2), filters] for x [B, H, W, C]."""
        arch = self.architecture
        filters = arch.filters << number
        x = jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)))
        stride = 2 if arch.pooling == "stride" else 1
        y = Convolution(filters, arch.kernel_size, stride, name=f"conv{number}")(x, seed)
        if arch.pooling != "stride":
            y = _pool(y, arch.pooling)
        if arch.skip:
            y += Convolution(filters, 1, name=f"skip{number}")(_pool(x, "mean"), seed)
        # Pooled first, as normalisation and activation then take a quarter of the numbers.
        norm = Normalization(filters, name=f"norm{number}")
        flat = norm(y.reshape(-1, filters), filters, hyper.conv_normalization, training)
        y = flat.reshape(y.shape)
        # Whole feature maps are dropped, as neighbouring pixels are correlated (Tompson et al.
        # 2015, "Efficient Object Localization Using Convolutional Networks").
        maps = (len(y), 1, 1, filters)
        mask = keep_mask(seed, 100 + number, hyper.conv_dropout * training, maps)
        return activate(y, hyper.conv_activation, mask)


class Convolution(nn.Module):
    """A convolution with zeros around, as one matrix product over what each filter sees.

    XLA's own take ten times as long on CPUs inside of a loop, which training is.
    """

    filters: int
    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: Array, seed: Array) -> Array:
        """Returns [B, H / stride, W / stride, filters] for x [B, H, W, C]."""
        _, height, width, channels = x.shape
        border = self.size // 2
        x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)))
        seen = [
            x[:, row : row + height : self.stride, column : column + width : self.stride]
            for row in range(self.size)
            for column in range(self.size)
        ]
        shape = (self.size**2 * channels, self.filters)
        return jnp.concatenate(seen, -1) @ uniform_param(self, "kernel", seed, shape)


def _pool(x: Array, kind: str) -> Array:
    """Returns the largest or the mean of every 2 x 2 positions; [B, H, W, C], H and W even."""
    num_images, height, width, channels = x.shape
    fields = x.reshape(num_images, height // 2, 2, width // 2, 2, channels)
    return (jnp.max if kind == "max" else jnp.mean)(fields, (2, 4))
