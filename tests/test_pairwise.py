"""Reductions over pairs of points against NumPy's sort and scipy's distances."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from stein_jax import pairwise

# ranks are compared, never indexed, so one compilation serves them all
middle = jax.jit(pairwise.middle_squared_distances, static_argnames="block_size")


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


# ------------------------------------------------------------------- as_matrix


@pytest.mark.parametrize("shape", [(5,), (5, 1), (5, 3), (5, 4, 4, 1)])
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
def test_as_matrix_is_a_reshape_and_comes_back(shape, dtype):
  x = jnp.asarray(normal(*shape), dtype)
  rows, back = pairwise.as_matrix(x)
  assert rows.shape == (5, x.size // 5)
  assert rows.dtype == dtype
  np.testing.assert_array_equal(rows, x.reshape(5, -1))
  np.testing.assert_array_equal(back(rows), x)
  assert back(rows).dtype == dtype


@pytest.mark.usefixtures("x64")
def test_as_matrix_keeps_every_leaf_of_a_pytree():
  x = {
    "a": jnp.asarray(normal(4, 3), jnp.float32),
    "b": (jnp.asarray(normal(4), jnp.float64), jnp.asarray(normal(4, 2, 2))),
  }
  rows, back = pairwise.as_matrix(x)
  assert rows.shape == (4, 3 + 1 + 4)
  returned = back(rows)
  assert jax.tree.structure(returned) == jax.tree.structure(x)
  for got, want in zip(jax.tree.leaves(returned), jax.tree.leaves(x)):
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)


# -------------------------------------------------------------------- map_rows


@pytest.mark.parametrize("block_size", [None, 1, 3, 7, 8])
def test_map_rows_is_the_same_in_any_blocks(block_size):
  rows = {"x": jnp.asarray(normal(7, 2)), "i": jnp.arange(7)}
  points = jnp.asarray(normal(5, 2, seed=1))

  def fn(row):
    return points @ row["x"] * row["i"], row["x"].sum()

  table, sums = pairwise.map_rows(fn, rows, 5, block_size)
  want = np.arange(7)[:, None] * (np.asarray(rows["x"]) @ np.asarray(points).T)
  np.testing.assert_allclose(table, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(sums, np.asarray(rows["x"]).sum(1), rtol=1e-5)


def test_map_rows_takes_blocks_by_itself_when_the_table_is_large(monkeypatch):
  monkeypatch.setattr(pairwise, "_DENSE_PAIRS", 20)
  monkeypatch.setattr(pairwise, "_BLOCK_PAIRS", 10)
  rows, points = jnp.asarray(normal(7, 2)), jnp.asarray(normal(5, 2, seed=1))
  traced = jax.make_jaxpr(
    lambda rows: pairwise.map_rows(lambda x: points @ x, rows, 5, None)
  )(rows)
  assert "scan" in str(traced)
  got = pairwise.map_rows(lambda x: points @ x, rows, 5, None)
  np.testing.assert_allclose(got, rows @ points.T, rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------- squared_distances


def test_squared_distances_are_those_of_scipy_and_never_negative():
  x = jnp.asarray(normal(20, 50), jnp.float32)
  norms = jnp.square(x).sum(axis=1)
  table = jax.jit(jax.vmap(lambda row: pairwise.squared_distances(row, x, norms)))(x)
  assert table.min() >= 0
  upper = np.triu_indices(20, k=1)
  want = pdist(np.asarray(x, np.float64), "sqeuclidean")
  np.testing.assert_allclose(np.asarray(table)[upper], want, rtol=1e-5)


# ---------------------------------------------------- middle_squared_distances


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [None, 3])
def test_every_rank_is_the_sorted_distance(block_size):
  x = normal(7, 3)
  ordered = np.sort(pdist(x, "sqeuclidean"))  # 21 pairs
  for rank in range(20):
    low, high = middle(x, (rank, rank + 1), block_size=block_size)
    np.testing.assert_allclose([low, high], ordered[rank : rank + 2], rtol=1e-12)
    low, high = middle(x, (rank, rank), block_size=block_size)
    np.testing.assert_allclose([low, high], ordered[[rank, rank]], rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_ranks_among_ties():
  x = np.array([[0.0], [0.0], [0.0], [1.0], [1.0], [3.0], [3.0]])
  ordered = np.sort(pdist(x, "sqeuclidean"))
  assert len(set(ordered)) == 4  # 0, 1, 4, 9, many times each
  for rank in range(20):
    low, high = middle(x, (rank, rank + 1))
    want = ordered[rank : rank + 2]
    np.testing.assert_allclose([low, high], want, rtol=1e-12, atol=1e-14)


def test_distances_of_many_magnitudes_keep_their_own_digits():
  # Far points must not cost near ones their digits: 1e-18 to 1e18, mixed.
  rng = np.random.default_rng(0)
  scale = 10.0 ** rng.uniform(-18, 18, size=(12, 1))
  x = (rng.normal(size=(12, 3)) * scale).astype(np.float32)
  ordered = np.sort(pdist(x.astype(np.float64), "sqeuclidean"))
  for rank in (0, 5, 20, 32, 50, 64):
    low, high = middle(x, (rank, rank + 1))
    np.testing.assert_allclose([low, high], ordered[rank : rank + 2], rtol=1e-5)


@pytest.mark.parametrize("d", [1, 2, 10, 784])
def test_coinciding_points_are_at_distance_zero_exactly(d):
  x = normal(9, d).astype(np.float32) + 1
  x[:7] = x[0]  # 21 of 36 pairs
  low, high = middle(x, (20, 21))
  assert low == 0
  want = np.sort(pdist(x.astype(np.float64), "sqeuclidean"))[21]
  np.testing.assert_allclose(high, want, rtol=1e-5)


def test_blocks_are_taken_when_the_table_is_large(monkeypatch):
  x = normal(11, 2).astype(np.float32)
  want = np.median(pdist(x.astype(np.float64), "sqeuclidean"))
  monkeypatch.setattr(pairwise, "_DENSE_PAIRS", 20)
  monkeypatch.setattr(pairwise, "_BLOCK_PAIRS", 40)
  got = jax.jit(lambda x: pairwise.middle_squared_distances(x, (27, 27)))(x)
  np.testing.assert_allclose(got, [want, want], rtol=1e-6)


def test_more_pairs_than_int32_counts_are_refused():
  points = jax.ShapeDtypeStruct((65_537, 1), jnp.float32)
  with pytest.raises(ValueError, match=r"65536 particles, got 65537.*subsample"):
    jax.eval_shape(lambda x: pairwise.middle_squared_distances(x, (0, 0)), points)


values = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, 1.0, 1.0, -2.0])


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
  shape=st.sampled_from([(2, 1), (3, 2), (6, 1), (6, 2)]),
  data=st.data(),
  fraction=st.floats(0, 1),
)
def test_any_rank_of_any_points(shape, data, fraction):
  x = data.draw(hnp.arrays(np.float32, shape, elements=values))
  ordered = np.sort(pdist(x.astype(np.float64), "sqeuclidean"))
  rank = int(fraction * (len(ordered) - 1))
  ranks = (rank, min(rank + 1, len(ordered) - 1))
  low, high = middle(x, ranks)
  # the rounding of one subtraction of numbers up to 1e3
  atol = 4 * np.finfo(np.float32).eps * float(np.abs(x).max()) ** 2 + 1e-30
  np.testing.assert_allclose([low, high], ordered[list(ranks)], rtol=1e-4, atol=atol)
