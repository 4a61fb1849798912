"""Gaussian process regression (Rasmussen & Williams 2006, chapter 2), pure and without LAPACK."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnms_jax.types import Array

_BLOCK = 16  # observations that are conditioned on at once

# Accelerators round the factors of products otherwise, and covariances would lose their meaning.
exact_matmul = functools.partial(jnp.matmul, precision="highest")


class Process(NamedTuple):
    """What S versions of some observations let expect of M points; a pytree."""

    factor: Array  # [R, M], what each observation tells of each point, given those before it
    evidence: Array  # [S], log-likelihood of the observations
    mean: Array  # [S, M]
    variance: Array  # [M]


def condition(
    y: Array,
    among: Array,
    covariance: Array,
    variance: Array,
    count: Array,
    noise: float,
    *,
    most: Array | None = None,
    room: int = 0,
) -> Process:
    """Conditions a Gaussian process on S versions of some observations, at M points.

    The factor is Cholesky's of the observations' covariance, transposed, whose rows go on over the
    points (algorithm 2.1). It is made a block of rows at a time, so as to be matrix products, and
    needs no LAPACK, whose calls from vmapped loops were seen to hang XLA on CPUs.

    Args:
      y: [S, N], of mean zero; the first `count` are observations.
      among: [N, N], covariance of the observations.
      covariance: [N, M], of the observations with the points.
      variance: [M], of the points.
      count: int32 [].
      noise: deviation of an observation.
      most: int32 [], observations that loops go over, from `count` to N. Where many are mapped
        over, loops are much faster with one number for all of them.
      room: rows of zeros that the factor begins with, one for each that `observe` tells of.
    """
    padding = -y.shape[1] % _BLOCK
    y, among = jnp.pad(y, ((0, 0), (0, padding))), jnp.pad(among, ((0, padding), (0, padding)))
    joined = jnp.concatenate([among, jnp.pad(covariance, ((0, padding), (0, 0)))], axis=1)

    def observe_block(b: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        factor, errors, evidence = state  # [N, N + M], [S, N], [S]
        take = functools.partial(
            jax.lax.dynamic_slice_in_dim, start_index=b * _BLOCK, slice_size=_BLOCK
        )

        def explain(earlier: Array, left: tuple[Array, Array]) -> tuple[Array, Array]:
            rows, error = left
            known = jax.lax.dynamic_slice_in_dim(factor, earlier * _BLOCK, _BLOCK)
            told = jax.lax.dynamic_slice_in_dim(errors, earlier * _BLOCK, _BLOCK, axis=1)
            own = take(known, axis=1)
            return rows - exact_matmul(own.T, known), error - exact_matmul(told, own)

        left = (take(joined), take(y, axis=1))
        rows, error = jax.lax.fori_loop(0, b, explain, left)
        is_there = b * _BLOCK + jnp.arange(_BLOCK) < count
        are_there = is_there[:, None] & is_there[None]
        own = jnp.where(are_there, take(rows, axis=1), 0) + noise**2 * jnp.eye(_BLOCK)
        inverse = jnp.where(are_there, _invert_factor(own), 0)
        rows, error = exact_matmul(inverse, rows), exact_matmul(error, inverse.T)
        scales = jnp.where(is_there, jnp.diagonal(inverse), 1)
        evidence += jnp.sum(jnp.log(scales)) - jnp.sum(error**2, axis=1) / 2
        put = jax.lax.dynamic_update_slice_in_dim
        return put(factor, rows, b * _BLOCK, 0), put(errors, error, b * _BLOCK, 1), evidence

    blocks = ((count if most is None else most) + _BLOCK - 1) // _BLOCK
    start = (jnp.zeros_like(joined), jnp.zeros_like(y), jnp.zeros(len(y)))
    factor, errors, evidence = jax.lax.fori_loop(0, blocks, observe_block, start)
    factor = factor[:, len(among) :]
    mean, known = exact_matmul(errors, factor), jnp.sum(factor**2, axis=0)
    factor = jnp.pad(factor, ((room, 0), (0, 0)))
    return Process(factor, evidence, mean, jnp.maximum(variance - known, 1e-6))


def observe(
    process: Process, row: int | Array, point: Array, y: Array, covariance: Array, noise: float
) -> Process:
    """Returns the process with one more observation, which is no evidence: it was only expected.

    Args:
      process: of S versions at M points.
      row: of the factor, one that isn't taken.
      point: int32 [], where it was made.
      y: [S], what was observed there.
      covariance: [M], of that point with all.
      noise: deviation of an observation.
    """
    unknown = covariance - exact_matmul(process.factor[:, point], process.factor)
    scale = jnp.sqrt(process.variance[point] + noise**2)
    told, error = unknown / scale, (y - process.mean[:, point]) / scale
    return process._replace(
        factor=process.factor.at[row].set(told),
        mean=process.mean + error[:, None] * told[None],
        variance=jnp.maximum(process.variance - told**2, 1e-6),
    )


def _invert_factor(covariance: Array) -> Array:
    """Returns the inverse of the Cholesky factor of a covariance [B, B]."""

    def eliminate(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        left, inverse = state
        scale = jax.lax.rsqrt(left[i, i])
        row = inverse[i] * scale
        column = jnp.where(jnp.arange(len(left)) > i, left[:, i] * scale, 0)
        inverse = (inverse - column[:, None] * row[None]).at[i].set(row)
        return left - column[:, None] * column[None], inverse

    start = (covariance, jnp.eye(len(covariance)))
    return jax.lax.fori_loop(0, len(covariance), eliminate, start)[1]
