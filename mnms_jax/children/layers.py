"""Layers whose kind is a traced input, so that one compiled program serves many children."""

import math
import zlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.types import Array, PRNGKey

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


def activate(x: Array, coefficients: Array) -> Array:
    """Applies the activation given by its coefficients [7], element by element."""
    a, cap, b, c, d, e, f = coefficients
    piecewise = a * jnp.minimum(jnp.maximum(x, 0), cap) + b * jnp.minimum(x, 0)
    return piecewise + (c + d * x) * jax.nn.sigmoid(e * x) + f


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
    module: nn.Module, name: str, seed: Array, shape: tuple[int, ...], bound: float | None = None
) -> Array:
    """Returns a parameter of a Flax module that starts uniform in [-bound, bound].

    By default its variance is 1 / fan-in, fan-in being the first axis (LeCun et al. 1998,
    "Efficient BackProp"). The draw depends on the seed and the parameter's path, and is a prefix of
    every longer one, so that padding the leading axis changes no other row. Flax's own keys would
    have it compile a threefry loop for each parameter.
    """
    path = "/".join((*module.path, name))
    bound = math.sqrt(3 / shape[0]) if bound is None else bound

    def init(_: PRNGKey) -> Array:
        bits = counter_bits(seed ^ jnp.uint32(zlib.crc32(path.encode())), shape)
        return to_uniform(bits) * 2 * bound - bound

    return module.param(name, init)


def to_uniform(bits: Array) -> Array:
    """Returns random bits, uint32, as floats in [0, 1)."""
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def dropout(x: Array, rate: Array, seed: Array, layer: int, *, train: bool) -> Array:
    """In training, zeroes a share `rate` of the elements and scales up the others."""
    if not train:
        return x
    bits = counter_bits(seed + jnp.uint32(0x632BE5AB * (layer + 1) % 2**32), x.shape)
    return jnp.where(to_uniform(bits) >= rate, x / (1 - rate), 0.0)


class NormalizedDense(nn.Module):
    """A dense layer, then no, batch or layer normalisation by a traced index into NORMALIZATIONS.

    Batch normalisation: Ioffe & Szegedy (2015); layer normalisation: Ba et al. (2016). Variances
    are E[x^2] - E[x]^2, in one pass. Bias, scale and shift are the rows of one parameter, and the
    moving statistics those of one variable: compilation time goes with the number of arrays.

    Attributes:
      size: units.
      kinds: how many of NORMALIZATIONS the index may name; 2 compiles faster than 3.
      momentum: weight of the past in the moving statistics.
      epsilon: added to variances.
    """

    size: int
    kinds: int = len(NORMALIZATIONS)
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Array, kind: Array, seed: Array, *, train: bool, weights: Array | None = None
    ) -> Array:
        """Returns [..., size]; batch statistics go by the weights, [..., 1], if there are any."""
        kernel = uniform_param(self, "kernel", seed, (x.shape[-1], self.size))
        affine = self.param("affine", lambda _: jnp.zeros((3, self.size)).at[1].set(1.0))
        start = jnp.zeros((2, self.size)).at[1].set(1.0)
        moving = self.variable("batch_stats", "moments", lambda: start)
        rows = [row.reshape((1,) * (x.ndim - 1) + (self.size,)) for row in affine]
        x = x @ kernel + rows[0]
        moments = moving.value
        if train:
            axes = tuple(range(x.ndim - 1))
            weights = jnp.ones((*x.shape[:-1], 1)) if weights is None else weights
            share = weights / jnp.sum(weights)
            moments = jnp.stack([jnp.sum(share * x, axes), jnp.sum(share * x * x, axes)])
            moving.value = self.momentum * moving.value + (1 - self.momentum) * moments
        mean, square = (row.reshape(rows[0].shape) for row in moments)
        if self.kinds > 2:
            mean = jnp.where(kind == 2, jnp.mean(x, -1, keepdims=True), mean)
            square = jnp.where(kind == 2, jnp.mean(x * x, -1, keepdims=True), square)
        factor = jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon) * rows[1]
        return jnp.where(kind > 0, (x - mean) * factor + rows[2], x)
