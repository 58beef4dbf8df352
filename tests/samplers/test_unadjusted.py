"""Langevin chains against NumPy chains and stationary laws."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stein_jax.samplers import langevin
from tests import oracles
from tests.samplers.moments import assert_moments

KEY = jax.random.key(0)


def documented_noise(key, num_steps, shape):
  """One key a step; in a step, particle i draws from fold_in of its index."""
  n, *event = shape
  step_keys = jax.random.split(key, num_steps)
  return np.array([oracles.langevin_noise(k, n, event) for k in step_keys])


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 2, 1)])
def test_langevin_equals_a_numpy_chain_with_the_same_noise(shape):
  start = np.random.default_rng(0).normal(size=shape).astype(np.float32)
  step_size, x = 0.3, start.astype(np.float64)
  for z in documented_noise(KEY, 3, shape):
    x = x + step_size * (1 - x**3) + np.sqrt(2 * step_size) * z
  got = langevin(KEY, start, lambda x: 1 - x**3, num_steps=3, step_size=step_size)
  np.testing.assert_allclose(got, x, rtol=1e-4, atol=1e-5)


def test_langevin_has_the_stationary_variance_of_its_discretisation():
  # x ← (1 − ε) x + √(2ε) z has the variance 2ε / (1 − (1 − ε)²).
  step_size = 0.5
  x = langevin(KEY, jnp.full(20_000, 3.0), jnp.negative, num_steps=40, step_size=0.5)
  assert_moments(x, mean=0.0, variance=1 / (1 - step_size / 2))


def test_langevin_uses_the_context_of_each_particle():
  context = np.array([-10.0, 0.0, 10.0, 20.0], np.float32)
  got = langevin(
    KEY, jnp.zeros(4), lambda x, c: c - x, num_steps=1, step_size=0.1, context=context
  )
  z = documented_noise(KEY, 1, (4,))[0]
  np.testing.assert_allclose(got, 0.1 * context + np.sqrt(0.2) * z, rtol=1e-4)


def test_every_leaf_of_a_tree_has_its_own_score_and_noise():
  def score(x, context):
    return {"a": context["centre"] - x["a"], "b": -x["b"]}

  n = 20_000
  centre = 10 * np.random.default_rng(0).normal(size=n).astype(np.float32)
  start = {"a": jnp.zeros((n, 2)), "b": jnp.ones(n)}
  got = langevin(
    KEY, start, score, num_steps=1, step_size=0.5, context={"centre": centre}
  )
  z = np.column_stack([got["a"] - centre[:, None] / 2, got["b"] - 0.5])
  np.testing.assert_allclose(z.mean(axis=0), 0, atol=5 / np.sqrt(n))
  np.testing.assert_allclose(np.cov(z.T), np.eye(3), atol=5 * np.sqrt(2 / n))


def test_antithetic_chains_of_a_linear_score_are_mirror_images():
  start = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
  shift = np.arange(5, dtype=np.float32)[:, None] * np.ones((1, 3), np.float32)
  options = {"num_steps": 3, "step_size": 0.1, "context": shift}
  score = lambda x, c: c - x  # linear: the mean of a pair has no noise in it  # noqa: E731
  pairs = langevin(KEY, start, score, antithetic=True, **options)
  assert pairs.shape == (10, 3)
  one = langevin(KEY, start, score, **options)
  np.testing.assert_allclose(pairs[::2], one, rtol=1e-6)
  np.testing.assert_allclose(
    (pairs[::2] + pairs[1::2]) / 2, shift + 0.9**3 * (start - shift), atol=1e-5
  )


def test_a_pair_that_separates_in_the_last_step_has_the_same_steps_before():
  start = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
  step_size, x = 0.2, start.astype(np.float64)
  noises = documented_noise(KEY, 3, (5, 3))
  for z in noises:
    drifted = x + step_size * (1 - x**3)
    x = drifted + np.sqrt(2 * step_size) * z
  got = langevin(
    KEY, start, lambda x: 1 - x**3, num_steps=3, step_size=0.2, antithetic="last"
  )
  assert got.shape == (10, 3)
  np.testing.assert_allclose(got[::2], x, rtol=1e-4, atol=1e-5)
  other = drifted - np.sqrt(2 * step_size) * noises[-1]
  np.testing.assert_allclose(got[1::2], other, rtol=1e-4, atol=1e-5)
  one = langevin(KEY, start, lambda x: 1 - x**3, num_steps=1, step_size=0.2)
  both = {
    how: langevin(
      KEY, start, lambda x: 1 - x**3, num_steps=1, step_size=0.2, antithetic=how
    )
    for how in (True, "last")
  }
  np.testing.assert_allclose(both[True], both["last"], rtol=1e-6)
  np.testing.assert_allclose(both["last"][::2], one, rtol=1e-6)


@pytest.mark.parametrize("antithetic", [False, True, "last"])
def test_averaged_noise_equals_a_numpy_chain_with_the_same_noise(antithetic):
  start = np.random.default_rng(1).normal(size=(5, 3)).astype(np.float32)
  step_size = 0.2
  noises = documented_noise(KEY, 3, (5, 3))
  last = oracles.langevin_noise(jax.random.fold_in(KEY, 3), 5, [3])

  def chain(signs):  # the formula of Leimkuhler & Matthews
    z = np.stack([*(signs[0] * noises), signs[1] * last])
    x = start + np.sqrt(step_size / 2) * z[0]
    for now, following in itertools.pairwise(z):
      drifted = x + step_size * (1 - x**3)
      x = drifted + np.sqrt(2 * step_size) * (now + following) / 2
    return x

  got = langevin(
    KEY,
    start,
    lambda x: 1 - x**3,
    num_steps=3,
    step_size=step_size,
    antithetic=antithetic,
    averaged_noise=True,
  )
  if not antithetic:
    np.testing.assert_allclose(got, chain((1, 1)), rtol=1e-4, atol=1e-5)
    return
  np.testing.assert_allclose(got[::2], chain((1, 1)), rtol=1e-4, atol=1e-5)
  other = chain((-1, -1) if antithetic is True else (1, -1))
  np.testing.assert_allclose(got[1::2], other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("step_size", [0.1, 0.5, 1.0])
def test_averaged_noise_has_the_variance_of_a_gaussian_at_any_step_size(step_size):
  start = jnp.full(20_000, 3.0)
  options = {"num_steps": int(20 / step_size), "step_size": step_size}
  x = langevin(KEY, start, jnp.negative, averaged_noise=True, **options)
  assert_moments(x, mean=0.0, variance=1.0)


def test_averaged_noise_has_less_bias_on_a_density_that_is_not_gaussian():
  # p ∝ exp(−x⁴/4), whose E[x⁴] is 1 (by parts: E[x s(x)] = −1).
  start = jnp.zeros(100_000)
  options = {"num_steps": 100, "step_size": 0.1}
  score_fn = lambda x: -(x**3)  # noqa: E731
  plain, averaged = (
    float((langevin(KEY, start, score_fn, averaged_noise=how, **options) ** 4).mean())
    for how in (False, True)
  )
  assert abs(averaged - 1) < 0.04 < abs(plain - 1) / 2, (plain, averaged)


def test_temperature_divides_the_score_and_leaves_the_noise():
  start = np.random.default_rng(1).normal(size=(4, 2)).astype(np.float32)
  got = langevin(
    KEY, start, lambda x: 1 - x**3, num_steps=1, step_size=0.2, temperature=4.0
  )
  z = documented_noise(KEY, 1, (4, 2))[0]
  expected = start + 0.05 * (1 - start**3) + np.sqrt(0.4) * z
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_a_clipped_score_keeps_its_direction(scale):
  """Of the whole point, over its leaves; squares of 1e25 overflow in float32."""
  start = {"a": jnp.zeros((3, 2)), "b": jnp.zeros(3)}
  raw = np.array([[3.0, 0.0, -4.0], [0.3, 0.0, -0.4], [0.0, 0.0, 0.0]]) * scale
  context = {"a": jnp.asarray(raw[:, :2]), "b": jnp.asarray(raw[:, 2])}
  options = {"num_steps": 1, "step_size": 0.5, "context": context}
  got = langevin(KEY, start, lambda x, c: c, temperature=0.5, score_clip=2.0, **options)
  noise = langevin(KEY, start, lambda x, c: jax.tree.map(jnp.zeros_like, c), **options)
  drift = np.column_stack([got["a"] - noise["a"], got["b"] - noise["b"]])
  norms = np.linalg.norm(raw, axis=1, keepdims=True) / 0.5
  expected = 0.5 * raw / 0.5 * np.minimum(1, 2.0 / np.maximum(norms, 1e-300))
  np.testing.assert_allclose(drift, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("size", [1, 7, 40_000])
def test_noise_is_standard_normal(size):
  z = np.asarray(
    langevin(
      KEY, jnp.zeros((60_000 // size, size)), jnp.zeros_like, num_steps=1, step_size=0.5
    )
  ).ravel()
  assert scipy.stats.kstest(z, "norm").pvalue > 1e-3
  assert scipy.stats.kurtosistest(z).pvalue > 1e-3
  # Neighbours, and the two words of a block, are independent.
  for lag in (1, size // 2 + size % 2 or 1, min(size, len(z) // 2)):
    assert abs(np.corrcoef(z[:-lag], z[lag:])[0, 1]) < 4 / np.sqrt(len(z) - lag)


@pytest.mark.parametrize("impl", ["rbg", "unsafe_rbg"])
def test_any_kind_of_key_draws_normal_noise(impl):
  key = jax.random.key(0, impl=impl)
  x = langevin(key, jnp.zeros((300, 50)), jnp.negative, num_steps=1, step_size=0.5)
  assert_moments(x, mean=0.0, variance=1.0)


def test_a_score_of_another_shape_is_an_error():
  with pytest.raises(ValueError, match=r"same shape, got \(4, 2\) and \(4,\)"):
    langevin(KEY, jnp.ones((4, 2)), jnp.sum, num_steps=1, step_size=0.1)
