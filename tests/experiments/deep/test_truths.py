"""Truths: a random RBM against enumeration, and the densities' names and sizes."""

import jax
import numpy as np
import pytest

from experiments.deep import truths


def components(key, d, num_hidden, scale):
  """Weights and means of the mixture, by enumeration of the hidden states."""
  B_key, b_key, c_key = jax.random.split(key, 3)
  B = np.float64(scale * jax.random.normal(B_key, (d, num_hidden)))
  b = np.float64(jax.random.normal(b_key, (d,)))
  c = np.float64(0.5 * jax.random.normal(c_key, (num_hidden,))) - b @ B
  bits = np.arange(2**num_hidden)[:, None] >> np.arange(num_hidden) & 1
  h = 2.0 * bits - 1
  means = b + h @ B.T
  exponents = h @ c + 0.5 * np.square(means).sum(axis=1)
  return np.exp(exponents - np.logaddexp.reduce(exponents)), means


def test_a_random_rbm_is_the_mixture_of_its_states():
  key = jax.random.key(3)
  density = truths.random_rbm(key, 6, 3, 0.5)
  weights, means = components(key, 6, 3, 0.5)
  x = np.asarray(density.sample(jax.random.key(1), 20_000), np.float64)
  squares = np.square(x[:, None] - means[None]).sum(axis=2)
  logs = np.log(weights)[None] - squares / 2 - 3 * np.log(2 * np.pi)
  expected = np.logaddexp.reduce(logs, axis=1)
  np.testing.assert_allclose(
    density.log_density(x.astype(np.float32)), expected, atol=1e-4
  )
  mean = weights @ means
  covariance = np.eye(6) + (means - mean).T @ (weights[:, None] * (means - mean))
  error = np.sqrt(np.diag(covariance) / len(x))
  assert (np.abs(x.mean(axis=0) - mean) < 5 * error).all()
  np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.15)


@pytest.mark.parametrize("name", [n for n in truths.TRUTHS if "digits" not in n])
def test_truths_have_the_dimension_of_their_name_and_do_not_change(name):
  density, again = truths.TRUTHS[name](), truths.TRUTHS[name]()
  x = density.sample(jax.random.key(0), 3)
  assert x.shape == (3, int(name.rpartition("_")[2]))
  np.testing.assert_array_equal(x, again.sample(jax.random.key(0), 3))
  assert np.isfinite(density.log_density(x)).all()


@pytest.mark.slow
def test_digits_look_like_digits():
  """Their mean is that of the images; the noise is what it is said to be."""
  narrow = truths.of_digits(0.5)
  x = np.asarray(narrow.sample(jax.random.key(0), 4000), np.float64)
  images = truths.embedded.digits()[0].reshape(5000, -1) / 255
  assert np.abs(x.mean(axis=0) - images.mean(axis=0)).max() < 0.1
  # The first pixel is black in all images.
  assert x[:, 0].std() == pytest.approx(0.5, rel=0.1)
