"""The learned Stein discrepancy against loops and the critic that is best."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from stein_jax import (
  critics,
  learned_stein_discrepancy,
  learned_stein_discrepancy_loss,
  score_matching_loss,
)
from stein_jax.samplers.noise import normal_like
from stein_jax.training import fit
from tests.algorithms.test_score_matching import finite_differences, mlp, mlp_params

KEY = jax.random.key(3)
SGD = optax.sgd(0.1)
DATA = np.random.default_rng(0).normal(size=(6, 3)) * 1.3 + 0.5
CRITIC = critics.VectorMLP((5,))


def gaussian(params, x):
  return 0.5 * params["a"] * jnp.square(x - params["mean"]).sum()


def affine(params, x):
  return params["w"] * (x - params["b"])


def bent(params, x):
  return jnp.tanh(params["w"] @ x + params["b"])


@pytest.mark.usefixtures("x64")
def test_loss_is_that_of_a_loop():
  rng = np.random.default_rng(1)
  mean, w, b = rng.normal(size=3), rng.normal(size=(3, 3)), rng.normal(size=3)
  want = 0.0
  for i, x in enumerate(DATA):
    z = np.array(jax.random.normal(jax.random.fold_in(KEY, i), (3,), jnp.float64))
    s, f = -0.7 * (x - mean), np.tanh(w @ x + b)
    jacobian = (1 - f**2)[:, None] * w
    want += (s @ f + z @ jacobian @ z - 0.3 * f @ f) / len(DATA)
  params = {"energy": {"a": 0.7, "mean": mean}, "critic": {"w": w, "b": b}}
  got = learned_stein_discrepancy_loss(KEY, params, gaussian, bent, DATA, penalty=0.3)
  np.testing.assert_allclose(got, want, rtol=1e-11)


@pytest.mark.usefixtures("x64")
def test_gradient_is_that_of_finite_differences():
  rng = np.random.default_rng(1)
  critic = {"w": rng.normal(size=(3, 3)), "b": rng.normal(size=3)}

  def loss(params):
    return learned_stein_discrepancy_loss(KEY, params, mlp, bent, DATA)

  params = {"energy": mlp_params(), "critic": critic}
  chex.assert_trees_all_close(
    jax.grad(loss)(params), finite_differences(loss, params), rtol=1e-6, atol=1e-8
  )


@pytest.mark.parametrize("penalty", [0.5, 3.0])
@pytest.mark.usefixtures("x64")
def test_the_best_critic_is_the_difference_of_the_scores(penalty):
  """f = (s − s_q)/(2λ): stationary, E‖s − s_q‖²/(4λ), and Fisher's gradient of θ."""
  x = 0.4 + 0.8 * jax.scipy.stats.norm.ppf((np.arange(20_000) + 0.5) / 20_000)
  x = x[:, None]
  m, v = x.mean(), x.var()
  energy = {"a": jnp.float64(0.6), "mean": jnp.full(1, -0.3)}
  # s − s_q = −a(x − μ) + (x − m)/v, linear in x
  slope = 1 / v - 0.6
  root = (m / v - 0.6 * -0.3) / slope
  critic = {"w": slope / (2 * penalty), "b": jnp.full(1, root)}

  def loss(params):
    return learned_stein_discrepancy_loss(
      KEY, params, gaussian, affine, x, penalty=penalty
    )

  # Of an affine f, Hutchinson's estimate is off by the mean of z² − 1 exactly.
  excess = jnp.square(normal_like(KEY, x)).mean() - 1
  value, slopes = jax.value_and_grad(loss)({"energy": energy, "critic": critic})
  squares = np.square(slope * (x - root)).mean()
  np.testing.assert_allclose(
    value - excess * critic["w"], squares / (4 * penalty), rtol=1e-3
  )
  np.testing.assert_allclose(slopes["critic"]["w"] - excess, 0, atol=2e-3)
  np.testing.assert_allclose(slopes["critic"]["b"], 0, atol=2e-3)
  fisher = jax.grad(score_matching_loss)(energy, gaussian, x)
  want = jax.tree.map(lambda g: g / (2 * penalty), fisher)
  chex.assert_trees_all_close(slopes["energy"], want, rtol=1e-3)


@pytest.mark.parametrize("critic_steps", [1, 2])
def test_a_step_moves_the_critic_up_and_then_the_energy_down(critic_steps):
  x = DATA.astype(np.float32)
  params = {
    "energy": {"a": jnp.float32(0.7), "mean": jnp.zeros(3)},
    "critic": {"w": jnp.eye(3) / 2, "b": jnp.ones(3)},
  }
  rule = learned_stein_discrepancy(
    gaussian, bent, optax.sgd(0.1), optax.sgd(0.2), critic_steps=critic_steps
  )
  state = rule.init(KEY, params, x)
  assert state._fields == ("params", "opt_state", "critic_opt_state")
  got, metrics = rule.update(KEY, state, x)

  def slopes(key, params):
    return jax.value_and_grad(learned_stein_discrepancy_loss, argnums=1)(
      key, params, gaussian, bent, x
    )

  key, *critic_keys = jax.random.split(KEY, 1 + critic_steps)
  want = dict(params)
  for critic_key in critic_keys:
    up = slopes(critic_key, want)[1]["critic"]
    want["critic"] = jax.tree.map(lambda p, g: p + 0.2 * g, want["critic"], up)
  loss, found = slopes(key, want)
  want["energy"] = jax.tree.map(
    lambda p, g: p - 0.1 * g, want["energy"], found["energy"]
  )
  chex.assert_trees_all_close(got.params, want, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
  np.testing.assert_allclose(
    metrics["gradient_norm"], optax.tree.norm(found["energy"]), rtol=1e-5
  )
  np.testing.assert_allclose(
    metrics["critic_gradient_norm"], optax.tree.norm(up), rtol=1e-5
  )


def test_it_learns_a_gaussian():
  x = 0.5 + 0.6 * np.random.default_rng(2).normal(size=(4000, 1)).astype(np.float32)
  critic = critics.VectorMLP((32, 32))
  rule = learned_stein_discrepancy(
    gaussian, critic.apply, optax.adam(0.02), optax.adam(3e-3), critic_steps=2
  )
  params = {
    "energy": {"a": jnp.ones(()), "mean": jnp.zeros(1)},
    "critic": critic.init(KEY, x[0]),
  }
  run = fit(KEY, rule, params, x, num_steps=600, batch_size=1000, progress=False)
  found = run.state.params["energy"]
  variance, mean = 1 / float(found["a"]), float(found["mean"][0])

  def kl(variance, mean):
    ratio = x.var() / variance
    return 0.5 * (ratio - 1 - np.log(ratio) + (mean - x.mean()) ** 2 / variance)

  assert kl(variance, mean) < 0.03 < 0.2 < kl(1.0, 0.0)


def test_points_that_are_pytrees_with_a_context():
  x = DATA.astype(np.float32)
  batch = {"x": {"a": x[:, :2], "b": x[:, 2]}, "context": np.arange(6.0, dtype="f4")}

  def energy(params, x, label):
    return params * label * (jnp.square(x["a"]).sum() + jnp.square(x["b"])) / 2

  def critic(params, x, label):
    return jax.tree.map(lambda leaf: params * label * leaf, x)

  got = learned_stein_discrepancy_loss(
    KEY, {"energy": 0.3, "critic": 0.0}, energy, critic, batch
  )
  assert got == 0
  got = learned_stein_discrepancy_loss(
    KEY, {"energy": 0.3, "critic": 1.0}, energy, critic, batch, penalty=1.0
  )
  label = np.arange(6.0)
  z = normal_like(KEY, batch["x"])
  z = np.square(z["a"]).sum(axis=1) + np.square(z["b"])
  squares = np.square(x).sum(axis=1)
  want = (-0.3 * label**2 * squares + label * z - label**2 * squares).mean()
  np.testing.assert_allclose(got, want, rtol=1e-4)


def test_bad_input():
  x = DATA.astype(np.float32)
  energy = {"a": jnp.float32(1.0), "mean": jnp.zeros(3)}
  params = {"energy": energy, "critic": jnp.ones(())}
  for value in (0, -1.0, None):
    with pytest.raises(ValueError, match="penalty must be a finite number above 0"):
      learned_stein_discrepancy(gaussian, affine, SGD, SGD, penalty=value)
    with pytest.raises(ValueError, match="penalty must be a finite number above 0"):
      learned_stein_discrepancy_loss(KEY, params, gaussian, affine, x, penalty=value)
  with pytest.raises(ValueError, match="critic_steps must be an integer of at least 1"):
    learned_stein_discrepancy(gaussian, affine, SGD, SGD, critic_steps=0)
  with pytest.raises(TypeError, match="critic_optimizer must be an optax optimizer"):
    learned_stein_discrepancy(gaussian, affine, SGD, None)
  with pytest.raises(TypeError, match=r"critic_fn must be .*got the module"):
    learned_stein_discrepancy(gaussian, CRITIC, SGD, SGD)
  message = r'params must be {"energy": ..., "critic": ...}, got'
  rule = learned_stein_discrepancy(gaussian, affine, SGD, SGD)
  with pytest.raises(ValueError, match=message):
    rule.init(KEY, energy, x)
  with pytest.raises(ValueError, match=message):
    learned_stein_discrepancy_loss(KEY, energy, gaussian, affine, x)
  with pytest.raises(ValueError, match=r"x and critic_fn\(params, x\) must have"):
    learned_stein_discrepancy_loss(KEY, params, gaussian, lambda p, x: p, x)
