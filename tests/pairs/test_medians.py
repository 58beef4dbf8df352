"""Order statistics of distances against NumPy's sort of scipy's distances."""

import functools

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from stein_jax import kernels
from stein_jax.kernels.bandwidths import MedianBandwidth, of_particles
from stein_jax.pairs import medians, tiles


def unjitted(x, ranks, block_size=None):
  streaming = tiles.Streaming(block_size)
  x = jnp.asarray(x)
  low, high, _ = medians.middle_squared_distances(x, ranks, streaming=streaming)
  return low, high


@functools.partial(jax.jit, static_argnames="block_size")
def bandwidth(x, block_size):
  streaming = tiles.streamed(x, block_size=block_size)
  return of_particles(x, MedianBandwidth(), streaming)


# Ranks are compared, never used as an index: one compilation serves them all.
middle = jax.jit(unjitted, static_argnames="block_size")


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


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


def test_distances_of_many_magnitudes_are_all_accurate():
  # Coordinates from 1e-18 to 1e18: far points must not blur the near ones.
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


@pytest.mark.parametrize(
  "n", [40] + [pytest.param(n, marks=pytest.mark.slow) for n in (11, 65)]
)
def test_the_search_in_a_table_that_is_not_held_starts_from_a_sample(n, monkeypatch):
  monkeypatch.setattr(tiles, "HELD_PAIRS", 20)
  monkeypatch.setattr(medians, "_SAMPLE", 500)
  x = normal(n, 2).astype(np.float32)
  ordered = np.sort(pdist(x.astype(np.float64), "sqeuclidean"))
  for rank in (0, len(ordered) // 2, len(ordered) - 2):
    got = jax.jit(lambda x, r=rank: unjitted(x, (r, r + 1), block_size=8))(x)
    np.testing.assert_allclose(got, ordered[rank : rank + 2], rtol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
def test_the_search_ends_if_points_are_not_finite(wrong):
  x = normal(9, 2).astype(np.float32)
  x[3, 1] = wrong
  for block_size in (None, 2):
    assert bandwidth(x, block_size).shape == ()
  x[:] = wrong
  assert kernels.median_bandwidth(x).shape == ()


def test_too_many_points_are_an_error():
  points = jax.ShapeDtypeStruct((2**20 + 1, 1), jnp.float32)
  with pytest.raises(ValueError, match=r"1048576 particles, got 1048577.*subsample"):
    jax.eval_shape(lambda x: kernels.median_bandwidth(x), points)


def test_nothing_is_sorted():
  x = normal(600, 3).astype(np.float32)
  for block_size in (None, 64):
    median = functools.partial(bandwidth, block_size=block_size)
    assert "stablehlo.sort" not in jax.jit(median).lower(x).as_text()


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
  # The rounding error of one subtraction of numbers up to 1e3.
  atol = 4 * np.finfo(np.float32).eps * float(np.abs(x).max()) ** 2 + 1e-30
  np.testing.assert_allclose([low, high], ordered[list(ranks)], rtol=1e-4, atol=atol)
