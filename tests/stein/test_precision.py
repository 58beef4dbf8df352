"""Directions in float32 and 16 bits, of near points, and their memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from stein_jax import Direction, kernels, ksd_squared, svgd_direction
from tests import oracles
from tests.kernels.cases import ALL_KERNELS, KERNELS, points

pytestmark = pytest.mark.optimized


def two_clusters(apart):
  """Points of two tight clusters, and the scores of a normal density around them."""
  rng = np.random.default_rng(8)
  x = 0.1 * rng.normal(size=(30, 2))
  x[:12] += apart
  return x.astype(np.float32), -(x - x.mean(axis=0)).astype(np.float32) / 100


@pytest.mark.parametrize("block_size", [None, 7])
@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_distances_within_clusters_far_apart_are_accurate(name, block_size):
  x, s = two_clusters(1000.0)
  kernel, oracle = {
    "rbf": (kernels.rbf(0.03), oracles.rbf(0.03)),
    "imq": (kernels.imq(0.03), oracles.imq(0.03, -0.5)),
  }[name]
  want = oracles.svgd_direction(x, s, *oracle)
  got = svgd_direction(x, s, kernel, block_size=block_size)
  # The rounding of float32 at 1000 is 6e-5, a two-thousandth of the clusters' width.
  np.testing.assert_allclose(got, want, atol=3e-3 * np.abs(want).max())
  table = kernel.matrix(x, x)
  np.testing.assert_array_equal(jnp.diagonal(table), 1)


def test_one_lane_of_clusters_does_not_change_the_others():
  near, s = two_clusters(1.0)
  far, s_far = two_clusters(1000.0)
  batch = jnp.stack([near, far]), jnp.stack([s, s_far])

  def direction(x, s):
    return svgd_direction(x, s, kernels.rbf(0.03))

  got = jax.jit(jax.vmap(direction))(*batch)
  for lane, atol in ((0, 1e-5), (1, 3e-3)):
    want = direction(batch[0][lane], batch[1][lane])
    np.testing.assert_allclose(got[lane], want, atol=atol * np.abs(want).max())
  assert "cond[" in str(jax.make_jaxpr(jax.vmap(direction))(*batch))


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [None, 4])
def test_gradients_of_distances_by_differences(block_size):
  x, s = points(6, 2)
  x[:3] += 1e7  # coarse even in float64, at this bandwidth

  def loss(x):
    moved = svgd_direction(x, s, kernels.rbf(1e-4 * 1.7), block_size=block_size)
    return jnp.sum(moved**2)

  x[1], x[4] = x[0] + 0.005, x[3] + 0.005
  check_grads(loss, (jnp.asarray(x),), order=1, modes=["rev"], rtol=1e-2, eps=1e-4)


def test_a_gradient_needs_memory_that_is_linear_in_n():
  def loss(x):
    return jnp.sum(svgd_direction(x, -x, kernels.rbf(1.0)) ** 2)

  x = jax.ShapeDtypeStruct((4096, 2), jnp.float32)
  analysis = jax.jit(jax.grad(loss)).lower(x).compile().memory_analysis()
  assert analysis.temp_size_in_bytes < 4096**2


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_particles_of_16_bits_are_summed_in_32(dtype):
  x, s = (jnp.asarray(a, dtype) for a in points(2000, 2))
  got = svgd_direction(x, s + 50, kernels.rbf(1.0), block_size=64)
  assert got.dtype == dtype
  wide = (x.astype(jnp.float32), (s + 50).astype(jnp.float32))
  want = svgd_direction(*wide, kernels.rbf(1.0))
  np.testing.assert_allclose(got.astype(jnp.float32), want, rtol=8e-3, atol=0.02)


@pytest.mark.parametrize("name", ["rbf", "imq"])
def test_the_precision_of_the_sums_does_not_change_that_of_distances(name):
  x, s = points(6, 2).astype(np.float32)

  def products(precision):
    jaxpr = jax.make_jaxpr(
      lambda x: svgd_direction(x, s, KERNELS[name][0], precision=precision)
    )(x)
    lines = [line for line in str(jaxpr).splitlines() if "precision=" in line]
    return [line.split("precision=")[1] for line in lines]

  assert all("HIGHEST" in of for of in products("highest"))
  lower = ["HIGHEST" not in of for of in products("default")]
  assert 0 < sum(lower) < len(lower)


@pytest.mark.parametrize("edge", [None, 16])
def test_derivatives_with_a_median_are_those_of_the_same_fixed_bandwidth(edge):
  # Near points that are far from the mean: their distances in gram form round below 0.
  x, s = np.random.default_rng(0).normal(size=(2, 60, 3)).astype(np.float32)
  x[:3] += 1e6

  def tangent(kernel, x, s):
    direction = Direction(kernel, block_size=edge)
    moved = np.random.default_rng(1).normal(size=x.shape).astype(x.dtype)
    return np.asarray(jax.jvp(lambda x: direction(x, s), (x,), (moved,))[1])

  h = float(kernels.median_bandwidth(x))
  with jax.enable_x64(True):
    want = tangent(kernels.rbf(h), x.astype(np.float64), s.astype(np.float64))
  got = tangent(kernels.rbf(), x, s)
  assert np.linalg.norm(got - want) < 2e-2 * np.linalg.norm(want)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("dtypes", [("float32", "float64"), ("float64", "float32")])
@pytest.mark.parametrize("name", ["rbf", "not radial", "on features"])
def test_particles_and_scores_of_two_dtypes(name, dtypes, block_size):
  kernel, oracle = ALL_KERNELS[name]
  x, s = (part.astype(dtype) for part, dtype in zip(points(7, 2), dtypes))
  phi = svgd_direction(x, s, kernel, block_size=block_size)
  assert phi.dtype == x.dtype
  want = oracles.svgd_direction(*(np.asarray(a, float) for a in (x, s)), *oracle)
  np.testing.assert_allclose(phi, want, rtol=1e-6, atol=1e-7)
  d2 = ksd_squared(x, s, kernel)
  assert d2.dtype == jnp.float64


@pytest.mark.usefixtures("x64")
def test_features_of_more_bits_than_the_particles():
  x, s = (part.astype("float32") for part in points(7, 2))
  kernel = kernels.on_features(kernels.rbf(1.0), lambda x: x.astype(jnp.float64))
  for block_size in (None, 3):
    phi = svgd_direction(x, s, kernel, block_size=block_size)
    want = svgd_direction(x, s, kernels.rbf(1.0), block_size=block_size)
    np.testing.assert_allclose(phi, want, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kernel", [None, kernels.rbf(1.0)], ids=["none", "rbf"])
def test_the_direction_has_the_particles_dtype(kernel):
  x = jnp.arange(6, dtype=jnp.bfloat16).reshape(3, 2)
  assert svgd_direction(x, x.astype(jnp.float32), kernel).dtype == jnp.bfloat16
