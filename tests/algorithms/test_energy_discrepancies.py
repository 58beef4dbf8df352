"""Energy discrepancy against loops, Gaussian integrals and its two limits."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import densities, energy_discrepancy, energy_discrepancy_loss
from stein_jax.energies import MLP
from stein_jax.training import fit
from tests.algorithms.test_score_matching import finite_differences, mlp, mlp_params

KEY = jax.random.key(3)
DATA = np.random.default_rng(0).normal(size=(6, 3)) * 1.3 + 0.5


def gaussian(params, x):
  return 0.5 * params["a"] * jnp.square(x - params["mean"]).sum()


def of_gaussian(a, x, t):
  """The loss for M → ∞, of E = a x²/2 and points x in one dimension."""
  blurred_back = -0.5 * np.log1p(a * t) - a * (x**2 + t) / (2 * (1 + a * t))
  return np.mean(a * x**2 / 2 + blurred_back)


@pytest.mark.parametrize(("num_samples", "w"), [(1, 1.0), (4, 0.3), (4, 0.0)])
@pytest.mark.usefixtures("x64")
def test_loss_is_that_of_a_loop(num_samples, w):
  params, t, want = {"a": 0.7, "mean": np.array([0.2, -0.3, 0.1])}, 0.6, 0.0

  def energy(u):
    return 0.35 * np.sum((u - params["mean"]) ** 2)

  for i, x in enumerate(DATA):
    key = jax.random.fold_in(KEY, i)
    z = np.array(jax.random.normal(key, (1 + num_samples, 3), jnp.float64))
    total = w / num_samples
    for back in z[1:]:
      y = x + np.sqrt(t) * z[0] + np.sqrt(t) * back
      total += np.exp(energy(x) - energy(y)) / num_samples
    want += np.log(total) / len(DATA)
  got = energy_discrepancy_loss(
    KEY, params, gaussian, DATA, time=t, num_samples=num_samples, stabilization=w
  )
  np.testing.assert_allclose(got, want, rtol=1e-11)


@pytest.mark.parametrize("w", [0.0, 1.0])
@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_finite_differences(w):
  def loss(params):
    return energy_discrepancy_loss(
      KEY, params, mlp, DATA, time=0.4, num_samples=3, stabilization=w
    )

  params = mlp_params()
  chex.assert_trees_all_close(
    jax.grad(loss)(params), finite_differences(loss, params), rtol=1e-6, atol=1e-8
  )


@pytest.mark.parametrize("t", [0.1, 1.0])
def test_with_many_samples_it_is_the_integral(t):
  x = np.random.default_rng(1).normal(size=(4000, 1)).astype(np.float32)
  params = {"a": jnp.float32(2.0), "mean": jnp.zeros(1)}
  got = energy_discrepancy_loss(
    KEY, params, gaussian, x, time=t, num_samples=1000, stabilization=1.0
  )
  np.testing.assert_allclose(got, of_gaussian(2.0, x, t), atol=0.03)


def test_the_integral_has_the_limits_that_the_docstring_gives():
  """t J(θ) for t → 0; for t → ∞ the negative log-likelihood plus a term without θ."""
  x = np.random.default_rng(1).normal(size=1000)

  def score_matching(a):
    return np.mean(a**2 * x**2 / 2 - a)

  def likelihood(a):
    return np.mean(a * x**2 / 2) - 0.5 * np.log(a)

  for a in (0.5, 2.0):
    np.testing.assert_allclose(
      of_gaussian(a, x, 1e-4) / 1e-4, score_matching(a), rtol=1e-2
    )
  large = [of_gaussian(a, x, 1e5) for a in (0.5, 2.0)]
  np.testing.assert_allclose(
    large[1] - large[0], likelihood(2.0) - likelihood(0.5), rtol=1e-3
  )


def test_no_overflow():
  """E(x) − E(y) of 1e4 and −1e4."""
  params = {"a": jnp.float32(1e8), "mean": jnp.zeros(1)}
  x = np.array([[0.01], [-0.02]], np.float32)
  for sign in (1, -1):
    at = params | {"a": sign * params["a"]}
    for w in (0.0, 1.0):
      loss, slope = jax.value_and_grad(energy_discrepancy_loss, argnums=1)(
        KEY, at, gaussian, x, time=1e-4, stabilization=w
      )
      assert np.isfinite([loss, slope["a"]]).all(), (sign, w)


def test_it_learns_a_gaussian():
  x = 0.5 + 0.6 * np.random.default_rng(2).normal(size=(4000, 1)).astype(np.float32)
  rule = energy_discrepancy(gaussian, optax.adam(0.02), time=0.25)
  params = {"a": jnp.ones(()), "mean": jnp.zeros(1)}
  run = fit(KEY, rule, params, x, num_steps=600, batch_size=1000, progress=False)
  found = run.state.params
  variance, mean = 1 / float(found["a"]), float(found["mean"][0])

  def kl(variance, mean):
    ratio = x.var() / variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - x.mean()) ** 2 / variance)

  assert kl(variance, mean) < 0.03 < 0.2 < kl(1.0, 0.0)  # the bias of w


def test_an_mlp_learns_the_weights_of_two_modes():
  """With large t it sees both modes: KL by normalising on a grid."""
  truth = densities.two_modes(2, weights=(0.25, 0.75))
  x = truth.sample(jax.random.key(5), 2000)
  energy = MLP((32, 32))
  params = energy.init(KEY, x[0])
  rule = energy_discrepancy(energy.apply, optax.adam(3e-3), time=4.0)
  run = fit(KEY, rule, params, x, num_steps=600, batch_size=200, progress=False)
  new = truth.sample(jax.random.key(6), 2000)
  grid = np.stack(np.meshgrid(*[np.linspace(-10, 10, 201)] * 2), axis=-1)
  grid = grid.reshape(-1, 2).astype(np.float32)

  def kl(params):
    energies = jax.vmap(energy.apply, (None, 0))
    log_z = jax.nn.logsumexp(-energies(params, grid)) + 2 * np.log(0.1)
    log_p = -energies(params, new) - log_z
    return float((truth.log_density(new) - log_p).mean())

  assert kl(run.state.params) < 0.2 < 0.5 < kl(params)


def test_bad_input():
  x, sgd = DATA.astype(np.float32), optax.sgd(0.1)
  cases = [
    ("time must be a finite number above 0, got 0", {"time": 0}),
    ("num_samples must be an integer of at least 1", {"time": 1.0, "num_samples": 0}),
    ("stabilization must be a finite number of at", {"time": 1.0, "stabilization": -1}),
    ("stabilization must be a finite number of at", {"time": 1, "stabilization": None}),
  ]
  for message, options in cases:
    with pytest.raises(ValueError, match=message):
      energy_discrepancy(gaussian, sgd, **options)
    with pytest.raises(ValueError, match=message):
      energy_discrepancy_loss(KEY, {}, gaussian, x, **options)
  with pytest.raises(TypeError, match="key must be one PRNG key"):
    energy_discrepancy_loss(None, {}, gaussian, x, time=1.0)
