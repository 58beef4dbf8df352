"""Conditional noise-contrastive estimation against loops, quadrature and its limit."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import (
  conditional_noise_contrastive,
  conditional_noise_contrastive_loss,
  contrastive_loss,
  score_matching_loss,
)
from stein_jax.training import fit
from tests.algorithms.test_score_matching import finite_differences, mlp, mlp_params

KEY = jax.random.key(3)
DATA = np.random.default_rng(0).normal(size=(6, 3)) * 1.3 + 0.5


def gaussian(params, x):
  return 0.5 * params["a"] * jnp.square(x - params["mean"]).sum()


def noise(shape):
  """What point i draws from fold_in(key, i), in float64."""
  keys = [jax.random.fold_in(KEY, i) for i in range(shape[0])]
  return np.array([jax.random.normal(k, shape[1:], jnp.float64) for k in keys])


@pytest.mark.parametrize("num_noise", [1, 3])
@pytest.mark.usefixtures("x64")
def test_loss_is_that_of_a_loop(num_noise):
  params, sigma = {"a": 0.7, "mean": np.array([0.2, -0.3, 0.1])}, 0.6
  z, want = noise((6, num_noise, 3)), []
  for x, of_x in zip(DATA, z):
    for direction in of_x:
      y = x + sigma * direction
      energies = [0.35 * np.sum((u - params["mean"]) ** 2) for u in (x, y)]
      want.append(2 * np.log(1 + np.exp(energies[0] - energies[1])))
  got = conditional_noise_contrastive_loss(
    KEY, params, gaussian, DATA, noise_scale=sigma, num_noise=num_noise
  )
  np.testing.assert_allclose(got, np.mean(want), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_finite_differences():
  def loss(params):
    return conditional_noise_contrastive_loss(
      KEY, params, mlp, DATA, noise_scale=0.4, num_noise=2
    )

  params = mlp_params()
  chex.assert_trees_all_close(
    jax.grad(loss)(params), finite_differences(loss, params), rtol=1e-6, atol=1e-8
  )


@pytest.mark.usefixtures("x64")
def test_without_a_gap_the_gradient_is_the_contrast_of_random_moves():
  """SteinCD's form, ∇θ [mean E(x) − mean E(x + σz)], where the weight is 1."""
  params, small = mlp_params(), 1e-5
  moved = DATA + small * noise((6, 1, 3))[:, 0]
  got = jax.grad(conditional_noise_contrastive_loss, argnums=1)(
    KEY, params, mlp, DATA, noise_scale=small
  )
  want = jax.grad(contrastive_loss)(params, mlp, DATA, moved)
  chex.assert_trees_all_close(got, want, rtol=1e-3, atol=1e-8)


@pytest.mark.usefixtures("x64")
def test_for_little_noise_it_is_score_matching():
  """By quadrature over z: (2/σ²) (loss − 2 log 2) = J + O(σ²)."""
  x = np.array([[-0.7], [0.2], [1.9]])
  nodes, weights = np.polynomial.hermite_e.hermegauss(40)
  weights = weights / weights.sum()

  def energy(params, x):
    return params * jnp.sum(jnp.cosh(x) + jnp.sin(2 * x))

  want = score_matching_loss(0.6, energy, x)

  def limit(sigma):
    """The mean of the loss over z, in NumPy."""
    total = 0.0
    for u in x[:, 0]:
      at = [0.6 * (np.cosh(v) + np.sin(2 * v)) for v in (u, u + sigma * nodes)]
      total += weights @ (2 * np.log1p(np.exp(at[0] - at[1]))) / len(x)
    return 2 / sigma**2 * (total - 2 * np.log(2))

  errors = [abs(limit(sigma) - want) for sigma in (0.1, 0.05, 0.025)]
  assert errors[2] < 2e-3 * abs(want)
  assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
  assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)

  # The loss itself has this mean: 2 · 10⁵ draws at each point.
  sigma = 0.3
  got = conditional_noise_contrastive_loss(
    KEY, 0.6, energy, x, noise_scale=sigma, num_noise=200_000
  )
  got = 2 / sigma**2 * (got - 2 * np.log(2))
  np.testing.assert_allclose(got, limit(sigma), atol=0.05)


@pytest.mark.parametrize("noise_scale", [0.3, 1.0])
def test_it_learns_a_gaussian(noise_scale):
  """The KL from the data falls, for any σ."""
  x = 0.5 + 0.6 * np.random.default_rng(2).normal(size=(4000, 1)).astype(np.float32)
  rule = conditional_noise_contrastive(
    gaussian, optax.adam(0.02), noise_scale=noise_scale, num_noise=4
  )
  params = {"a": jnp.ones(()), "mean": jnp.zeros(1)}
  run = fit(KEY, rule, params, x, num_steps=600, batch_size=1000, progress=False)
  found = run.state.params
  variance, mean = 1 / float(found["a"]), float(found["mean"][0])

  def kl(variance, mean):
    ratio = x.var() / variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - x.mean()) ** 2 / variance)

  assert kl(variance, mean) < 0.02 < 0.2 < kl(1.0, 0.0)


def test_pytrees_with_a_context():
  x = DATA.astype(np.float32)
  tree = {"a": x[:, :2].reshape(-1, 2, 1), "b": x[:, 2]}
  label = np.arange(6, dtype=np.float32)

  def energy(params, x, label):
    return params * label * (jnp.square(x["a"]).sum() + jnp.square(x["b"]))

  def loss(tree, label):
    batch = {"x": tree, "context": label}
    return conditional_noise_contrastive_loss(
      KEY, 0.1, energy, batch, noise_scale=0.5, num_noise=2
    )

  constant = loss(tree, 0 * label)
  np.testing.assert_allclose(constant, 2 * np.log(2), rtol=1e-6)
  assert abs(loss(tree, label) - constant) > 0.01


def test_bad_input():
  x, sgd = DATA.astype(np.float32), optax.sgd(0.1)
  for sigma in (0, -1.0, np.nan, "a", None):
    with pytest.raises(ValueError, match="noise_scale must be a finite number above 0"):
      conditional_noise_contrastive(gaussian, sgd, noise_scale=sigma)
    with pytest.raises(ValueError, match="noise_scale must be a finite number above 0"):
      conditional_noise_contrastive_loss(KEY, {}, gaussian, x, noise_scale=sigma)
  for num in (0, 1.5):
    with pytest.raises(ValueError, match="num_noise must be an integer of at least 1"):
      conditional_noise_contrastive(gaussian, sgd, noise_scale=1.0, num_noise=num)
  with pytest.raises(TypeError, match="key must be one PRNG key"):
    conditional_noise_contrastive_loss(0, {}, gaussian, x, noise_scale=1.0)
