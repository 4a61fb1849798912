"""Tests of children/ragged.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mnms_jax.children.ragged import Layout, Ragged, group_lengths

ROWS = np.array([[1, 0, 0, 0], [2, 3, 0, 0], [4, 5, 6, 0], [7, 8, 9, 10]], np.int32)


def test_rows_are_flattened_by_group_with_zeros_after_each():
    flat, layout = Ragged(jnp.asarray(ROWS), (2, 4)).flatten(1)
    np.testing.assert_array_equal(flat, [1, 0, 0, 2, 3, 0, 4, 5, 6, 0, 0, 7, 8, 9, 10, 0])
    assert layout == Layout(2, (3, 5))
    np.testing.assert_array_equal(np.flatnonzero(layout.first), [0, 3, 6, 11])


def test_what_is_longer_than_its_group_is_cut_off():
    flat, layout = Ragged(jnp.asarray(ROWS), (1, 3)).flatten(0)
    np.testing.assert_array_equal(flat, [1, 2, 4, 5, 6, 7, 8, 9])
    assert layout == Layout(2, (1, 3))


def test_positions_are_reduced_to_rows_and_rows_repeated_at_positions():
    flat, layout = Ragged(jnp.asarray(ROWS), (2, 4)).flatten(1)
    values = jnp.stack([flat, -flat], -1)
    np.testing.assert_array_equal(
        layout.reduce(jnp.sum, values), [[1, -1], [5, -5], [15, -15], [34, -34]]
    )
    repeated = layout.repeat(jnp.array([[1, 9], [2, 8], [3, 7], [4, 6]]))
    np.testing.assert_array_equal(repeated[:, 0], np.repeat([1, 2, 3, 4], [3, 3, 5, 5]))
    np.testing.assert_array_equal(repeated[:, 1], np.repeat([9, 8, 7, 6], [3, 3, 5, 5]))


def test_lengths_of_groups_are_static():
    ragged = Ragged(jnp.asarray(ROWS), (2, 4))
    assert [leaf.shape for leaf in jax.tree.leaves(ragged)] == [(4, 4)]
    compiled = jax.jit(lambda rows: rows.flatten(0)[0])
    assert compiled(ragged).shape == (12,)
    assert compiled(Ragged(ragged.values, (4,))).shape == (16,)


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([[1, 2, 3, 4, 5, 6, 7, 8]], (2, 4, 6, 8)),
        ([[8, 1, 7, 2, 6, 3, 5, 4], [3, 3, 3, 3]], (3, 4, 6, 8)),
        ([[1, 2, 3, 4, 5, 6, 7, 50]], (2, 4, 6, 9)),
        ([[4]], (4, 4, 4, 4)),
        ([[0, 0, 0, 2]], (1, 1, 1, 2)),
    ],
)
def test_group_lengths_bound_every_set(lengths, expected):
    assert group_lengths([np.array(rows) for rows in lengths], 4, 9) == expected
