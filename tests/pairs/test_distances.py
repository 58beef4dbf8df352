"""Squared distances by products and by differences, against scipy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.spatial.distance import cdist

from stein_jax.pairs.distances import Distances, squared_differences
from stein_jax.pairs.tiles import Streaming, Tile, of_points


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


def table(distances, m, n):
  """All tiles put together, `[m, n]`."""
  tiles = distances.tiles
  whole = np.full((m, n), np.nan)
  for one_tile in (*zip(*tiles.diagonal()), *zip(*tiles.above())):
    tile = Tile(*map(int, one_tile))
    row, column, inside = map(np.asarray, tiles.indices(tile))
    row, column = (index[inside] for index in np.broadcast_arrays(row, column))
    whole[row, column] = np.asarray(distances.at(tile))[inside]
    if tiles.symmetric:
      whole[column, row] = whole[row, column]
  return whole


# ------------------------------------------------------------------ all the ways


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("edge", [3, 7])
@pytest.mark.parametrize("same", [True, False])
def test_every_way_gives_the_same_distances(same, edge):
  x = normal(7, 3)
  y = x if same else normal(5, 3, seed=1)
  tiles = of_points(x, None if same else y, Streaming(edge))
  want = cdist(x, y, "sqeuclidean")
  of_products = Distances(tiles)
  scales = np.float64(1.0), np.float64(1e-20)  # the latter needs differences
  for distances in (
    of_products,
    of_products.held(),
    of_products.exact(),
    of_products.exact().held(),
    *(of_products.held().resolving(scale) for scale in scales),
  ):
    np.testing.assert_allclose(
      table(distances, *want.shape), want, rtol=1e-10, atol=1e-14
    )


@pytest.mark.parametrize("is_near", [True, False])
def test_points_that_are_near_relative_to_their_norm_get_exact_distances(is_near):
  x = normal(6, 2).astype(np.float32) * 1e-2
  x[3:] += 1e3
  want = cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")
  scale = jnp.float32(1e-4 if is_near else 1e6)
  tiles = of_points(x, None, Streaming(2))

  def squared(distances):
    return jnp.stack([distances.at(Tile(i, i, i)) for i in range(3)])

  got = np.asarray(Distances(tiles).resolving(scale).either(squared))
  error = max(abs(got[0] - want[:2, :2]).max(), abs(got[2] - want[4:, 4:]).max())
  # At 500 from the mean, float32 rounds points to 3e-5, which is 0.3 % of 1e-2.
  assert (error < 1e-5) == is_near


def test_one_coarse_lane_of_a_vmap_makes_all_lanes_exact():
  x = normal(2, 5, 2).astype(np.float32) * 1e-2
  x[1, 3:] += 1e3

  @jax.jit
  @jax.vmap
  def coarse(x):
    tiles = of_points(x, None, Streaming(2))
    return Distances(tiles).resolving(jnp.float32(1e-4)).coarse

  assert coarse(x).all()
  assert not coarse(x[:1]).any()


# ----------------------------------------------------------------- by differences


def test_differences_are_exact_next_to_points_that_overflow():
  x = normal(8, 3).astype(np.float32)
  ordinary = cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")
  x[2, 0] = x[5, 0] = 3e38  # the sum of these two coordinates overflows
  x[6, 1] = np.inf
  got = np.asarray(squared_differences(jnp.asarray(x), jnp.asarray(x)))
  is_ordinary = np.ones(8, bool)
  is_ordinary[[2, 5, 6]] = False
  both = is_ordinary[:, None] & is_ordinary
  np.testing.assert_allclose(got[both], ordinary[both], rtol=1e-6)
  # Both have the coordinate 3e38; their distance is that of the other two coordinates.
  want = np.square(x[2, 1:].astype(np.float64) - x[5, 1:]).sum()
  np.testing.assert_allclose(got[2, 5], want, rtol=1e-6)
  for far in (2, 5, 6):
    assert np.isposinf(got[far][is_ordinary]).all()


def test_differences_of_equal_points_are_zero_exactly():
  x = jnp.asarray(normal(4, 784) * 1e3, jnp.float32)
  np.testing.assert_array_equal(np.diagonal(squared_differences(x, x)), 0)


@pytest.mark.usefixtures("x64")
def test_derivatives_of_differences_are_those_of_the_squared_distance():
  x, y = jnp.asarray(normal(4, 3)), jnp.asarray(normal(5, 3, seed=1))
  dx, dy = normal(4, 3, seed=2), normal(5, 3, seed=3)

  def plain(x, y):
    return jnp.square(x[:, None] - y[None]).sum(axis=2)

  value, tangent = jax.jvp(squared_differences, (x, y), (dx, dy))
  want_value, want_tangent = jax.jvp(plain, (x, y), (dx, dy))
  np.testing.assert_allclose(value, want_value, rtol=1e-12)
  np.testing.assert_allclose(tangent, want_tangent, rtol=1e-12, atol=1e-13)

  cotangent = normal(4, 5, seed=4)
  got = jax.vjp(squared_differences, x, y)[1](cotangent)
  want = jax.vjp(plain, x, y)[1](cotangent)
  for a, b in zip(got, want):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-13)
  check_grads(jax.jit(squared_differences), (x, y), order=2)
