"""Tables of pairs in tiles against the whole table in NumPy and float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from stein_jax.pairs import tiles

RNG = np.random.default_rng(0)


@settings(max_examples=6, deadline=None, derandomize=True)
@given(
  n=st.integers(1, 9), edge=st.integers(1, 10), same=st.booleans(), held=st.booleans()
)
def test_products_and_sums_are_those_of_the_whole_table(n, edge, same, held):
  with jax.enable_x64(True):
    y = jnp.asarray(RNG.normal(size=(n, 3))) + 5
    x = y if same else jnp.asarray(RNG.normal(size=(4, 3)))
    table = tiles.of_points(x, y, block_size=edge)
    assert table.symmetric == same
    table = table.hold() if held else table
    squared = cdist(x, y, "sqeuclidean")
    a, b = RNG.normal(size=(n, 2)), RNG.normal(size=(n, 1))
    got = jax.jit(
      lambda table, a, b: tiles.products(
        table, lambda t: (jnp.exp(-t), jnp.sqrt(1 + t)), (a, b)
      )
    )(table, a, b)
    np.testing.assert_allclose(got[0], np.exp(-squared) @ a, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(got[1], np.sqrt(1 + squared) @ b, rtol=1e-9, atol=1e-12)

    def values(table, of_columns, place, squared):
      return jnp.exp(-squared)

    apart = np.exp(-squared) - (np.diag(np.ones(n)) if same else 0)
    if same:  # of other queries the place would tell which point is itself
      total = tiles.sum_over_pairs(table, values)
      np.testing.assert_allclose(total, apart.sum(), rtol=1e-9, atol=1e-12)


def test_few_queries_meet_many_points_in_few_tiles():
  table = tiles.of_points(jnp.zeros((2, 3)), jnp.zeros((1000, 3)))
  assert len(table.places()[0][0]) == 2


@pytest.mark.parametrize("n", [1, 5, 512, 513, 1000, 1537])
def test_tiles_are_of_one_size_with_little_filling(n):
  points = jnp.zeros((n, 2))
  table = tiles.of_points(points, points)
  assert table.width <= 512
  filled = len(table.rows) * table.width
  assert n <= filled < n + len(table.rows)


def test_gradients_go_through_the_tiles(x64):
  x = jnp.asarray(RNG.normal(size=(7, 2)))
  c = jnp.asarray(RNG.normal(size=(7, 1)))

  def by_tiles(x, edge):
    table = tiles.of_points(x, x, block_size=edge)
    return jnp.square(tiles.products(table, lambda t: (jnp.exp(-t),), (c,))[0]).sum()

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
    table = tiles.of_points(x, x)
    return tiles.products(table, lambda t: (jnp.exp(-t),), (x,))[0]

  compiled = jax.jit(direction).lower(jax.ShapeDtypeStruct((n, d), jnp.float32))
  used = compiled.compile().memory_analysis().temp_size_in_bytes
  assert used < 20 * n * d * 4 + 8 * 512**2 * 4
