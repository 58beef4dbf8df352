"""Sums over pairs, tile by tile, against the whole table in NumPy and float64."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from stein_jax.pairs.distances import Distances
from stein_jax.pairs.sums import products, sum_over_pairs
from stein_jax.pairs.tiles import Streaming, of_points

RNG = np.random.default_rng(0)


@settings(max_examples=8, deadline=None, derandomize=True)
@given(
  n=st.integers(1, 9),
  edge=st.integers(1, 10),
  same=st.booleans(),
  held=st.booleans(),
  leave_one_out=st.booleans(),
)
def test_products_and_sums_are_those_of_the_whole_table(
  n, edge, same, held, leave_one_out
):
  with jax.enable_x64(True):
    y = jnp.asarray(RNG.normal(size=(n, 3))) + 5
    x = y if same else jnp.asarray(RNG.normal(size=(4, 3)))
    distances = Distances(of_points(x, None if same else y, Streaming(edge)))
    assert distances.tiles.symmetric == same
    distances = distances.held() if held else distances
    squared = cdist(x, y, "sqeuclidean")
    a, b = RNG.normal(size=(n, 2)), RNG.normal(size=(n, 1))
    got = jax.jit(
      lambda distances, a, b: products(
        distances,
        lambda t: (jnp.exp(-t), jnp.sqrt(1 + t)),
        (a, b),
        leave_one_out=leave_one_out and same,
      )
    )(distances, a, b)
    others = 1 - np.eye(n) if leave_one_out and same else 1.0
    want = (others * np.exp(-squared)) @ a, (others * np.sqrt(1 + squared)) @ b
    for sums, expected in zip(got, want):
      np.testing.assert_allclose(sums, expected, rtol=1e-9, atol=1e-12)

    def values(tiles, column_values, tile, squared):
      return jnp.exp(-squared)

    if same:  # of other queries, equal indices do not mean the same point
      total = sum_over_pairs(distances, values)
      want = (np.exp(-squared) - np.eye(n)).sum()
      np.testing.assert_allclose(total, want, rtol=1e-9, atol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("edge", [2, 9])
def test_values_of_the_columns_are_split_as_these_are(edge):
  x, c = jnp.asarray(RNG.normal(size=(7, 3))), RNG.normal(size=(7, 1))
  distances = Distances(of_points(x, None, Streaming(edge)))
  columns = distances.tiles.columns.split(jnp.asarray(c))

  def values(tiles, column_values, tile, squared):
    row_values = tiles.rows.split(jnp.asarray(c))
    return row_values[tile.row] * column_values[tile.column].T * squared

  want = c.T @ cdist(x, x, "sqeuclidean") @ c
  np.testing.assert_allclose(
    sum_over_pairs(distances, values, columns), want.item(), rtol=1e-10
  )


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("coarse", [True, False])
@pytest.mark.parametrize("leave_one_out", [True, False])
def test_either_way_of_the_distances_gives_the_sums(coarse, leave_one_out):
  x, c = jnp.asarray(RNG.normal(size=(7, 3))), jnp.asarray(RNG.normal(size=(7, 1)))
  distances = Distances(of_points(x, None, Streaming(3)))
  distances = dataclasses.replace(distances, coarse=jnp.asarray(coarse))
  (got,) = products(
    distances, lambda t: (jnp.exp(-t),), (c,), leave_one_out=leave_one_out
  )
  table = np.exp(-cdist(x, x, "sqeuclidean")) - (np.eye(7) if leave_one_out else 0)
  np.testing.assert_allclose(got, table @ np.asarray(c), rtol=1e-10)


def test_gradients_go_through_the_tiles(x64):
  x = jnp.asarray(RNG.normal(size=(7, 2)))
  c = jnp.asarray(RNG.normal(size=(7, 1)))

  def by_tiles(x, edge):
    distances = Distances(of_points(x, None, Streaming(edge)))
    return jnp.square(products(distances, lambda t: (jnp.exp(-t),), (c,))[0]).sum()

  def whole(x):
    t = jnp.square(x[:, None] - x[None]).sum(axis=2)
    return jnp.square(jnp.exp(-t) @ c).sum()

  want = jax.jit(jax.grad(whole))(x)
  for edge in (3, 7):
    got = jax.jit(jax.grad(lambda x, edge=edge: by_tiles(x, edge)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_memory_is_linear_in_the_points():
  n, d = 20_000, 5

  def direction(x):
    return products(Distances(of_points(x)), lambda t: (jnp.exp(-t),), (x,))[0]

  compiled = jax.jit(direction).lower(jax.ShapeDtypeStruct((n, d), jnp.float32))
  used = compiled.compile().memory_analysis().temp_size_in_bytes
  assert used < 20 * n * d * 4 + 8 * 512**2 * 4
