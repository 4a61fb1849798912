"""Dense layers with no, batch or layer normalisation, of which a child's inputs decide."""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.children.layers import (
    activate,
    activation_coefficients,
    keep_mask,
    round_up,
    uniform_param,
)
from mnms_jax.types import AnyArray, Array, Choice

NORMALIZATIONS = ("none", "batch", "layer")
_LANES = 128  # hidden layers are padded to a multiple
_EPSILON = 1e-5  # added to variances


@jax.custom_vjp
def normalize(
    x: Array, affine: Array, kind: Array, units: AnyArray, fixed: Array, training: Array
) -> Array:
    """Adds a bias, then applies no, batch or layer normalisation.

    Args:
      x: [B, H].
      affine: [3, H], bias, scale and shift.
      kind: int32 [], index into NORMALIZATIONS.
      units: [], how many of the H columns there are; what the others hold is of no use, and they
        get no gradients if they give none.
      fixed: [2, H], means of x (with its bias) and of its square that batch normalisation uses
        outside training.
      training: bool [].
    """
    return _normalize(x, affine, kind, units, fixed, training)[0]


def _normalize(
    x: Array, affine: Array, kind: Array, units: AnyArray, fixed: Array, training: Array
) -> tuple[Array, tuple]:
    bias, scale, shift = (row[None] for row in affine)
    there = (jnp.arange(x.shape[1]) < units)[None]
    x = (x + bias) * there
    mean, square = (row[None] for row in jnp.where(training, batch_moments(x), fixed))
    mean = jnp.where(kind == 2, jnp.sum(x, 1, keepdims=True) / units, mean)
    square = jnp.where(kind == 2, jnp.sum(x * x, 1, keepdims=True) / units, square)
    inverse = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + _EPSILON)
    normal = (x - mean) * inverse
    return jnp.where(kind > 0, normal * scale + shift, x), (normal, inverse, scale, there)


def batch_moments(x: Array) -> Array:
    """Returns the means over the rows of x [B, H] and of its square, [2, H]."""
    return jnp.stack([jnp.mean(x, 0), jnp.mean(x * x, 0)])


def _normalize_forward(*inputs: Array) -> tuple[Array, tuple]:
    out, residuals = _normalize(*inputs)
    return out, (*residuals, *inputs[2:4])


def _normalize_backward(residuals: tuple, grad: Array) -> tuple:
    """Ioffe & Szegedy (2015), section 3; outside training there is no use for gradients."""
    normal, inverse, scale, there, kind, units = residuals
    shift_grad, scale_grad = (jnp.sum(g, 0, keepdims=True) for g in (grad, grad * normal))
    scaled = grad * scale
    rows = grad.shape[0]
    over_units = [jnp.sum(g, 1, keepdims=True) / units for g in (scaled, scaled * normal)]
    first = jnp.where(kind == 2, over_units[0], scale * shift_grad / rows)
    second = jnp.where(kind == 2, over_units[1], scale * scale_grad / rows)
    x_grad = jnp.where(kind > 0, inverse * (scaled - first - normal * second), grad) * there
    # Batch normalisation takes the bias away again; Adam would blow up what rounding leaves of it.
    bias_grad = jnp.sum(x_grad, 0, keepdims=True) * (kind != 1)
    affine_grad = [bias_grad, scale_grad * (kind > 0), shift_grad * (kind > 0)]
    return x_grad, jnp.concatenate(affine_grad), None, None, None, None


normalize.defvjp(_normalize_forward, _normalize_backward)


class NormalizedDense(nn.Module):
    """A dense layer, then no, batch or layer normalisation by a traced index into NORMALIZATIONS.

    How many units there are is traced too: the columns beyond are to be masked by the caller.
    Batch normalisation: Ioffe & Szegedy (2015); layer normalisation: Ba et al. (2016). Variances
    are E[x^2] - E[x]^2, in one pass.

    Attributes:
      size: most units.
    """

    size: int

    @nn.compact
    def __call__(
        self, x: Array, fan_in: AnyArray, units: Array, kind: Array, seed: Array, training: Array
    ) -> Array:
        """Returns [B, size] for x [B, H], of which `fan_in` columns may be other than zero."""
        shape, bound = (x.shape[-1], self.size), jnp.sqrt(3 / fan_in)
        kernel = uniform_param(self, "kernel", seed, shape, bound)
        return Normalization(self.size, name="norm")(x @ kernel, units, kind, training)


def padded_units(design: Mapping[str, Choice]) -> int:
    """Returns most units of a design's hidden layers; 0 if it has none.

    Padding costs a CPU little beside the rest of a child, a TPU nothing, and all sizes up to a
    multiple share a compiled program.
    """
    return round_up(int(design["hidden_size"]), _LANES) if design["hidden_layers"] else 0


def unpadded(architecture: Any, design: Mapping[str, Choice]) -> Any:
    """Returns a design's architecture with as many hidden units as the design says."""
    units = int(design["hidden_size"]) if design["hidden_layers"] else 0
    return architecture._replace(hidden_size=units)


def dense_hyperparameters(design: Mapping[str, Choice]) -> dict[str, AnyArray]:
    """Returns what `dense_layers` takes as traced inputs, by name; a design without has zeros.

    They are hidden_size [], units of each hidden layer; hidden_activation [7], see ACTIVATIONS;
    normalization [], index into NORMALIZATIONS; and hidden_dropout [].
    """
    return {
        "hidden_size": np.float32(design.get("hidden_size", 0.0)),
        "hidden_activation": activation_coefficients(str(design.get("hidden_activation", "relu"))),
        "normalization": np.int32(NORMALIZATIONS.index(str(design.get("normalization", "none")))),
        "hidden_dropout": np.float32(design.get("hidden_dropout", 0.0)),
    }


def dense_layers(
    module: nn.Module,
    x: Array,
    num_layers: int,
    most_units: int,
    num_classes: int,
    hyper: Any,
    seed: Array,
    training: Array,
    fan_in: AnyArray | None = None,
) -> Array:
    """Returns logits [B, num_classes], without a bias, after hidden layers over x [B, H].

    Args:
      module: owns the parameters; called in its `nn.compact` method.
      x: what the first layer sees.
      num_layers: hidden layers.
      most_units: of each.
      num_classes: outputs.
      hyper: has what `dense_hyperparameters` gives.
      seed: uint32 [].
      training: bool [].
      fan_in: how many of x's columns aren't padding; None: all.
    """
    fan_in = x.shape[-1] if fan_in is None else fan_in
    for layer in range(num_layers):
        dense = NormalizedDense(most_units, parent=module, name=f"hidden{layer}")
        x = dense(x, fan_in, hyper.hidden_size, hyper.normalization, seed, training)
        fan_in = hyper.hidden_size
        mask = keep_mask(seed, layer, hyper.hidden_dropout * training, x.shape)
        mask *= jnp.arange(most_units)[None] < fan_in
        x = activate(x, hyper.hidden_activation, mask)
    # [C, H], not [H, C]: only a draw's leading axis may be padded without changing the draw.
    shape, bound = (num_classes, x.shape[-1]), jnp.sqrt(3 / fan_in)
    return x @ uniform_param(module, "kernel", seed, shape, bound).T


class Normalization(nn.Module):
    """A bias and `normalize`, with the moving statistics of the batches that it saw.

    Bias, scale and shift are the rows of one parameter, and the moving statistics those of one
    variable: compilation time goes with the number of arrays.

    Attributes:
      size: units.
      momentum: weight of the past in the moving statistics.
    """

    size: int
    momentum: float = 0.9

    @nn.compact
    def __call__(self, x: Array, units: AnyArray, kind: Array, training: Array) -> Array:
        affine = self.param("affine", lambda _: jnp.zeros((3, self.size)).at[1].set(1.0))
        start = jnp.zeros((2, self.size)).at[1].set(1.0)
        moving = self.variable("batch_stats", "moments", lambda: start)
        fixed = moving.value
        if not self.is_initializing():
            moments = batch_moments(jax.lax.stop_gradient(x + affine[None, 0]))
            moving.value = fixed + jnp.where(training, 1 - self.momentum, 0.0) * (moments - fixed)
        return normalize(x, affine, kind, units, fixed, training)
