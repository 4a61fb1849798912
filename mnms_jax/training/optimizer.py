"""First-order optimisers as coefficients over two slots, so that which one is a traced input.

With g the gradient, every step is
  m <- momentum m + gain g,   v <- decay v + square g^2,
  w <- w - rate correct(m) / (adaptive (sqrt(correct(v)) + epsilon) + 1 - adaptive),
which is optax's `sgd` with momentum, `adam` and `adagrad` at their defaults. Arithmetic costs less
than a switch over three optimisers, and grouping children by optimiser would compile thrice.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mnms_jax.space import nearest
from mnms_jax.types import AnyArray, Array, OptimizerSettings, Params, UserError


class Coefficients(NamedTuple):
    """One optimiser's coefficients, each a float32 scalar."""

    momentum: np.float32
    gain: np.float32
    decay: np.float32
    square: np.float32
    correction: np.float32  # 1: divide m and v by one minus their decay to the power of the step
    adaptive: np.float32
    epsilon: np.float32
    initial_square: np.float32
    learning_rate: np.float32
    regularization: np.float32  # weight of L2
    fall: np.float32  # of the learning rate until the end, linearly; as a share of it
    cosine: np.float32  # 1: it falls to zero as half a cosine instead


# momentum, gain, decay, square, correction, adaptive, epsilon, initial square
_REGULARIZED = {"kernel", "table", "depthwise", "pointwise"}  # and no bias, scale or shift

_OPTIMIZERS = {
    "sgd": (0.9, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0),
    "adam": (0.9, 0.1, 0.999, 0.001, 1.0, 1.0, 1e-8, 0.0),
    "adagrad": (0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1e-7, 0.1),
}


_SCHEDULES = {"linear": (1.0, 0.0), "cosine": (0.0, 1.0), "constant": (0.0, 0.0)}


def coefficients(settings: OptimizerSettings) -> Coefficients:
    """Returns the coefficients of an optimiser.

    Raises:
      UserError: an unknown optimiser or schedule.
    """
    for what, name, known in (
        ("optimizer", settings.name, _OPTIMIZERS),
        ("schedule", settings.schedule, _SCHEDULES),
    ):
        if name not in known:
            raise UserError(f"{what} {name!r} is unknown{nearest(name, known)}")
    optimizer, schedule = _OPTIMIZERS[settings.name], _SCHEDULES[settings.schedule]
    numbers = (*optimizer, settings.learning_rate, settings.regularization, *schedule)
    return Coefficients(*(np.float32(number) for number in numbers))


def init_slots(params: Params, groups: dict[str, Coefficients]) -> Params:
    """Returns the slots before the first step; `groups` go by params' top-level names.

    They are one array [2, ...] a parameter, which is compiled faster than two.

    Raises:
      UserError: there are no optimisers of these names.
    """
    if groups.keys() != params.keys():
        raise UserError(
            f"a child's spec has optimizers for {', '.join(groups)}, and its model has the groups "
            f"of parameters {', '.join(params)}: name one for each"
        )

    def init(w: Array, c: Coefficients) -> Array:
        start = jnp.stack([0.0, c.initial_square]).reshape(2, *[1] * w.ndim)
        return jnp.broadcast_to(start, (2, *w.shape))

    return {
        name: jax.tree.map(lambda w, c=groups[name]: init(w, c), group)
        for name, group in params.items()
    }


def apply_gradients(
    params: Params,
    grads: Params,
    slots: Params,
    groups: dict[str, Coefficients],
    step: Array,
    num_steps: AnyArray,
    training: AnyArray = True,
) -> tuple[Params, Params]:
    """Makes one step; learning rates that fall to zero are zero after the last one.

    Args:
      params: parameters by group, then by Flax's names.
      grads: their gradients.
      slots: first and second moments of the steps before, [2, ...] for each parameter.
      groups: coefficients of each group.
      step: int32 [], 0 at the first step.
      num_steps: int32 [], steps in all.
      training: bool []; if not, parameters and slots stay as they are.

    Returns:
      Parameters and slots after the step.
    """
    rates: dict[str, tuple[Array, ...]] = {}
    for name, c in groups.items():
        # For plain decays, 1 - correction * decay^t is 1.
        power = jnp.stack([c.momentum, c.decay]) ** jnp.float32(step + 1)
        first, second = 1 / (1 - c.correction * power)
        time = step / num_steps
        share = jnp.where(c.cosine > 0, (1 + jnp.cos(jnp.pi * time)) / 2, 1 - c.fall * time)
        rates[name] = c.learning_rate * share * first, second

    def update(group: str, leaf: str, w: Array, g: Array, slots: Array) -> tuple[Array, Array]:
        c, (rate, correct) = groups[group], rates[group]
        if leaf in _REGULARIZED:
            g = g + c.regularization * w
        decay, gain, square = (
            jnp.stack(pair).reshape(2, *[1] * w.ndim)
            for pair in ((c.momentum, c.decay), (c.gain, 0.0), (0.0, c.square))
        )
        changed = decay * slots + gain * g[None] + square * (g * g)[None]
        slots = jnp.where(training, changed, slots)
        m, v = slots
        scale = c.adaptive * (jnp.sqrt(correct * v) + c.epsilon) + (1 - c.adaptive)
        return jnp.where(training, w - rate * m / scale, w), slots

    moved: Params = {}
    stepped: Params = {}
    for name, group in params.items():
        paths, structure = jax.tree.flatten_with_path(group)
        rows = zip(paths, *(jax.tree.leaves(tree[name]) for tree in (grads, slots)), strict=True)
        pairs = [update(name, path[-1].key, w, g, s) for (path, w), g, s in rows]
        moved[name], stepped[name] = (
            jax.tree.unflatten(structure, column) for column in zip(*pairs, strict=True)
        )
    return moved, stepped
