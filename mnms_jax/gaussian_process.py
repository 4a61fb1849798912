"""Gaussian process regression (Rasmussen & Williams 2006, chapter 2), pure and without LAPACK."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mnms_jax.types import Array

LEVEL = 2.0  # prior deviation of the level of observations, beside their covariance
BLOCK = 16  # observations that are conditioned on at once


class Posterior(NamedTuple):
    """What S versions of some observations let expect of M other points."""

    evidence: Array  # [S], log-likelihood of the observations
    mean: Array  # [S, M]
    deviation: Array  # [M]


def condition(
    y: Array, covariance: Array, variance: Array, count: Array, num_real: Array, noise: float
) -> Posterior:
    """Conditions a Gaussian process on S versions of some observations, at M other points.

    Args:
      y: [S, N], of mean zero; the first `count` are observations. N is a multiple of `BLOCK`.
      covariance: [N, N + M], of the points observed with them and the others.
      variance: [M], of the others.
      count: int32 [].
      num_real: int32 [], of the first observations, whose likelihood is the evidence.
      noise: deviation of an observation.
    """
    factor, errors, evidence = _factorise(y, covariance, count, num_real, noise)
    others = factor[:, y.shape[1] :]
    left = jnp.maximum(variance + LEVEL**2 - jnp.sum(others**2, axis=0), 1e-6)
    return Posterior(evidence, errors @ others, jnp.sqrt(left))


def solve(y: Array, covariance: Array, count: Array, noise: float = 0.3) -> Array:
    """Returns the weights [N] by which covariances with observations y [N] give the mean there."""
    factor, errors, _ = _factorise(y[None], covariance, count, count, noise)
    stored = jnp.diagonal(factor)  # (d^2 - noise^2) / d, for the diagonal d of the factor
    diagonal = (stored + jnp.sqrt(stored**2 + 4 * noise**2)) / 2
    upper = jnp.triu(factor, 1)

    def substitute(i: Array, weights: Array) -> Array:
        row = count - 1 - i
        return weights.at[row].set((errors[0, row] - upper[row] @ weights) / diagonal[row])

    return jax.lax.fori_loop(0, count, substitute, jnp.zeros(len(y)))


def _factorise(
    y: Array, covariance: Array, count: Array, num_real: Array, noise: float
) -> tuple[Array, Array, Array]:
    """Returns the Cholesky factor [N, N + M], errors [S, N] and evidence [S] for `condition`.

    The factor of the observations' covariance, transposed, whose rows go on over the other points
    (Rasmussen & Williams 2006, algorithm 2.1). It is made a block of rows at a time, so as to be
    matrix products, ends with the last observation, and needs no LAPACK, whose calls from vmapped
    loops were seen to hang XLA on CPUs. Its diagonal lacks the noise.
    """
    covariance = covariance + LEVEL**2

    def observe(start: Array, i: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        rows, errors, evidence = state
        total = rows[i, start + i] + noise**2
        is_there, after = start + i < count, jnp.arange(BLOCK) > i
        row = jnp.where(is_there, rows[i] / jnp.sqrt(total), 0)
        error = jnp.where(is_there, errors[:, i] / jnp.sqrt(total), 0)
        known = jnp.where(after, row[start + jnp.arange(BLOCK)], 0)
        rows = (rows - known[:, None] * row[None]).at[i].set(row)
        errors = (errors - error[:, None] * known[None]).at[:, i].set(error)
        surprise = jnp.where(start + i < num_real, error**2 + jnp.log(total), 0)
        return rows, errors, evidence - surprise / 2

    def observe_block(b: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        factor, errors, evidence = state  # [N, N + M], [S, N], [S]
        start = b * BLOCK
        take = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=BLOCK)
        own = take(factor, axis=1)
        block = (take(covariance) - own.T @ factor, take(y, axis=1) - errors @ own, evidence)
        rows, error, evidence = jax.lax.fori_loop(
            0, BLOCK, functools.partial(observe, start), block
        )
        put = jax.lax.dynamic_update_slice_in_dim
        return put(factor, rows, start, 0), put(errors, error, start, 1), evidence

    state = (jnp.zeros_like(covariance), jnp.zeros_like(y), jnp.zeros(len(y)))
    blocks = (count + BLOCK - 1) // BLOCK
    return jax.lax.fori_loop(0, blocks, observe_block, state)
