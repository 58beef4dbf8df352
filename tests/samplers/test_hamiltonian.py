"""HMC against a NumPy chain, known stationary laws, and MALA."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stein_jax import densities
from stein_jax.samplers import adapt_step_size, hmc, mala
from tests.samplers.moments import assert_moments

KEY = jax.random.key(0)


def quartic(x):
  """An unnormalised log density that is no Gaussian and not symmetric."""
  return -(x**4) / 4 + 0.7 * x


def slope_of_quartic(x):
  return -(x**3) + 0.7


def numpy_hmc(x, v, step_size, num_leapfrog):
  """The end of a trajectory, and the change of −H."""
  start = quartic(x) - v**2 / 2
  for _ in range(num_leapfrog):
    v = v + step_size / 2 * slope_of_quartic(x)
    x = x + step_size * v
    v = v + step_size / 2 * slope_of_quartic(x)
  return x, quartic(x) - v**2 / 2 - start


@pytest.mark.parametrize("num_leapfrog", [1, 4])
def test_a_step_is_that_of_numpy(num_leapfrog):
  n, step_size = 4000, 0.4
  rng = np.random.default_rng(0)
  x, rates = np.zeros(n), []
  for _ in range(10):
    y, log_ratio = numpy_hmc(x, rng.normal(size=n), step_size, num_leapfrog)
    accepted = np.log(rng.uniform(size=n)) < log_ratio
    x = np.where(accepted, y, x)
    rates.append(accepted.mean())
  got = hmc(
    KEY,
    jnp.zeros(n),
    quartic,
    num_steps=10,
    step_size=step_size,
    num_leapfrog=num_leapfrog,
  )
  assert abs(got.acceptance_rate - np.mean(rates)) < 0.01
  assert scipy.stats.ks_2samp(got.particles, x).pvalue > 1e-3


def test_one_leapfrog_step_is_mala():
  start = jnp.zeros(5000)
  of_hmc = hmc(KEY, start, quartic, num_steps=5, step_size=0.6, num_leapfrog=1)
  of_mala = mala(KEY, start, quartic, num_steps=5, step_size=0.18)
  np.testing.assert_allclose(of_hmc.acceptance_rate, of_mala.acceptance_rate, rtol=0.02)
  assert scipy.stats.ks_2samp(of_hmc.particles, of_mala.particles).pvalue > 1e-3


def quadratic(x):
  return -0.5 * jnp.sum(jnp.square(x - 1) / jnp.array([1.0, 4.0]))


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize(
  "sampler",
  [
    functools.partial(hmc, num_steps=20, step_size=0.5, num_leapfrog=3),
    functools.partial(mala, num_steps=100, step_size=0.5),
  ],
  ids=["hmc", "mala"],
)
def test_the_law_at_a_temperature(sampler, temperature):
  x = sampler(KEY, jnp.zeros((3000, 2)), quadratic, temperature=temperature).particles
  assert_moments(x[:, 0], 1, temperature)
  assert_moments(x[:, 1], 1, 4 * temperature)


def test_trees_and_contexts():
  def log_density(x, context):
    a, b = x["a"], x["b"]
    return -0.5 * (jnp.square(a - context).sum() + jnp.square(b + context))

  start = {"a": jnp.zeros((2000, 3)), "b": jnp.zeros(2000)}
  context = jnp.repeat(jnp.array([-2.0, 2.0]), 1000)
  x = hmc(
    KEY, start, log_density, num_steps=15, step_size=0.5, context=context
  ).particles
  assert_moments(x["a"] - context[:, None], 0, 1)
  assert_moments(x["b"] + context, 0, 1)


def test_a_density_that_is_nan_is_rejected():
  def log_density(x):
    return jnp.where(x > 0, -x, jnp.nan)

  start = jnp.full(500, 1.0)
  moved = hmc(KEY, start, log_density, num_steps=20, step_size=0.5).particles
  assert (moved > 0).all()
  assert len(np.unique(moved)) > 50


# ------------------------------------------------------------------------- adaptation


@pytest.mark.parametrize("first", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("scale", [1e-2, 1.0])
def test_the_target_is_reached_from_any_step(first, scale):
  density = densities.gaussian(jnp.zeros(20), width=scale)
  sampler = functools.partial(mala, num_steps=1)
  start = density.sample(KEY, 200)
  found = adapt_step_size(
    jax.random.key(1),
    start,
    density.log_density_fn,
    sampler,
    step_size=first * scale**2,
    num_rounds=150,
    target=0.57,
  )
  after = mala(
    jax.random.key(2),
    found.particles,
    density.log_density_fn,
    num_steps=20,
    step_size=found.step_size,
  )
  assert abs(after.acceptance_rate - 0.57) < 0.06


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda **o: hmc(KEY, jnp.zeros(3), quartic, **o), "num_leapfrog must be"),
  ],
)
def test_num_leapfrog_is_checked(call, message):
  for wrong in (0, 2.5, True):
    with pytest.raises(ValueError, match=message):
      call(num_steps=1, step_size=0.1, num_leapfrog=wrong)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"step_size": 0.0}, "step_size must be a finite number above 0"),
    ({"step_size": 0.1, "num_steps": 0}, "num_steps must be"),
    ({"step_size": 0.1, "temperature": 0}, "temperature must be a finite"),
    ({"step_size": 0.1, "temperature": np.nan}, "temperature must be a finite"),
  ],
)
@pytest.mark.parametrize("sampler", [hmc, mala])
def test_bad_numbers(sampler, options, message):
  with pytest.raises(ValueError, match=message):
    sampler(KEY, jnp.zeros(3), quartic, **{"num_steps": 1} | options)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"step_size": -1.0}, "step_size must be"),
    ({"num_rounds": 0}, "num_rounds must be"),
    ({"target": 1.0}, "target must lie between 0 and 1"),
  ],
)
def test_bad_adaptation(options, message):
  sampler = functools.partial(mala, num_steps=1)
  with pytest.raises(ValueError, match=message):
    adapt_step_size(KEY, jnp.zeros(3), quartic, sampler, **{"step_size": 1.0} | options)
