"""Mean log-likelihoods against NumPy and scipy."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.evaluation import gaussian_baseline, mean_log_likelihood


def gaussian_log_likelihood(mean, x):
  x = x.reshape(len(x), -1).astype(mean.dtype)
  return jnp.sum(jax.scipy.stats.norm.logpdf(x, mean), axis=1)


@pytest.mark.parametrize("batch_size", [None, 1, 3, 7, 50])
def test_mean_and_standard_error_equal_numpy(batch_size):
  x = np.random.default_rng(0).normal(size=(7, 2, 2)).astype(np.float32)
  got = mean_log_likelihood(
    jnp.float32(0.3), gaussian_log_likelihood, x, batch_size=batch_size
  )
  want = scipy.stats.norm(0.3).logpdf(x.reshape(7, 4)).sum(axis=1)
  np.testing.assert_allclose(got.mean, want.mean(), rtol=1e-6)
  np.testing.assert_allclose(got.standard_error, scipy.stats.sem(want), rtol=1e-5)


@pytest.mark.parametrize("batch_size", [None, 4])
def test_pixels_stay_uint8_until_the_function_scales_them(batch_size):
  pixels = np.random.default_rng(0).integers(0, 256, size=(10, 3), dtype=np.uint8)
  rbm = GaussianBernoulliRBM(2)
  params = rbm.init(jax.random.key(0), jnp.zeros(3))

  def log_likelihood(params, pixels):
    assert pixels.dtype == jnp.uint8
    return rbm.log_likelihood(params, pixels / 255)

  got = mean_log_likelihood(params, log_likelihood, pixels, batch_size=batch_size)
  want = rbm.log_likelihood(params, np.float32(pixels / 255))
  np.testing.assert_allclose(got.mean, want.mean(), rtol=1e-6)


def test_a_large_mean_is_accurate():
  # A running float32 sum of this many values would lose the second decimal.
  values = np.random.default_rng(0).normal(-750, 12, size=100_000).astype(np.float32)
  got = mean_log_likelihood((), lambda _, x: x, values)
  np.testing.assert_allclose(got.mean, values.astype(np.float64).mean(), atol=1e-4)
  error = scipy.stats.sem(values.astype(np.float64))
  np.testing.assert_allclose(got.standard_error, error, rtol=1e-4)


def test_new_parameters_do_not_compile_again():
  log_likelihood = chex.assert_max_traces(gaussian_log_likelihood, n=1)
  x = np.ones((6, 2), np.float32)
  for mean in (0.0, 1.0, 2.0):
    mean_log_likelihood(jnp.float32(mean), log_likelihood, x, batch_size=3)


def test_an_rbms_own_method_is_not_compiled_again(compilations):
  rbm = GaussianBernoulliRBM(2)
  params = rbm.init(jax.random.key(0), jnp.zeros(3))
  scaled = [jax.tree.map(lambda leaf, k=k: k * leaf, params) for k in (1.0, 2.0)]
  x = jnp.ones((4, 3))
  compilations.clear()
  mean_log_likelihood(scaled[0], rbm.log_likelihood, x)
  assert len(compilations) == 1
  mean_log_likelihood(scaled[1], rbm.log_likelihood, x)
  assert len(compilations) == 1


@pytest.mark.parametrize("shape", [(3,), (2, 2, 1)])
def test_gaussian_baseline_equals_scipy(shape):
  rng = np.random.default_rng(0)
  train = rng.normal(2, 1.5, size=(20, *shape)).astype(np.float32)
  test = rng.normal(1, 1.5, size=(9, *shape)).astype(np.float32)
  got = gaussian_baseline(train, test, batch_size=4)
  mean = train.reshape(20, -1).mean(axis=0)
  want = scipy.stats.multivariate_normal(mean).logpdf(test.reshape(9, -1))
  np.testing.assert_allclose(got.mean, want.mean(), rtol=1e-6)
  np.testing.assert_allclose(got.standard_error, scipy.stats.sem(want), rtol=1e-5)


def test_gaussian_baseline_is_the_rbm_without_weights():
  data = np.random.default_rng(0).uniform(size=(30, 4, 4)).astype(np.float32)
  rbm = GaussianBernoulliRBM(3, weight_scale=0.0)
  params = rbm.init_from_data(jax.random.key(0), data[:20])
  got = mean_log_likelihood(params, rbm.log_likelihood, data[20:])
  want = gaussian_baseline(data[:20], data[20:])
  np.testing.assert_allclose(got.mean, want.mean, rtol=1e-6)


def test_wrong_arguments_are_errors():
  x = jnp.ones((4, 2))
  with pytest.raises(ValueError, match="at least two points"):
    mean_log_likelihood(jnp.zeros(()), gaussian_log_likelihood, x[:1])
  with pytest.raises(ValueError, match="batch_size"):
    mean_log_likelihood(jnp.zeros(()), gaussian_log_likelihood, x, batch_size=0)
  with pytest.raises(ValueError, match=r"returned shape \(\)"):
    mean_log_likelihood(jnp.zeros(()), lambda mean, x: jnp.sum(x), x)
  with pytest.raises(ValueError, match="of one shape"):
    gaussian_baseline(x, jnp.ones((4, 3)))
  with pytest.raises(ValueError, match="uint8"):
    gaussian_baseline(x, x.astype(jnp.uint8))
