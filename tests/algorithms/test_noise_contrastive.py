"""Noise-contrastive estimation against loops, quadrature and a known log Z."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from stein_jax import densities, noise_contrastive, noise_contrastive_loss
from stein_jax.energies import MLP
from stein_jax.training import fit
from tests.algorithms.test_score_matching import finite_differences, mlp, mlp_params

KEY = jax.random.key(3)
SGD = optax.sgd(0.1)


def gaussian(params, x):
  return 0.5 * params["a"] * jnp.square(x - params["mean"]).sum()


@pytest.mark.parametrize("num_noise", [1, 3])
@pytest.mark.usefixtures("x64")
def test_loss_is_that_of_a_loop(num_noise):
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(4, 2)), rng.normal(size=(4 * num_noise, 2)) * 2
  params, c = {"a": 0.7, "mean": np.array([0.3, -0.2])}, 1.3

  def share(u):  # h
    p = np.exp(-0.35 * np.sum((u - params["mean"]) ** 2) - c)
    q = scipy.stats.multivariate_normal([0, 0], 4 * np.eye(2)).pdf(u)
    return p / (p + num_noise * q)

  want = -sum(np.log(share(u)) for u in x) - sum(np.log(1 - share(u)) for u in y)
  noise = densities.gaussian([0.0, 0.0], width=2.0)
  got = noise_contrastive_loss(params, gaussian, x, y, noise, log_partition=c)
  np.testing.assert_allclose(got, want / 4, rtol=1e-10)


@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_finite_differences():
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(5, 3)), rng.normal(size=(10, 3))
  noise = densities.gaussian(np.zeros(3))

  def loss(all_params):
    params, c = all_params
    return noise_contrastive_loss(params, mlp, x, y, noise, log_partition=c)

  at = (mlp_params(), jnp.float64(0.3))
  chex.assert_trees_all_close(
    jax.grad(loss)(at), finite_differences(loss, at), rtol=1e-6, atol=1e-8
  )


@pytest.mark.parametrize("num_noise", [1, 4])
@pytest.mark.usefixtures("x64")
def test_the_optimum_is_the_normalised_density(num_noise):
  """By quadrature: at the truth the gradient of the loss is 0, in c as well."""
  truth, noise = scipy.stats.norm(0.4, 0.7), scipy.stats.norm(0, 1.5)
  points = np.linspace(-12, 12, 4001)
  q = densities.gaussian([0.0], width=1.5)

  def expected(a_and_c, u):
    """E of the loss: its terms of data and of noise are separate."""
    params = {"a": a_and_c[0], "mean": jnp.full(1, 0.4)}

    def loss(x, y):
      y = jnp.tile(y, (num_noise, 1))
      return noise_contrastive_loss(
        params, gaussian, x[None], y, q, log_partition=a_and_c[1]
      )

    zero = jnp.zeros(1)
    of_data = jax.vmap(loss, (0, None))(u, zero) @ truth.pdf(points)
    of_noise = jax.vmap(loss, (None, 0))(zero, u) @ noise.pdf(points)
    return (of_data + of_noise) * (points[1] - points[0]) - loss(zero, zero)

  def gradient(a, c):
    return np.array(jax.grad(expected)(jnp.array([a, c]), points[:, None]))

  a, c = 1 / 0.49, np.log(0.7 * np.sqrt(2 * np.pi))
  np.testing.assert_allclose(gradient(a, c), 0, atol=1e-8)
  assert abs(gradient(1.3 * a, c)[0]) > 1e-3
  assert abs(gradient(a, c + 0.3)[1]) > 1e-3


def test_it_recovers_a_gaussian_and_its_log_partition():
  """The KL from the data falls, and −E − c integrates to 1."""
  x = 0.5 + 0.6 * np.random.default_rng(2).normal(size=(4000, 1)).astype(np.float32)
  noise = densities.gaussian([0.0], width=1.5)
  rule = noise_contrastive(gaussian, noise, optax.adam(0.02), num_noise=2)
  params = {"a": jnp.ones(()), "mean": jnp.zeros(1)}
  run = fit(KEY, rule, params, x, num_steps=800, batch_size=1000, progress=False)
  found = run.state.params
  variance, mean = 1 / float(found["a"]), float(found["mean"][0])

  def kl(variance, mean):
    ratio = x.var() / variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - x.mean()) ** 2 / variance)

  assert kl(variance, mean) < 0.01 < 0.2 < kl(1.0, 0.0)
  log_z = 0.5 * np.log(2 * np.pi * variance)
  assert abs(run.state.log_partition - log_z) < 0.06
  assert abs(run.history[-1]["log_partition"] - log_z) < 0.06


def test_log_partition_starts_near_the_truth():
  noise = densities.gaussian([0.0, 0.0], width=2.0)
  for a in (0.2, 1.0, 5.0):
    params = {"a": jnp.float32(a), "mean": jnp.ones(2)}
    state = noise_contrastive(gaussian, noise, SGD).init(KEY, params, jnp.zeros((3, 2)))
    assert abs(state.log_partition - np.log(2 * np.pi / a)) < 0.2
    assert state.params is params


@given(st.floats(-40, 40), st.integers(1, 20))
@settings(max_examples=20, deadline=None)
def test_the_default_step_of_log_partition_does_not_overshoot(start, num_noise):
  """With θ fixed at the truth c approaches log Z from any start."""
  noise = densities.gaussian([0.0], width=1.0)
  rule = noise_contrastive(gaussian, noise, optax.sgd(0.0), num_noise=num_noise)
  x = noise.sample(KEY, 200)
  params = {"a": jnp.ones(()), "mean": jnp.zeros(1)}
  state = rule.init(KEY, params, x)
  truth = 0.5 * np.log(2 * np.pi)
  state = state._replace(log_partition=jnp.float32(truth + start))
  update = jax.jit(rule.update)
  before = abs(start)
  for key in jax.random.split(KEY, 10):
    state, _ = update(key, state, x)
    after = abs(float(state.log_partition) - truth)
    assert after <= max(before, 0.4)
    before = after


def test_the_state_has_one_gradient_for_params_and_one_for_log_partition():
  x = np.ones((4, 1), np.float32)
  noise = densities.gaussian([0.0])
  rule = noise_contrastive(
    gaussian, noise, optax.sgd(1.0), log_partition_optimizer=optax.sgd(0.5)
  )
  params = {"a": jnp.ones(()), "mean": jnp.zeros(1)}
  state = rule.init(KEY, params, x)
  assert state._fields[:2] == ("params", "opt_state")
  got, _ = rule.update(KEY, state, x)
  y = noise.sample(KEY, 4)

  def loss(params, c):
    return noise_contrastive_loss(params, gaussian, x, y, noise, log_partition=c)

  of_params, of_c = jax.grad(loss, argnums=(0, 1))(params, state.log_partition)
  moved = jax.tree.map(lambda p, g: p - g, params, of_params)
  chex.assert_trees_all_close(got.params, moved, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(
    got.log_partition, state.log_partition - 0.5 * of_c, rtol=1e-5
  )


def test_an_mlp_learns_two_modes():
  truth = densities.two_modes(2)
  x = truth.sample(jax.random.key(5), 2000)
  spread = np.cov(np.asarray(x).T)
  noise = densities.gaussian(np.mean(x, axis=0), covariance=spread)
  energy = MLP((32, 32))
  rule = noise_contrastive(energy.apply, noise, optax.adam(3e-3), num_noise=2)
  params = energy.init(KEY, x[0])
  run = fit(KEY, rule, params, x, num_steps=600, batch_size=200, progress=False)
  new = truth.sample(jax.random.key(6), 2000)

  grid = np.stack(np.meshgrid(*[np.linspace(-10, 10, 201)] * 2), axis=-1)
  grid = grid.reshape(-1, 2).astype(np.float32)

  def kl_and_log_z(state):
    energies = jax.vmap(energy.apply, (None, 0))
    log_z = jax.nn.logsumexp(-energies(state.params, grid)) + 2 * np.log(0.1)
    log_p = -energies(state.params, new) - log_z
    return float((truth.log_density(new) - log_p).mean()), float(log_z)

  before, _ = kl_and_log_z(rule.init(KEY, params, x))
  after, log_z = kl_and_log_z(run.state)
  assert after < 0.1 < 0.5 < before
  assert abs(run.state.log_partition - log_z) < 0.3


def test_bad_input():
  x = np.zeros((4, 2), np.float32)
  params = {"a": 1.0, "mean": np.zeros(2, np.float32)}
  noise = densities.gaussian([0.0, 0.0])
  for wrong in (gaussian, noise.sample_fn, None):
    with pytest.raises(TypeError, match="noise_density must be a Density such as"):
      noise_contrastive(gaussian, wrong, SGD)
    with pytest.raises(TypeError, match="noise_density must be a Density such as"):
      noise_contrastive_loss(params, gaussian, x, x, wrong, log_partition=0.0)
  with pytest.raises(ValueError, match="num_noise must be an integer of at least 1"):
    noise_contrastive(gaussian, noise, SGD, num_noise=0)
  with pytest.raises(TypeError, match="log_partition_optimizer must be an optax"):
    noise_contrastive(gaussian, noise, SGD, log_partition_optimizer=0.1)
  rule = noise_contrastive(gaussian, densities.gaussian([0.0]), SGD)
  with pytest.raises(ValueError, match="of the batch and one of noise_density must"):
    rule.init(KEY, params, x)
  with pytest.raises(ValueError, match="of data and one of noise_points must have"):
    noise_contrastive_loss(params, gaussian, x, x[:, :1], noise, log_partition=0.0)
  batch = {"x": x, "context": np.arange(4)}
  with pytest.raises(ValueError, match="learns one log Z for all points"):
    noise_contrastive(gaussian, noise, SGD).init(KEY, params, batch)
