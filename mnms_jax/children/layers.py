"""Layers whose kind is a traced input, so that one compiled program serves many children."""

import functools
import math
import zlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.children.ragged import Layout
from mnms_jax.types import AnyArray, Array, ChildModel, Choice, Params, PRNGKey

# Every activation is  a min(max(x, 0), cap) + b min(x, 0) + (c + d x) sigmoid(e x) + f.
# Rows: a, cap, b, c, d, e, f. One formula costs less than a switch, and vmaps.
_NO_CAP = 3e38
ACTIVATIONS: dict[str, tuple[float, ...]] = {
    "relu": (1, _NO_CAP, 0, 0, 0, 1, 0),
    "relu6": (1, 6, 0, 0, 0, 1, 0),
    "leaky_relu": (1, _NO_CAP, 0.01, 0, 0, 1, 0),
    "swish": (0, _NO_CAP, 0, 0, 1, 1, 0),
    "sigmoid": (0, _NO_CAP, 0, 1, 0, 1, 0),
    "tanh": (0, _NO_CAP, 0, 2, 0, 2, -1),
}
NORMALIZATIONS = ("none", "batch", "layer")


def activation_coefficients(name: str) -> np.ndarray:
    """Returns the coefficients, float32 [7], that `activate` takes for an activation."""
    return np.array(ACTIVATIONS[name], np.float32)


def mix(x: Array) -> Array:
    """Scrambles unsigned 32-bit integers (the finaliser of MurmurHash3, a bijection)."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def counter_bits(seed: Array, shape: tuple[int, ...]) -> Array:
    """Returns random bits, uint32, that depend on the seed and each element's index alone.

    A few integer operations where threefry takes twenty rounds; ample for dropout and shuffling.
    """
    counter = jnp.arange(int(np.prod(shape)), dtype=jnp.uint32).reshape(shape)
    return mix(counter * jnp.uint32(0x9E3779B9) + mix(seed))


def uniform_param(
    module: nn.Module,
    name: str,
    seed: Array,
    shape: tuple[int, ...],
    bound: float | AnyArray | None = None,
    *,
    zero_first: bool = False,
) -> Array:
    """Returns a parameter of a Flax module that starts uniform in [-bound, bound].

    By default its variance is 1 / fan-in, fan-in being the first axis (LeCun et al. 1998,
    "Efficient BackProp"). The draw depends on the seed and the parameter's path, and is a prefix of
    every longer one, so that padding the leading axis changes no other row. Flax's own keys would
    have it compile a threefry loop for each parameter.

    Args:
      module: owns the parameter.
      name: of the parameter.
      seed: uint32 [].
      shape: of the parameter.
      bound: a number, or one for each column; may be traced.
      zero_first: row 0 starts at zero, as `embed` expects of its padding.
    """
    path = "/".join((*module.path, name))
    limit = jnp.asarray(math.sqrt(3 / shape[0]) if bound is None else bound, jnp.float32)
    if zero_first:
        limit = limit.reshape(1, -1) * (np.arange(shape[0]) > 0)[:, None]

    def init(_: PRNGKey) -> Array:
        bits = counter_bits(seed ^ jnp.uint32(zlib.crc32(path.encode())), shape)
        return (2 * to_uniform(bits) - 1) * limit.reshape(
            (1,) * (len(shape) - limit.ndim) + limit.shape
        )

    return module.param(name, init)


def to_uniform(bits: Array) -> Array:
    """Returns random bits, uint32, as floats in [0, 1)."""
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def keep_mask(seed: Array, layer: int, rate: Array, shape: tuple[int, ...]) -> Array:
    """Returns what dropout multiplies with: 0 for a share `rate`, 1 / (1 - rate) elsewhere.

    Args:
      seed: uint32 [], another one at each step.
      layer: tells the layers of a model apart.
      rate: [], below 1; 0 outside training.
      shape: of the mask.
    """
    bits = layer_bits(seed, layer, shape)
    return jnp.where(to_uniform(bits) >= rate, 1 / (1 - rate), 0.0)


def layer_bits(seed: Array, layer: int, shape: tuple[int, ...]) -> Array:
    """Returns random bits, uint32, for one of a model's layers, see `counter_bits`."""
    return counter_bits(seed + jnp.uint32(0x632BE5AB * (layer + 1) % 2**32), shape)


def round_up(number: int, step: int) -> int:
    """Returns the least multiple of a step that isn't below a number."""
    return number + -number % step


# Gradients by hand where autodiff would store a handful of intermediate arrays: what is stored is
# written, read and compiled as a kernel of its own.


@jax.custom_vjp
def activate(x: Array, coefficients: Array, mask: Array) -> Array:
    """Applies the activation given by its coefficients [7], then multiplies with a dropout mask."""
    return _activation(x, coefficients)[0] * mask


def _activation(x: Array, coefficients: Array) -> tuple[Array, Array]:
    """Returns the activation and its derivative, element by element."""
    a, cap, b, c, d, e, f = coefficients
    s = jax.nn.sigmoid(e * x)
    value = a * jnp.clip(x, 0, cap) + b * jnp.minimum(x, 0) + (c + d * x) * s + f
    inside = (x > 0) & (x < cap)
    slope = a * inside + b * (x < 0) + d * s + (c + d * x) * e * s * (1 - s)
    return value, slope


def _activate_forward(x: Array, coefficients: Array, mask: Array) -> tuple[Array, tuple]:
    return activate(x, coefficients, mask), (x, coefficients, mask)


def _activate_backward(residuals: tuple, grad: Array) -> tuple:
    x, coefficients, mask = residuals
    return grad * mask * _activation(x, coefficients)[1], None, None


activate.defvjp(_activate_forward, _activate_backward)


@jax.custom_vjp
def embed(table: Array, tokens: Array) -> Array:
    """Returns the rows [..., E] of a table [V, E]; row 0 is padding and gets no gradient.

    Args:
      table: [V, E]; what doesn't train row 0 leaves it as it starts, at zero.
      tokens: int32 [...], in [0, V): not checked.
    """
    return table.at[tokens].get(mode="promise_in_bounds")


def _embed_forward(table: Array, tokens: Array) -> tuple[Array, tuple]:
    return embed(table, tokens), (table, tokens)


def _embed_backward(residuals: tuple, grad: Array) -> tuple:
    table, tokens = residuals
    rows = grad.reshape(-1, table.shape[1])
    total = jnp.zeros_like(table).at[tokens.reshape(-1)].add(rows, mode="promise_in_bounds")
    return total.at[0].set(0.0), None


embed.defvjp(_embed_forward, _embed_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def max_over_windows(windows: Array, kernel: Array, inside: Array, layout: Layout) -> Array:
    """Returns each filter's largest response, [B, F].

    Args:
      windows: [P, K], all that the filters see at each position.
      kernel: [K, F].
      inside: bool [P], windows that count; one of each row at least.
      layout: which of the P positions are whose of the B rows.
    """
    return _max_over_windows(windows, kernel, inside, layout)[0]


def _max_over_windows(
    windows: Array, kernel: Array, inside: Array, layout: Layout
) -> tuple[Array, tuple]:
    windows = jax.lax.optimization_barrier(windows)  # or XLA puts them together twice
    responses = windows @ kernel
    highest = layout.reduce(jnp.max, jnp.where(inside[:, None], responses, -jnp.inf))
    return highest, (windows, kernel, inside, responses, highest)


def _max_over_windows_backward(layout: Layout, residuals: tuple, grad: Array) -> tuple:
    windows, kernel, inside, responses, highest = residuals
    chosen = (responses == layout.repeat(highest)) & inside[:, None]
    # Equal responses share the gradient.
    share = grad / layout.reduce(jnp.sum, chosen.astype(grad.dtype))
    response_grad = jnp.where(chosen, layout.repeat(share), 0.0)
    # Summed in parts: XLA's product over one long axis, its operands transposed, is slower on CPUs.
    parts = 8 if windows.shape[0] % 8 == 0 else 1
    kernel_grad = jnp.einsum(
        "plf,plk->pfk",
        response_grad.reshape(parts, -1, kernel.shape[1]),
        windows.reshape(parts, -1, kernel.shape[0]),
    )
    return response_grad @ kernel.T, jnp.sum(kernel_grad, 0).T, None


max_over_windows.defvjp(_max_over_windows, _max_over_windows_backward)

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


def make_child_model(module: nn.Module) -> ChildModel:
    """Returns a module as a child.

    Args:
      module: takes a batch, constants, hyperparameters, a seed and whether it is trained.
    """

    def init(seed: Array, batch: Any, constants: Any, hyperparameters: Any) -> Params:
        unused = jax.random.key(0)
        return module.init(unused, batch, constants, hyperparameters, seed, False)

    def apply(
        variables: Params,
        batch: Any,
        constants: Any,
        hyperparameters: Any,
        seed: Array,
        training: AnyArray,
    ) -> tuple[Array, Params]:
        inputs = (batch, constants, hyperparameters, seed, training)
        logits, updated = module.apply(variables, *inputs, mutable=["batch_stats"])
        return logits, updated.get("batch_stats", {})

    return ChildModel(init, apply)


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
    """
    fan_in: AnyArray = x.shape[-1]
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


class Convolutions(nn.Module):
    """Convolutions of several widths, and each filter's maximum over the text.

    All are one product with windows of the largest width, where the kernels of the narrower ones
    are zero at the end: a few more operations in one product are faster than fewer in two.
    """

    widths: tuple[int, ...]
    filters: int

    @nn.compact
    def __call__(self, embedded: Array, inside: Array, layout: Layout, seed: Array) -> Array:
        """Returns [B, widths * filters].

        Args:
          embedded: [P, E]; largest width - 1 zeros at least stand at the end of each text.
          inside: bool [P], where windows begin that count; one of each text at least.
          layout: which positions are whose.
          seed: of the initial weights.
        """
        widest, columns = max(self.widths), np.repeat(self.widths, self.filters)
        size = embedded.shape[1]
        used = np.repeat(np.arange(widest), size)[:, None] < columns[None]
        bound = np.sqrt(3 / (columns * size))
        kernel = used * uniform_param(self, "kernel", seed, used.shape, bound)
        beyond = jnp.pad(embedded, ((0, widest - 1), (0, 0)))
        windows = [beyond[offset : offset + len(embedded)] for offset in range(widest)]
        return max_over_windows(jnp.concatenate(windows, -1), kernel, inside, layout)
