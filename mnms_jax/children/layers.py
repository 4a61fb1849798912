"""Layers whose kind is a traced input, so that one compiled program serves many children."""

import math
from collections.abc import Callable
from typing import Any

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

    About thirty times cheaper on a CPU than threefry; ample for dropout and shuffling.
    """
    counter = jnp.arange(int(np.prod(shape)), dtype=jnp.uint32).reshape(shape)
    return mix(counter * jnp.uint32(0x9E3779B9) + mix(seed))


def uniform_init(scale: float | None = None) -> Callable[..., Array]:
    """Returns a Flax initialiser, uniform in [-scale, scale]; by default of variance 1 / fan-in.

    LeCun et al. (1998), "Efficient BackProp". A draw is a prefix of every longer one, so that
    padding a parameter's leading axis changes no other row; and it compiles in a tenth of the time
    of threefry's normal draws, which matters since every architecture is compiled once.
    """

    def init(key: PRNGKey, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
        bits = counter_bits(jax.random.bits(key, dtype=jnp.uint32), shape)
        bound = math.sqrt(3 / shape[0]) if scale is None else scale
        return to_uniform(bits).astype(dtype) * 2 * bound - bound

    return init


def to_uniform(bits: Array) -> Array:
    """Returns random bits, uint32, as floats in [0, 1)."""
    return (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24)


def dropout(x: Array, rate: Array, seed: Array | None, layer: int) -> Array:
    """Zeroes a share `rate` of the elements and scales up the others; without a seed, none."""
    if seed is None:
        return x
    bits = counter_bits(seed + jnp.uint32(0x632BE5AB * (layer + 1) % 2**32), x.shape)
    return jnp.where(to_uniform(bits) >= rate, x / (1 - rate), 0.0)


class Normalize(nn.Module):
    """No, batch or layer normalisation of the last axis, by a traced index into NORMALIZATIONS.

    Batch normalisation: Ioffe & Szegedy (2015); layer normalisation: Ba et al. (2016). All three
    keep the same parameters, which the first leaves unused.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Array, kind: Array, *, train: bool) -> Array:
        size = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (size,))
        bias = self.param("bias", nn.initializers.zeros, (size,))
        moving_mean = self.variable("batch_stats", "mean", jnp.zeros, (size,))
        moving_variance = self.variable("batch_stats", "variance", jnp.ones, (size,))
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, variance = jnp.mean(x, axes), jnp.var(x, axes)
            for variable, value in ((moving_mean, mean), (moving_variance, variance)):
                variable.value = self.momentum * variable.value + (1 - self.momentum) * value
        else:
            mean, variance = moving_mean.value, moving_variance.value
        is_batch, is_layer = kind == 1, kind == 2
        centre = jnp.where(is_batch, mean, jnp.mean(x, -1, keepdims=True))
        spread = jnp.where(is_batch, variance, jnp.var(x, -1, keepdims=True))
        normalized = (x - centre) * jax.lax.rsqrt(spread + self.epsilon) * scale + bias
        return jnp.where(is_batch | is_layer, normalized, x)
