"""Replica exchange: the masses of separated modes, and the law at each temperature."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import PartitionSpec

from stein_jax import densities
from stein_jax.samplers import hmc, langevin, tempering
from tests.samplers.moments import assert_moments

KEY = jax.random.key(0)
TEMPERATURES = [1.0, 2.0, 4.0, 8.0, 16.0]


def quadratic(x):
  return -0.5 * jnp.sum(jnp.square(x - 1))


def test_every_temperature_has_its_law():
  found = tempering(
    KEY,
    jnp.zeros((2000, 1)),
    quadratic,
    temperatures=[1, 2, 4],
    num_rounds=40,
    step_size=0.8,
  )
  for x, temperature in zip(found.replicas, (1, 2, 4)):
    assert_moments(x, 1, temperature)
  np.testing.assert_array_equal(found.particles, found.replicas[0])
  assert found.acceptance_rate.shape == (3,)
  # The chance that N(0, 1) and N(0, 2) exchange, by simulation.
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=100_000), np.sqrt(2) * rng.normal(size=100_000)
  want = np.exp(np.minimum(0, (1 - 0.5) * (a**2 - b**2) / 2)).mean()
  np.testing.assert_allclose(found.swap_rate, want, atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("d", [2, 10])
def test_masses_of_separated_modes(d):
  """Within 2 %, from a start in the lighter mode, where Langevin chains stay."""
  n = 2000
  truth = densities.two_modes(d, weights=(0.25, 0.75))
  light = truth.sample(KEY, 20 * n)
  light = light[np.asarray(truth.modes(light)[:, 0] > 0.5)][:n]
  stay = langevin(KEY, light, truth.score, num_steps=300, step_size=0.2)
  assert truth.modes(stay).mean(axis=0)[0] > 0.99
  found = tempering(
    KEY,
    light,
    truth.log_density_fn,
    temperatures=TEMPERATURES,
    num_rounds=300,
    step_size=0.4,
  )
  masses = truth.modes(found.particles).mean(axis=0)
  np.testing.assert_allclose(masses, truth.mode_masses, atol=0.02)
  assert (found.swap_rate > 0.1).all()


def test_a_run_continues_from_its_replicas():
  options = {"temperatures": TEMPERATURES, "step_size": 0.4}
  truth = densities.two_modes(2)
  first = tempering(
    KEY, truth.sample(KEY, 50), truth.log_density_fn, num_rounds=10, **options
  )
  more = tempering(
    KEY,
    first.particles,
    truth.log_density_fn,
    num_rounds=10,
    replicas=first.replicas,
    **options,
  )
  assert more.replicas.shape == (5, 50, 2)
  # The hot chains go on where they were, far out, and not from the particles.
  assert jnp.std(more.replicas[-1]) > jnp.std(first.particles)


def test_rounds_in_calls_of_their_own_exchange_all_pairs():
  options = {"temperatures": TEMPERATURES, "step_size": 0.4, "num_rounds": 1}
  truth = densities.two_modes(2)
  x, replicas, proposed = truth.sample(KEY, 20), None, np.zeros(4)
  for key in jax.random.split(KEY, 12):
    found = tempering(key, x, truth.log_density_fn, replicas=replicas, **options)
    replicas, x = found.replicas, found.particles
    proposed += np.isfinite(found.swap_rate)
  assert (proposed > 0).all()
  assert (proposed < 12).all()


@pytest.mark.slow
def test_hmc_as_the_sampler_with_a_step_for_each_temperature():
  sampler = functools.partial(hmc, num_steps=1, num_leapfrog=5)
  steps = 0.4 * np.sqrt([1, 3])
  found = tempering(
    KEY,
    jnp.zeros((2000, 2)),
    quadratic,
    sampler,
    temperatures=[1, 3],
    num_rounds=15,
    step_size=steps,
  )
  assert_moments(found.replicas[0], 1, 1)
  assert_moments(found.replicas[1], 1, 3)


def test_many_devices_draw_what_one_draws():
  truth = densities.two_modes(2)
  start = truth.sample(KEY, 16)
  mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

  def run(key, x, axis_name):
    found = tempering(
      key,
      x,
      truth.log_density_fn,
      temperatures=[1, 2, 4],
      num_rounds=6,
      step_size=0.3,
      axis_name=axis_name,
    )
    return found.particles, found.acceptance_rate, found.swap_rate

  rows, same = PartitionSpec("i"), PartitionSpec()
  many = jax.shard_map(
    lambda key, x: run(key, x, "i"),
    mesh=mesh,
    in_specs=(same, rows),
    out_specs=(rows, same, same),
  )(KEY, start)
  for a, b in zip(run(KEY, start, None), many):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"temperatures": [1.0]}, "at least two increasing numbers"),
    ({"temperatures": [2.0, 4.0]}, "of which the first is 1"),
    ({"temperatures": [1.0, 4.0, 2.0]}, "increasing"),
    ({"temperatures": [1.0, np.inf]}, "must be finite"),
    ({"temperatures": [1.0, np.nan]}, "increasing"),
    ({"num_rounds": 0}, "num_rounds must be"),
    ({"step_size": 0}, "step_size must be a finite"),
    ({"step_size": np.ones(3)}, "one for each temperature"),
    ({"step_size": [0.1, -0.1]}, "step_size must be a finite number above 0"),
    ({"step_size": [0.1, np.nan]}, "step_size must be a finite number above 0"),
    ({"replicas": jnp.zeros((2, 5, 1))}, "one temperature of replicas"),
    ({"replicas": jnp.zeros((3, 4, 1))}, "one row for each of 2 temperatures, got 3"),
  ],
)
def test_bad_input(options, message):
  options = {"temperatures": [1.0, 2.0], "num_rounds": 1, "step_size": 0.1} | options
  with pytest.raises(ValueError, match=message):
    tempering(KEY, jnp.zeros((4, 1)), quadratic, **options)


@pytest.mark.slow
def test_ks_at_temperature_one():
  found = tempering(
    KEY,
    jnp.zeros((1500, 1)),
    quadratic,
    temperatures=[1, 2],
    num_rounds=30,
    step_size=0.8,
  )
  x = np.float64(found.particles).ravel()
  assert scipy.stats.kstest(x, scipy.stats.norm(1).cdf).pvalue > 1e-3
