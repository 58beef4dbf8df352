"""Langevin and MALA against NumPy chains, stationary laws and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.tree_util import Partial

from stein_jax.samplers import langevin, mala
from tests import oracles

KEY = jax.random.key(0)


def log_normal(x):
  return -0.5 * jnp.sum(jnp.square(x))


def documented_noise(key, num_steps, shape):
  """One key a step; in a step, particle i draws from fold_in of its place."""
  n, *event = shape
  step_keys = jax.random.split(key, num_steps)
  return np.array([oracles.langevin_noise(k, n, event) for k in step_keys])


def within_standard_errors(values, mean, variance, fourth=3.0, num_errors=5):
  """Whether draws have this mean and variance, as far as their number can tell."""
  values = np.asarray(values, np.float64).ravel()
  mean_error = np.sqrt(variance / values.size)
  assert abs(values.mean() - mean) < num_errors * mean_error
  variance_error = variance * np.sqrt((fourth - 1) / values.size)
  assert abs(np.square(values - mean).mean() - variance) < num_errors * variance_error


# -------------------------------------------------------------------- Langevin


@pytest.mark.parametrize("shape", [(5,), (4, 3), (3, 2, 2, 1)])
def test_langevin_equals_numpy_with_the_same_noise(shape):
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
  within_standard_errors(x, mean=0.0, variance=1 / (1 - step_size / 2))


def test_langevin_moves_each_particle_in_its_own_context():
  context = np.array([-10.0, 0.0, 10.0, 20.0], np.float32)
  got = langevin(
    KEY, jnp.zeros(4), lambda x, c: c - x, num_steps=1, step_size=0.1, context=context
  )
  z = documented_noise(KEY, 1, (4,))[0]
  np.testing.assert_allclose(got, 0.1 * context + np.sqrt(0.2) * z, rtol=1e-4)


def test_langevin_gives_every_leaf_of_a_tree_its_own_score_and_noise():
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


def test_antithetic_chains_are_mirror_images_without_a_score_that_parts_them():
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
  within_standard_errors(x, mean=0.0, variance=1.0)


# ------------------------------------------------------------------------ MALA


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


def test_mala_leaves_a_gaussian_as_it_is():
  """At ε = 1, where the variance under plain Langevin would be 2."""
  x = jax.random.normal(KEY, (10_000, 2))
  moved, rate = mala(jax.random.key(1), x, log_normal, num_steps=10, step_size=1.0)
  within_standard_errors(moved, mean=0.0, variance=1.0)
  assert 0.3 < rate < 0.95


def test_mala_comes_to_the_target_from_elsewhere():
  def narrow(x):
    return -0.5 * jnp.square(x - 1) / 0.25

  moved, _ = mala(KEY, jnp.full(10_000, 4.0), narrow, num_steps=100, step_size=0.2)
  within_standard_errors(moved, mean=1.0, variance=0.25)


def test_mala_rejects_proposals_of_undefined_density():
  def gamma(x):
    return jnp.log(x) - x  # Gamma(2); NaN below zero

  start = np.random.default_rng(0).gamma(2.0, size=10_000).astype(np.float32)
  moved, rate = mala(KEY, start, gamma, num_steps=20, step_size=0.7)
  assert np.all(np.asarray(moved) > 0)
  assert 0.3 < rate < 0.95
  within_standard_errors(moved, mean=2.0, variance=2.0, fourth=6.0)


def test_mala_moves_a_tree_as_a_whole_in_its_own_context():
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
  within_standard_errors(moved["a"] - centre[:, None], mean=0.0, variance=1.0)
  within_standard_errors(moved["b"], mean=0.0, variance=4.0)


# ------------------------------------------------------------------------ both


def run_langevin(x, step_size=0.1, num_steps=2):
  return langevin(KEY, x, jnp.negative, num_steps=num_steps, step_size=step_size)


def run_mala(x, step_size=0.1, num_steps=2):
  return mala(KEY, x, log_normal, num_steps=num_steps, step_size=step_size).particles


both = pytest.mark.parametrize("run", [run_langevin, run_mala])


@both
def test_a_particle_does_not_depend_on_the_others(run):
  x = np.random.default_rng(0).normal(size=(6, 2)).astype(np.float32)
  path = run(x)
  others_elsewhere = x.copy()
  others_elsewhere[3:] *= -7
  np.testing.assert_allclose(run(others_elsewhere)[:3], path[:3], rtol=1e-6)
  np.testing.assert_allclose(run(x[:3]), path[:3], rtol=1e-6)


@both
def test_particles_and_steps_draw_different_noise(run):
  x = np.asarray(run(jnp.zeros((4, 2)), num_steps=1))
  assert len(np.unique(x)) == x.size
  y = np.asarray(run(jnp.asarray(x), num_steps=2))
  assert len(np.unique(np.concatenate([x, y]))) == 2 * x.size


@both
def test_chains_run_under_jit_and_vmap(run):
  x = np.random.default_rng(0).normal(size=(3, 2)).astype(np.float32)
  step_sizes = jnp.array([0.1, 0.5])
  got = jax.jit(jax.vmap(run, in_axes=(None, 0)))(x, step_sizes)
  for path, step_size in zip(got, step_sizes):
    np.testing.assert_allclose(path, run(x, step_size), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=4, database=None)
@given(
  shape=st.lists(st.integers(1, 3), min_size=1, max_size=3).map(tuple),
  dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
  run=st.sampled_from([run_langevin, run_mala]),
)
def test_chains_keep_shape_and_dtype(shape, dtype, run):
  got = run(jnp.ones(shape, dtype))
  assert (got.shape, got.dtype) == (shape, jnp.dtype(dtype))


@both
def test_a_step_size_of_another_dtype_does_not_change_the_particles_dtype(run):
  half = jnp.ones((3, 2), jnp.bfloat16)
  assert run(half, step_size=jnp.float32(0.1)).dtype == jnp.bfloat16


def test_new_parameters_in_a_partial_are_not_compiled_anew():
  traces = []

  def log_density(centre, x):
    traces.append(centre)
    return -0.5 * jnp.square(x - centre)

  arguments = {"num_steps": 1, "step_size": 0.1}
  score = jax.grad(log_density, argnums=1)
  for centre in (0.0, 1.0, 2.0):
    langevin(KEY, jnp.zeros(3), Partial(score, centre), **arguments)
    mala(KEY, jnp.zeros(3), Partial(log_density, centre), **arguments)
    if centre == 0.0:
      first = len(traces)
  assert len(traces) == first


@both
@pytest.mark.parametrize("step_size", [0.0, -0.1, np.nan, np.inf, [0.1, 0.2]])
def test_a_step_size_that_is_not_above_zero_is_named(run, step_size):
  with pytest.raises(ValueError, match="step_size must be a finite number above 0"):
    run(np.ones((2, 2)), step_size=step_size)


@both
@pytest.mark.parametrize("num_steps", [0, -1, 2.5, True, "3"])
def test_a_number_of_steps_that_is_none_is_named(run, num_steps):
  message = f"num_steps must be an integer of at least 1, got {num_steps!r}"
  with pytest.raises(ValueError, match=message):
    run(np.ones((2, 2)), num_steps=num_steps)


@both
@pytest.mark.parametrize(
  ("particles", "error", "message"),
  [
    (np.ones((3, 2), int), TypeError, "floating-point, got int"),
    (np.float32(1.0), ValueError, "leading axis"),
    (np.ones((0, 2)), ValueError, "at least one point"),
  ],
)
def test_particles_that_are_none_are_named(run, particles, error, message):
  with pytest.raises(error, match=message):
    run(particles)


def test_a_score_of_another_shape_is_named():
  with pytest.raises(ValueError, match=r"same shape, got \(4, 2\) and \(4,\)"):
    langevin(KEY, jnp.ones((4, 2)), jnp.sum, num_steps=1, step_size=0.1)
