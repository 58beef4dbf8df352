"""MALA against quadrature, NumPy chains and known stationary laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from stein_jax.samplers import mala
from tests.samplers.moments import assert_moments

KEY = jax.random.key(0)


def log_normal(x):
  return -0.5 * jnp.sum(jnp.square(x))


def quartic(x):
  """An unnormalised log density that is no Gaussian and not symmetric."""
  return -(x**4) / 4 + 0.7 * x


def slope_of_quartic(x):
  return -(x**3) + 0.7


def acceptance_probability(y, x, step_size):
  """min(1, p(y) q(x|y) / (p(x) q(y|x))), q from scipy."""

  def log_q(to, x):
    mean = x + step_size * slope_of_quartic(x)
    return scipy.stats.norm.logpdf(to, mean, np.sqrt(2 * step_size))

  log_ratio = quartic(y) - quartic(x) + log_q(x, y) - log_q(y, x)
  return np.exp(np.minimum(0.0, log_ratio))


@pytest.mark.parametrize("step_size", [0.2, 1.0])
@pytest.mark.parametrize("x", [-1.2, 0.3, 1.5])
def test_mala_accepts_with_the_metropolis_hastings_probability(x, step_size):
  n = 20_000
  drift = step_size * slope_of_quartic(x)
  proposal = scipy.stats.norm(x + drift, np.sqrt(2 * step_size))

  def expected(f):
    """The mean over proposals y of f(y) times the probability of taking y."""

    def integrand(y):
      return f(y) * proposal.pdf(y) * acceptance_probability(y, x, step_size)

    ends = proposal.ppf([1e-12, 1 - 1e-12])
    return scipy.integrate.quad(integrand, *ends, limit=200)[0]

  moved, rate = mala(KEY, jnp.full(n, x), quartic, num_steps=1, step_size=step_size)
  p = expected(lambda y: 1.0)
  assert abs(rate - p) < 5 * np.sqrt(p * (1 - p) / n) + 1e-4
  # A rejected particle stays where it is, to the last bit.
  np.testing.assert_allclose(np.mean(np.asarray(moved) != np.float32(x)), rate)
  jump, squared = expected(lambda y: y - x), expected(lambda y: (y - x) ** 2)
  standard_error = np.sqrt((squared - jump**2) / n)
  assert abs(np.mean(np.asarray(moved, np.float64) - x) - jump) < 5 * standard_error


def test_mala_acceptance_rate_equals_that_of_a_numpy_chain():
  n, num_steps, step_size = 4_000, 20, 0.4
  rng = np.random.default_rng(0)
  x, rates = np.zeros(n), []
  for _ in range(num_steps):
    drift = step_size * slope_of_quartic(x)
    y = x + drift + np.sqrt(2 * step_size) * rng.normal(size=n)
    taken = rng.uniform(size=n) < acceptance_probability(y, x, step_size)
    x = np.where(taken, y, x)
    rates.append(taken.mean())
  got = mala(KEY, jnp.zeros(n), quartic, num_steps=num_steps, step_size=step_size)
  assert abs(got.acceptance_rate - np.mean(rates)) < 0.01
  assert scipy.stats.ks_2samp(got.particles, x).pvalue > 1e-3


def test_mala_leaves_a_gaussian_invariant():
  """At ε = 1, where the variance under plain Langevin would be 2."""
  x = jax.random.normal(KEY, (10_000, 2))
  moved, rate = mala(jax.random.key(1), x, log_normal, num_steps=10, step_size=1.0)
  assert_moments(moved, mean=0.0, variance=1.0)
  assert 0.3 < rate < 0.95


def test_mala_with_a_clipped_score_leaves_p_invariant():
  """Most scores of N(0, I) in two dimensions are longer than 0.5."""
  x = jax.random.normal(KEY, (10_000, 2))
  moved, rate = mala(
    jax.random.key(1), x, log_normal, num_steps=10, step_size=0.7, score_clip=0.5
  )
  free = mala(jax.random.key(1), x, log_normal, num_steps=10, step_size=0.7)
  assert_moments(moved, mean=0.0, variance=1.0)
  assert 0.2 < rate < free.acceptance_rate - 0.02  # the clip is in effect


def test_mala_converges_to_the_target_from_a_distant_start():
  def narrow(x):
    return -0.5 * jnp.square(x - 1) / 0.25

  moved, _ = mala(KEY, jnp.full(10_000, 4.0), narrow, num_steps=100, step_size=0.2)
  assert_moments(moved, mean=1.0, variance=0.25)


def test_mala_rejects_proposals_of_undefined_density():
  def gamma(x):
    return jnp.log(x) - x  # Gamma(2); NaN below zero

  start = np.random.default_rng(0).gamma(2.0, size=10_000).astype(np.float32)
  moved, rate = mala(KEY, start, gamma, num_steps=20, step_size=0.7)
  assert np.all(np.asarray(moved) > 0)
  assert 0.3 < rate < 0.95
  assert_moments(moved, mean=2.0, variance=2.0, fourth=6.0)


def test_mala_accepts_or_rejects_all_leaves_of_a_particle_together():
  def log_density(x, centre):
    return -0.5 * (jnp.sum(jnp.square(x["a"] - centre)) + jnp.square(x["b"]) / 4)

  n = 10_000
  rng = np.random.default_rng(0)
  centre = rng.normal(size=n).astype(np.float32) * 5
  a = centre[:, None] + rng.normal(size=(n, 2)).astype(np.float32)
  start = {"a": a, "b": 2 * rng.normal(size=n).astype(np.float32)}
  moved, rate = mala(
    KEY, start, log_density, num_steps=1, step_size=0.8, context=centre
  )
  stayed = np.all(np.asarray(moved["a"]) == start["a"], axis=1)
  np.testing.assert_array_equal(stayed, np.asarray(moved["b"]) == start["b"])
  np.testing.assert_allclose(1 - stayed.mean(), rate, rtol=1e-5)
  assert 0.3 < rate < 0.95
  assert_moments(moved["a"] - centre[:, None], mean=0.0, variance=1.0)
  assert_moments(moved["b"], mean=0.0, variance=4.0)
