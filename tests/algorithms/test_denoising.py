"""Denoising score matching against loops, and its known minimiser."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import denoising_score_matching, denoising_score_matching_loss
from stein_jax.energies import MLP
from stein_jax.training import fit
from tests.algorithms.test_score_matching import finite_differences, mlp, mlp_params

KEY = jax.random.key(3)
DATA = np.random.default_rng(0).normal(size=(6, 3)) * 1.3 + 0.5


def gaussian(params, x):
  return 0.5 * jnp.exp(params["log_precision"]) * jnp.square(x - params["mean"]).sum()


def by_level(params, x, sigma):
  """A Gaussian whose precision is told by the level."""
  return 0.5 * jnp.square(x).sum() * (params["a"] + params["b"] * sigma)


def noise(key, shape):
  """What point i draws from fold_in(key, i), in float64."""
  keys = [jax.random.fold_in(key, i) for i in range(shape[0])]
  return np.array([jax.random.normal(k, shape[1:], jnp.float64) for k in keys])


@pytest.mark.usefixtures("x64")
def test_loss_is_that_of_a_loop():
  params = {"log_precision": 0.4, "mean": np.array([0.2, -0.3, 0.1])}
  z, sigma = noise(KEY, DATA.shape), 0.7
  want = 0.0
  for x, noise_of_x in zip(DATA, z):
    s = -np.exp(0.4) * (x + sigma * noise_of_x - params["mean"])
    want += sigma**2 / 2 * np.sum((s + noise_of_x / sigma) ** 2) / len(DATA)
  got = denoising_score_matching_loss(KEY, params, gaussian, DATA, sigma=sigma)
  np.testing.assert_allclose(got, want, rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_every_point_draws_one_of_several_levels():
  params, levels = {"a": 0.4, "b": 0.9}, (0.1, 1.0, 3.0)
  noise_key, level_key = jax.random.split(KEY)
  data = np.random.default_rng(1).normal(size=(300, 2))
  z = noise(noise_key, data.shape)
  drawn = []
  want = 0.0
  for i, (x, noise_of_x) in enumerate(zip(data, z)):
    u = float(jax.random.uniform(jax.random.fold_in(level_key, i), (), jnp.float64))
    sigma = levels[int(3 * u)]
    drawn.append(sigma)
    s = -(0.4 + 0.9 * sigma) * (x + sigma * noise_of_x)
    want += sigma**2 / 2 * np.sum((s + noise_of_x / sigma) ** 2) / len(data)
  got = denoising_score_matching_loss(KEY, params, by_level, data, sigma=levels)
  np.testing.assert_allclose(got, want, rtol=1e-12)
  assert min(drawn.count(sigma) for sigma in levels) > 75  # 100 ± 8


@pytest.mark.parametrize("sigma", [0.5, (0.5,)], ids=["number", "sequence"])
@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_finite_differences(sigma):
  def energy(params, x, sigma=0.5):
    return mlp(params, x) * sigma

  def loss(params):
    return denoising_score_matching_loss(KEY, params, energy, DATA, sigma=sigma)

  params = mlp_params()
  chex.assert_trees_all_close(
    jax.grad(loss)(params), finite_differences(loss, params), rtol=1e-6, atol=1e-8
  )


@pytest.mark.usefixtures("x64")
def test_the_minimiser_is_the_blurred_density():
  """Data N(1, 0.5²) and σ = 0.8: at the precision 1/(0.5² + 0.8²) the gradient is 0."""
  quantiles = 1 + 0.5 * jax.scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)

  def gradient(variance):
    params = {"log_precision": -np.log(variance), "mean": np.ones(1)}
    found = jax.grad(denoising_score_matching_loss, argnums=1)(
      KEY, params, gaussian, quantiles[:, None], sigma=0.8
    )
    return float(found["log_precision"])

  blurred = 0.5**2 + 0.8**2
  assert abs(gradient(blurred)) < 0.02
  assert gradient(0.8 * blurred) > 0.05
  assert gradient(1.25 * blurred) < -0.05


def test_points_that_are_pytrees():
  x = DATA.astype(np.float32)
  tree = {"a": x[:, :2].reshape(-1, 2, 1), "b": x[:, 2]}

  def energy(params, x):
    return params * (jnp.square(x["a"]).sum() + jnp.square(x["b"]))

  got = [
    denoising_score_matching_loss(k, 0.5, energy, tree, sigma=0.3)
    for k in jax.random.split(KEY, 300)
  ]
  # s = −y: mean ½E‖(1 − σ²)z − σx‖², with 3 numbers in a point
  want = 0.5 * (3 * (1 - 0.09) ** 2 + 0.09 * np.square(x).sum(axis=1).mean())
  np.testing.assert_allclose(np.mean(got), want, rtol=0.05)


def test_it_learns_the_blurred_gaussian():
  x = 0.5 + 0.6 * np.random.default_rng(2).normal(size=(2000, 1)).astype(np.float32)
  params = {"log_precision": jnp.zeros(()), "mean": jnp.zeros(1)}
  rule = denoising_score_matching(gaussian, optax.adam(0.03), sigma=0.5)
  run = fit(KEY, rule, params, x, num_steps=500, batch_size=500, progress=False)
  found = run.state.params
  variance, mean = np.exp(-found["log_precision"]), float(found["mean"][0])
  wanted = x.var() + 0.25

  def kl(variance, mean):  # of the model from the blurred data, in nats
    ratio = wanted / variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - x.mean()) ** 2 / variance)

  assert kl(variance, mean) < 0.01 < 0.05 < kl(1.0, 0.0)


def test_one_network_learns_all_levels():
  """Its score at every level is that of the data blurred by this level."""
  x = np.random.default_rng(2).normal(size=(2000, 1)).astype(np.float32) * 0.7
  energy, levels = MLP((32, 32)), (0.2, 1.0)
  params = energy.init(KEY, x[0], 0.2)
  rule = denoising_score_matching(energy.apply, optax.adam(3e-3), sigma=levels)
  run = fit(KEY, rule, params, x, num_steps=1000, batch_size=500, progress=False)
  points = jnp.linspace(-1, 1, 9)[:, None]
  for sigma in levels:
    slope = jax.vmap(jax.grad(energy.apply, argnums=1), (None, 0, None))
    got = slope(run.state.params, points, jnp.float32(sigma))
    want = points / (x.var() + sigma**2)
    assert np.sqrt(np.mean((got - want) ** 2)) < 0.15 * np.sqrt(np.mean(want**2))


@pytest.mark.parametrize("sigma", [0, -1.0, np.nan, np.inf, "a", None, True])
def test_a_sigma_that_is_not_above_zero(sigma):
  message = "sigma must be a finite number above 0, got"
  with pytest.raises(ValueError, match=message):
    denoising_score_matching(gaussian, optax.sgd(0.1), sigma=sigma)
  with pytest.raises(ValueError, match=message):
    denoising_score_matching_loss(KEY, {}, gaussian, DATA, sigma=sigma)
  if sigma is not None:
    with pytest.raises(ValueError, match=f"each of {message}"):
      denoising_score_matching(gaussian, optax.sgd(0.1), sigma=[0.1, sigma])


def test_other_bad_input():
  x = DATA.astype(np.float32)
  for sigma in ([], np.ones((2, 2))):
    with pytest.raises(ValueError, match="a number or a sequence of numbers, one for"):
      denoising_score_matching(gaussian, optax.sgd(0.1), sigma=sigma)
  with pytest.raises(ValueError, match="the batch has a context of its own"):
    denoising_score_matching_loss(
      KEY, {"a": 1.0, "b": 1.0}, by_level, {"x": x, "context": x[:, 0]}, sigma=(1.0,)
    )
  with pytest.raises(TypeError, match="key must be one PRNG key"):
    denoising_score_matching_loss(0, {}, gaussian, x, sigma=0.1)
  with pytest.raises(TypeError, match=r"function energy_fn\(params, x, context\)"):
    denoising_score_matching_loss(KEY, {}, mlp, x, sigma=(0.1, 0.2))


def test_a_new_sigma_is_no_new_compilation(compilations):
  x = DATA.astype(np.float32)
  params = {"log_precision": jnp.zeros(()), "mean": jnp.zeros(3)}
  denoising_score_matching_loss(KEY, params, gaussian, x, sigma=0.1)
  compilations.clear()
  denoising_score_matching_loss(KEY, params, gaussian, x, sigma=0.2)
  assert not compilations
