"""Kernels against their formulas, bandwidths against scipy's median."""

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads
from jax.tree_util import Partial
from scipy.spatial.distance import pdist

from stein_jax import kernels
from stein_jax.kernels.bandwidths import of_particles
from stein_jax.pairs.tiles import streamed
from tests import oracles


def normal(*shape, seed=0):
  return np.random.default_rng(seed).normal(size=shape)


# ------------------------------------------------------------ median bandwidth


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9])  # 1, 3, 6, 10, 15, 36 pairs
def test_median_bandwidth_is_med_squared_over_log_m(n):
  x = normal(n, 3)
  want = np.median(pdist(x)) ** 2 / np.log(n)
  np.testing.assert_allclose(kernels.median_bandwidth(x), want, rtol=1e-12)


def test_median_bandwidth_in_float32_and_far_from_the_origin():
  x = (normal(20, 4) + 1e3).astype(np.float32)
  want = oracles.median_bandwidth(x)
  got = kernels.median_bandwidth(x)
  assert got.dtype == jnp.float32
  assert got.shape == ()
  np.testing.assert_allclose(got, want, rtol=1e-4)


OPTIONS = [
  {"log": "m+1"},
  {"log": "none"},
  {"diagonal": True},
  {"log": "m+1", "diagonal": True},
  {"multiple": 2.5},
  {"subsample": 4},
  {"subsample": 100},
]


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_median_bandwidth_options(options):
  x = normal(7, 2)
  want = oracles.median_bandwidth(x, **options)
  np.testing.assert_allclose(kernels.median_bandwidth(x, **options), want, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("block_size", "options"), [(2, {}), (4, {"subsample": 5, "diagonal": True})], ids=str
)
def test_median_bandwidth_in_blocks(block_size, options):
  x = normal(7, 2)
  policy = kernels.MedianBandwidth(**options)
  got = of_particles(x, policy, streamed(x, block_size=block_size))
  want = oracles.median_bandwidth(x, **options)
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("n", [2, 3, 4, 5])
def test_diagonal_counts_all_ordered_pairs(n):
  # By hand: among n² distances n are zero and every other one occurs twice.
  x = normal(n, 2, seed=n)
  table = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))
  got = kernels.median_bandwidth(x, log="none", diagonal=True)
  np.testing.assert_allclose(got, np.median(table) ** 2, rtol=1e-12)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("name", sorted(kernels.BANDWIDTHS))
def test_policies_by_name(name):
  log, diagonal, multiple = {
    "median": ("m", False, 3.0),
    "median_log_m_plus_1": ("m+1", False, 3.0),
    "median_no_log": ("none", False, 3.0),
    "median_with_diagonal": ("m", True, 3.0),
    "authors": ("m+1", True, 3.0),
    "features": ("m", False, 3.0 / 4 / np.log(7)),
    "features_authors": ("m+1", False, 3.0 / 4),
  }[name]
  x = normal(7, 2)
  kernel = kernels.rbf(name, multiple=3.0).resolve(x)
  want = oracles.median_bandwidth(x, log, diagonal, multiple=multiple)
  np.testing.assert_allclose(kernel.bandwidth, want, rtol=1e-12)


def test_median_of_a_pytree_is_that_of_its_concatenation():
  a, b, c = normal(6, 3), normal(6, 2, 2, seed=1), normal(6, seed=2)
  flat = np.concatenate([a, b.reshape(6, 4), c[:, None]], axis=1)
  got = kernels.median_bandwidth({"a": a, "b": b, "c": c})
  np.testing.assert_allclose(got, oracles.median_bandwidth(flat), rtol=1e-5)


@pytest.mark.parametrize("d", [1, 2, 10, 784])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_the_mean_replaces_the_median_if_half_of_the_pairs_coincide(d, offset):
  x = (normal(9, d) + offset).astype(np.float32)
  x[:7] = x[0]  # 21 of 36 pairs: med is 0
  want = np.mean(pdist(x.astype(np.float64)) ** 2) / np.log(9)
  np.testing.assert_allclose(kernels.median_bandwidth(x), want, rtol=1e-4)


@pytest.mark.parametrize("d", [1, 2, 50, 784])
@pytest.mark.parametrize("value", [0.0, 0.1, 1234.5])
def test_equal_particles_have_an_ordinary_bandwidth(d, value):
  x = np.full((9, d), value) * normal(1, d)
  got = kernels.median_bandwidth(x.astype(np.float32))
  np.testing.assert_allclose(got, 1 / np.log(9), rtol=1e-6)


@pytest.mark.parametrize("far", [1e2, 1e4, 1e6, 1e15])
def test_a_far_particle_does_not_blur_the_others(far):
  x = normal(40, 5).astype(np.float32)
  x[0] = far
  want = oracles.median_bandwidth(x)
  np.testing.assert_allclose(kernels.median_bandwidth(x), want, rtol=1e-4)


def test_a_distance_that_overflows_is_not_taken_for_a_small_one():
  x = (normal(9, 3) * 1e25).astype(np.float32)
  assert not kernels.median_bandwidth(x) < 1e30


def test_a_subsample_of_very_many_particles_is_evenly_spaced():
  m, subsample = 3_000_000, 1024  # their product is beyond int32
  x = np.linspace(0, 1, m, dtype=np.float32)[:, None] ** 2
  chosen = x[np.arange(subsample) * m // subsample]
  want = np.median(pdist(chosen.astype(np.float64))) ** 2 / np.log(m)
  got = kernels.median_bandwidth(x, subsample=subsample)
  np.testing.assert_allclose(got, want, rtol=1e-4)


@pytest.mark.usefixtures("x64")
def test_the_bandwidth_is_constant_under_differentiation():
  x = normal(6, 2)
  coinciding = np.concatenate([x[:1].repeat(5, axis=0), x[1:2]])  # h is a mean here
  for points in (x, coinciding):
    gradient = jax.grad(kernels.median_bandwidth)(points)
    np.testing.assert_array_equal(gradient, np.zeros_like(x))


@pytest.mark.usefixtures("x64")
def test_median_bandwidth_under_jit_and_vmap():
  x = normal(3, 6, 2)
  got = jax.jit(jax.vmap(kernels.median_bandwidth))(x)
  want = [oracles.median_bandwidth(one) for one in x]
  np.testing.assert_allclose(got, want, rtol=1e-12)


coordinates = st.floats(-1e3, 1e3, width=32) | st.sampled_from([0.0, 1.0, -2.0])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
  shape=st.sampled_from([(2, 1), (3, 2), (5,), (4, 2, 2)]),
  data=st.data(),
)
def test_any_particles_have_the_bandwidth_of_the_formula(shape, data):
  x = data.draw(hnp.arrays(np.float32, shape, elements=coordinates))
  got = float(kernels.median_bandwidth(x))
  want = oracles.median_bandwidth(x)
  assert np.isfinite(got)
  assert got > 0
  np.testing.assert_allclose(got, want, rtol=1e-3)


# --------------------------------------------------------------------- kernels


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize(
  ("kernel", "oracle"),
  [
    (kernels.rbf(1.7), oracles.rbf(1.7)),
    (kernels.rbf(1.7, multiple=2.0), oracles.rbf(3.4)),
    (kernels.imq(0.9), oracles.imq(0.9, -0.5)),
    (kernels.imq(0.9, exponent=-0.3, multiple=2.0), oracles.imq(1.8, -0.3)),
    (kernels.constant(), oracles.constant()),
  ],
  ids=["rbf", "rbf*2", "imq", "imq*2", "constant"],
)
def test_pair_and_its_gradient_are_the_formula(kernel, oracle):
  k, grad_k = oracle
  value_and_grad = jax.jit(jax.value_and_grad(kernel.pair))
  for y, x in normal(4, 2, 3):
    value, gradient = value_and_grad(y, x)
    np.testing.assert_allclose(value, k(y, x), rtol=1e-12)
    np.testing.assert_allclose(gradient, grad_k(y, x), rtol=1e-10, atol=1e-14)


@pytest.mark.usefixtures("x64")
def test_profiles_return_their_own_derivatives():
  t, step = jnp.array([0.0, 0.4, 3.0]), 1e-5
  for kernel in (kernels.rbf(1.0), kernels.imq(1.0, exponent=-0.3)):
    _, slope, curvature = kernel.profile(t)
    above, below = kernel.profile(t + step), kernel.profile(t - step)
    np.testing.assert_allclose(slope, (above[0] - below[0]) / (2 * step), rtol=1e-8)
    np.testing.assert_allclose(curvature, (above[1] - below[1]) / (2 * step), rtol=1e-8)


def test_a_kernel_is_a_pytree_whose_bandwidth_is_a_leaf():
  assert jax.tree.leaves(kernels.rbf(2.0)) == [2.0]
  assert jax.tree.leaves(kernels.rbf()) == []
  assert jax.tree.structure(kernels.rbf(2.0)) == jax.tree.structure(kernels.rbf(3.0))
  assert jax.tree.structure(kernels.imq(2.0)) == jax.tree.structure(kernels.imq(3.0))
  assert jax.tree.structure(kernels.imq(2.0)) != jax.tree.structure(kernels.rbf(2.0))
  features = kernels.on_features(kernels.rbf(2.0), Partial(jnp.dot, jnp.ones(3)))
  assert len(jax.tree.leaves(features)) == 2


@pytest.mark.usefixtures("x64")
def test_kernels_are_differentiable_in_the_bandwidth():
  x, y = normal(2, 3)
  check_grads(jax.jit(lambda h: kernels.rbf(h).pair(x, y)), (1.3,), order=1)
  check_grads(jax.jit(lambda h: kernels.imq(h).pair(x, y)), (1.3,), order=1)


@pytest.mark.usefixtures("x64")
def test_the_median_on_features_is_that_of_the_features():
  x = normal(6, 2)
  kernel = kernels.on_features(kernels.rbf(), jnp.sin).resolve(x)
  want = oracles.median_bandwidth(np.sin(x))
  np.testing.assert_allclose(kernel.base.bandwidth, want, rtol=1e-12)


def test_a_bandwidth_is_above_zero_or_nan():
  x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
  assert kernels.median_bandwidth(1e-19 * x) > 0
  x[4, 1] = np.nan
  assert np.isnan(kernels.median_bandwidth(x))


def test_scores_of_another_shape_do_not_broadcast():
  x = jnp.ones((6, 2))
  with pytest.raises(ValueError, match="sources and scores must have the same shape"):
    kernels.rbf(1.0).stein_sums(x, x, x[:1])
