"""Random numbers of many designs from one key.

They are drawn as one row: XLA takes four times as long to compile the generator for a key a design,
or for arrays of several dimensions, and such programs are slower too (benchmarks/RESULTS.md).
"""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from mnms_jax.types import Array, PRNGKey


def draw(
    key: PRNGKey,
    shape: Sequence[int],
    sampler: Callable[[PRNGKey, tuple[int]], Array] = jax.random.uniform,
) -> Array:
    """Returns numbers of a shape, float32: chances, uniform in [0, 1), unless told otherwise.

    Args:
      key: of all of them.
      shape: of the numbers.
      sampler: key, shape -> independent numbers, as `jax.random.gumbel`.
    """
    return sampler(key, (math.prod(shape),)).reshape(shape)


def index(chance: Array, number: Array | int) -> Array:
    """Returns a chance in [0, 1) as an index below a number, int32, all being equally likely.

    The shapes of both broadcast. Of up to 2^20 indices none is over an eighth likelier than others.
    """
    return (chance * number).astype(jnp.int32)
