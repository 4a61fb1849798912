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
from mnms_jax.types import AnyArray, Array, ChildModel, Choice, OptimizerSettings, Params, PRNGKey

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


def optimizer_settings(design: Mapping[str, Choice]) -> OptimizerSettings:
    """Returns how a child is trained whose parameters are one group."""
    return OptimizerSettings(
        str(design["optimizer"]),
        float(design["learning_rate"]),
        float(design["regularization"]),
        str(design["schedule"]),
    )


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
