"""Operations of a cell on images, of which a traced index takes one.

Gradients by hand, as all branches' intermediate arrays would be stored, of which those of one are
of use.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.types import Array

OPERATIONS = ("identity", "sep3", "sep5", "avg3", "max3")
TAPS = {"sep3": 9, "sep5": 25}  # positions that an operation has weights for
MOST_TAPS = 25
_INNER = np.arange(25).reshape(5, 5)[1:-1, 1:-1].ravel()  # 3 x 3 in the middle of 5 x 5


@jax.custom_vjp
def operate(operation: Array, x: Array, weights: tuple[Array, Array]) -> Array:
    """Applies an operation to images; those that aren't convolutions have no use for weights.

    Args:
      operation: int32 [], index into OPERATIONS.
      x: [B, H, W, F].
      weights: [25, F] of each feature map, of which a 3 x 3 convolution takes those in the middle;
        and [F, F], which mix the maps then (Chollet 2017, "Xception").
    """
    return jax.lax.switch(operation, _FUNCTIONS, x, weights)


def _operate_forward(*inputs: Array) -> tuple[Array, tuple]:
    return operate(*inputs), inputs


def _operate_backward(residuals: tuple, grad: Array) -> tuple:
    operation, x, weights = residuals
    pulls = [functools.partial(_pull, function) for function in _FUNCTIONS]
    return (None, *jax.lax.switch(operation, pulls, x, weights, grad))


operate.defvjp(_operate_forward, _operate_backward)


def _pull(function: "_Function", x: Array, weights: tuple, grad: Array) -> tuple:
    return jax.vjp(function, x, weights)[1](grad)


def _shifted(x: Array, size: int, fill: float = 0.0) -> list[Array]:
    """Returns what each position [B, H, W, C] sees of a field of size x size, row by row."""
    _, height, width, _ = x.shape
    border = size // 2
    x = jnp.pad(x, ((0, 0), (border, border), (border, border), (0, 0)), constant_values=fill)
    return [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]


@jax.custom_vjp
def _depthwise(x: Array, kernel: Array) -> Array:
    """Convolves each map of x [B, H, W, F] by itself; kernel [T, F], T being 9 or 25.

    XLA's own take thirty times as long on CPUs inside of a loop, and autodiff's gradient of a sum
    of shifted images six times.
    """
    size = int(np.sqrt(len(kernel)))
    return functools.reduce(jnp.add, map(_scaled, _shifted(x, size), kernel))


def _scaled(x: Array, factors: Array) -> Array:
    return x * factors[None, None, None]


def _depthwise_forward(x: Array, kernel: Array) -> tuple[Array, tuple]:
    return _depthwise(x, kernel), (x, kernel)


def _depthwise_backward(residuals: tuple, grad: Array) -> tuple:
    x, kernel = residuals
    seen = _shifted(x, int(np.sqrt(len(kernel))))
    return _depthwise(grad, kernel[::-1]), jnp.stack([jnp.sum(s * grad, (0, 1, 2)) for s in seen])


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


@jax.custom_vjp
def _max3(x: Array) -> Array:
    """Returns the largest of each field of 3 x 3; equal ones share the gradient."""
    return functools.reduce(jnp.maximum, _shifted(x, 3, -jnp.inf))


def _max3_forward(x: Array) -> tuple[Array, tuple]:
    highest = _max3(x)
    return highest, (x, highest)


def _max3_backward(residuals: tuple, grad: Array) -> tuple:
    x, highest = residuals
    number = sum((seen == highest).astype(x.dtype) for seen in _shifted(x, 3, -jnp.inf))
    fields = zip(_shifted(highest, 3), _shifted(grad / number, 3), strict=True)
    return (sum(jnp.where(x == best, share, 0.0) for best, share in fields),)


_max3.defvjp(_max3_forward, _max3_backward)


@jax.custom_vjp
def _mean3(x: Array) -> Array:
    """Returns the mean of each field of 3 x 3, with zeros around the image."""
    return functools.reduce(jnp.add, _shifted(x, 3)) / 9


_mean3.defvjp(lambda x: (_mean3(x), None), lambda _, grad: (_mean3(grad),))


def _separable(size: int, x: Array, weights: tuple[Array, Array]) -> Array:
    depthwise, pointwise = weights
    x = jax.nn.relu(x)
    return _depthwise(x, depthwise[_INNER] if size == 3 else depthwise) @ pointwise


_Function = Callable[[Array, tuple[Array, Array]], Array]
# In the order of OPERATIONS.
_FUNCTIONS: tuple[_Function, ...] = (
    lambda x, weights: x,
    functools.partial(_separable, 3),
    functools.partial(_separable, 5),
    lambda x, weights: _mean3(x),
    lambda x, weights: _max3(x),
)
