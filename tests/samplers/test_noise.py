"""The noise of chains: its distribution, its bits, its independence of sharding."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stein_jax.samplers import noise
from tests import oracles

KEY = jax.random.key(0)
NUM = 400_000


@pytest.fixture(scope="module")
def draws():
  """Many numbers from one key, as the two halves of the Box-Muller pairs."""
  z = jax.jit(lambda: noise.normal(KEY, (NUM,), jnp.float32))()
  return np.split(np.asarray(z, np.float64), 2)


@pytest.mark.parametrize("event", [(), (1,), (5,), (3, 2, 2)])
def test_noise_equals_a_numpy_box_muller_of_the_same_threefry_words(event):
  got = noise.normal_like(KEY, jnp.zeros((4, *event)))
  expected = oracles.langevin_noise(KEY, 4, event)
  np.testing.assert_allclose(got, expected, rtol=2e-6, atol=3e-6)


def test_noise_has_the_normal_distribution(draws):
  z = np.concatenate(draws)
  assert scipy.stats.kstest(z, "norm").pvalue > 1e-3


def test_noise_has_the_normal_moments(draws):
  z = np.concatenate(draws)
  # E z^k, with the standard error √(E z^2k − (E z^k)²)/√n.
  for k, (moment, square) in enumerate([(0, 1), (1, 3), (0, 15), (3, 105)], start=1):
    error = np.sqrt((square - moment**2) / NUM)
    assert abs(np.mean(z**k) - moment) < 4 * error, k


def test_pairs_fill_the_quadrants_and_octants_evenly(draws):
  octants = np.floor(np.arctan2(*draws) / (np.pi / 4)).astype(int) + 4
  counts = np.bincount(octants, minlength=8)
  assert scipy.stats.chisquare(counts).pvalue > 1e-3
  assert scipy.stats.chisquare(counts.reshape(4, 2).sum(axis=1)).pvalue > 1e-3


def test_radius_and_angle_of_a_pair_are_independent_and_known(draws):
  radius, angle = np.hypot(*draws), np.arctan2(*draws)
  assert scipy.stats.kstest(radius, "rayleigh").pvalue > 1e-3
  assert scipy.stats.kstest(angle, "uniform", (-np.pi, 2 * np.pi)).pvalue > 1e-3
  for wave in (np.cos, np.sin):
    correlation = np.corrcoef(radius, wave(angle))[0, 1]
    assert abs(correlation) < 4 / np.sqrt(len(radius))


def test_tails_have_the_normal_mass(draws):
  z = np.abs(np.concatenate(draws))
  for bound in (2.0, 3.0, 4.0):
    expected = NUM * 2 * scipy.stats.norm.sf(bound)
    assert abs(np.sum(z > bound) - expected) < 5 * np.sqrt(expected)
  assert z.max() <= np.sqrt(-2 * np.log(2.0**-31)) + 1e-5


def test_the_extreme_words_give_finite_noise(monkeypatch):
  """Words of 0 and 2³² − 1 are the ends of the logarithm and of the circle."""
  top = 2**32 - 1
  words = np.array([0, 0, top, top, 0, top, 0, top], np.uint32)
  monkeypatch.setattr(noise, "threefry_2x32", lambda *_: jnp.asarray(words))
  z = np.asarray(noise.normal(KEY, (8,), jnp.float32))
  longest = np.sqrt(-2 * np.log(2.0**-31))
  np.testing.assert_allclose(z[:4], [longest, longest, 0, 0], atol=1e-5)
  np.testing.assert_allclose(z[4:], 0, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
@pytest.mark.usefixtures("x64")
def test_other_dtypes_use_jax_s_own_noise(dtype):
  got = noise.normal(KEY, (5,), jnp.dtype(dtype))
  chex.assert_trees_all_equal(got, jax.random.normal(KEY, (5,), dtype))
  chex.assert_type(got, jnp.dtype(dtype))


def test_leaves_and_particles_have_independent_noise():
  z = noise.normal_like(KEY, {"a": jnp.zeros((40_000, 2)), "b": jnp.zeros(40_000)})
  columns = np.column_stack([z["a"], z["b"]])
  correlations = np.corrcoef(columns.T) - np.eye(3)
  assert np.abs(correlations).max() < 4 / np.sqrt(40_000)
  neighbours = np.corrcoef(columns[:-1, 0], columns[1:, 0])[0, 1]
  assert abs(neighbours) < 4 / np.sqrt(40_000)


@pytest.mark.parametrize("num_devices", [1, 2, 4, 8])
def test_a_particle_s_numbers_do_not_depend_on_the_sharding(num_devices):
  x = jnp.zeros((8, 3))

  def draw(x, axis_name=None):
    z = noise.normal_like(KEY, x, axis_name)
    return z, noise.uniform(KEY, len(x), x.dtype, axis_name)

  shares = x.reshape(num_devices, -1, 3)
  devices = jax.devices()[:num_devices]
  got = jax.pmap(lambda x: draw(x, "i"), "i", devices=devices)(shares)
  got = jax.tree.map(lambda leaf: leaf.reshape(8, *leaf.shape[2:]), got)
  chex.assert_trees_all_close(got, draw(x), atol=1e-6)


def test_uniform_numbers_are_uniform():
  u = noise.uniform(KEY, 40_000, jnp.float32)
  assert scipy.stats.kstest(u, "uniform").pvalue > 1e-3
