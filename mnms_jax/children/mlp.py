"""Children for records, rows of numbers and categories: multilayer perceptrons, their space."""

import functools
from collections.abc import Hashable, Mapping
from typing import NamedTuple

import flax.linen as nn
import numpy as np

from mnms_jax.children.dense import (
    NORMALIZATIONS,
    dense_hyperparameters,
    dense_layers,
    padded_units,
    unpadded,
)
from mnms_jax.children.layers import ACTIVATIONS, keep_mask, make_child_model, optimizer_settings
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


class RecordPreprocessing(NamedTuple):
    """How records become features."""

    scaling: str  # of numbers: "standard", mean 0 and deviation 1; "normal", by their ranks


class RecordArchitecture(NamedTuple):
    """What chooses the compiled program of a record child."""

    linear: bool  # whether the features go to the outputs directly too
    hidden_layers: int
    hidden_size: int  # most units of a hidden layer

    def __str__(self) -> str:
        hidden = f"{self.hidden_layers}x{self.hidden_size}" if self.hidden_layers else ""
        return "+".join(part for part in ("linear" * self.linear, hidden) if part) or "linear"


class RecordHyperparameters(NamedTuple):
    """What the program of a record child takes as traced inputs."""

    input_dropout: AnyArray
    hidden_size: AnyArray  # units of each hidden layer
    hidden_activation: AnyArray  # [7], see layers.ACTIVATIONS
    normalization: AnyArray  # index into dense.NORMALIZATIONS
    hidden_dropout: AnyArray


PRESETS = ("cpu", "full")


def make_record_family(preset: str = "cpu") -> ChildFamily:
    """Returns the record children of a preset.

    Args:
      preset: "full" (all choices) or "cpu" (the same decisions with fewer and lighter choices).

    Raises:
      UserError: an unknown preset.
    """
    if preset not in PRESETS:
        raise UserError(f"space {preset!r} is unknown; there are {', '.join(PRESETS)}")
    return ChildFamily(SearchSpace(_decisions(preset == "cpu")), _make_spec, make_record_model)


def _make_spec(design: Mapping[str, Choice]) -> ChildSpec:
    architecture = RecordArchitecture(
        linear=bool(design.get("linear", False)),
        hidden_layers=int(design["hidden_layers"]),
        hidden_size=padded_units(design),
    )
    hyperparameters = RecordHyperparameters(
        input_dropout=np.float32(design["input_dropout"]),
        **dense_hyperparameters(design),
    )
    return ChildSpec(
        architecture,
        RecordPreprocessing(str(design["scaling"])),
        hyperparameters,
        {"network": optimizer_settings(design)},
        int(design["samples"]),
        unpadded(architecture, design),
    )


def _decisions(cpu: bool) -> list[Decision]:
    layers = (0, 1, 2, 3) if cpu else (0, 1, 2, 3, 4, 6)
    hidden: dict[str, tuple[Choice, ...]] = {"hidden_layers": layers[1:]}
    dropouts = (0.0, 0.1, 0.3) if cpu else (0.0, 0.05, 0.1, 0.2, 0.3, 0.5)
    activations = ("relu", "swish", "tanh") if cpu else tuple(ACTIVATIONS)
    samples = (20_000, 50_000, 100_000, 200_000) if cpu else (200_000, 500_000, 1_000_000)
    return [
        Decision("scaling", ("standard", "normal")),
        Decision("input_dropout", dropouts),
        Decision("hidden_layers", layers),
        Decision("hidden_size", (32, 64, 128) if cpu else (64, 128, 256, 512), hidden),
        Decision("hidden_activation", activations, hidden),
        Decision("normalization", NORMALIZATIONS, hidden),
        Decision("hidden_dropout", dropouts, hidden),
        Decision("linear", (False, True), hidden),
        Decision("optimizer", ("sgd", "adam", "adagrad")),
        Decision("learning_rate", (0.001, 0.003, 0.01, 0.03, 0.1)),
        Decision("schedule", ("linear", "cosine", "constant")),
        Decision("regularization", (0.0, 1e-4, 1e-3, 1e-2)),
        Decision("samples", samples),
    ]


@functools.cache
def make_record_model(architecture: Hashable, num_classes: int) -> ChildModel:
    """Returns the child of an architecture, always the same object for the same arguments.

    A batch is of features, float32 [B, F]; its constant is how many of them aren't padding, [].
    """
    assert isinstance(architecture, RecordArchitecture)
    return make_child_model(_RecordChild(architecture, num_classes))


class _RecordChild(nn.Module):
    architecture: RecordArchitecture
    num_classes: int

    def setup(self) -> None:
        self.network = _Network(self.architecture, self.num_classes)

    def __call__(
        self,
        x: Array,
        num_features: Array,
        hyper: RecordHyperparameters,
        seed: Array,
        training: Array,
    ) -> Array:
        return self.network(x, num_features, hyper, seed, training)


class _Network(nn.Module):
    architecture: RecordArchitecture
    num_classes: int

    @nn.compact
    def __call__(
        self,
        x: Array,
        num_features: Array,
        hyper: RecordHyperparameters,
        seed: Array,
        training: Array,
    ) -> Array:
        arch = self.architecture
        x *= keep_mask(seed, 100, hyper.input_dropout * training, x.shape)
        bias = self.param("bias", nn.initializers.zeros, (self.num_classes,))
        sizes = (arch.hidden_layers, arch.hidden_size, self.num_classes)
        logits = bias[None]
        logits += dense_layers(self, x, *sizes, hyper, seed, training, num_features)
        if arch.linear:
            logits += nn.Dense(
                self.num_classes, False, kernel_init=nn.initializers.zeros, name="linear"
            )(x)
        return logits
