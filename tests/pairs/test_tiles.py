"""Points in blocks, and the tiles of their pairs, against indices in NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest

from stein_jax.pairs.tiles import Streaming, Tile, of_points

RNG = np.random.default_rng(0)


def test_few_queries_and_many_points_make_few_tiles():
  tiles = of_points(jnp.zeros((2, 3)), jnp.zeros((1000, 3)))
  assert len(tiles.diagonal().row) == 2
  assert len(tiles.above().row) == 0


@pytest.mark.parametrize("n", [1, 5, 512, 513, 1000, 1537])
def test_tiles_are_of_one_size_with_little_padding(n):
  tiles = of_points(jnp.zeros((n, 2)))
  assert tiles.symmetric
  assert tiles.rows.edge <= 512
  padded = len(tiles.rows.points) * tiles.rows.edge
  assert n <= padded < n + len(tiles.rows.points)


@pytest.mark.parametrize("edge", [1, 3, 7, 100])
@pytest.mark.parametrize("same", [True, False])
def test_every_pair_is_in_one_tile(same, edge):
  """A tile above the diagonal of a symmetric table stands for two."""
  m, n = (7, 7) if same else (7, 5)
  tiles = of_points(
    jnp.zeros((m, 2)), None if same else jnp.zeros((n, 2)), Streaming(edge)
  )
  counts = np.zeros((m, n), int)
  positions = []
  for is_diagonal, group in ((True, tiles.diagonal()), (False, tiles.above())):
    for tile in zip(*group):
      positions.append(int(tile[0]))
      row, column, inside = map(np.asarray, tiles.indices(Tile(*map(int, tile))))
      row, column = np.broadcast_arrays(row, column)
      np.add.at(counts, (row[inside], column[inside]), 1)
      if not is_diagonal:
        np.add.at(counts.T, (row[inside], column[inside]), 1)
  np.testing.assert_array_equal(counts, 1)
  assert positions == list(range(len(positions)))


def test_rows_are_split_as_the_points_are_and_joined_again():
  x, values = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 2))
  blocks = of_points(jnp.asarray(x), None, Streaming(3)).rows
  np.testing.assert_allclose(
    blocks.joined(blocks.points), x - x.mean(axis=0, keepdims=True), atol=1e-6
  )
  split = blocks.split(jnp.asarray(values))
  assert split.shape == (3, 3, 2)
  np.testing.assert_allclose(blocks.joined(split), values, rtol=1e-6)
  norms = np.square(np.asarray(blocks.points)).sum(axis=2)
  np.testing.assert_allclose(blocks.norms, norms, rtol=1e-6)


def test_points_may_stay_where_they_are():
  x = RNG.normal(size=(5, 2)).astype(np.float32)
  tiles = of_points(jnp.asarray(x), centered=False)
  np.testing.assert_array_equal(tiles.rows.joined(tiles.rows.points), x)
