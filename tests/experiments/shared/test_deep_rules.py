"""Rules with their number in units of the data's scale."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

import stein_jax
from experiments.shared import deep_rules
from stein_jax import densities, energies

KEY = jax.random.key(0)
ENERGY = energies.MLP((8,), activation=jax.nn.silu, base="diagonal")


def gaussian_points(n, d, width):
  rng = np.random.default_rng(0)
  return (width * rng.normal(size=(n, d)) + 5).astype(np.float32)


@pytest.mark.parametrize("d", [2, 10, 50])
@pytest.mark.parametrize("width", [0.01, 30.0])
def test_the_scale_is_about_the_variance_of_a_gaussian(d, width):
  x = gaussian_points(1500, d, width)
  found = deep_rules.problem(ENERGY.apply, optax.sgd(1.0), x)
  assert 0.08 < found.variance / width**2 < 1.4
  if d >= 10:
    assert found.variance / width**2 > 0.4
  assert found.median_squared / width**2 == pytest.approx(2 * d, rel=0.4)


def test_the_scale_is_that_of_the_best_density_estimate():
  """Against all values of a fine list, by SciPy's densities."""
  x = densities.rings([1.0, 3.0], width=0.2).sample(KEY, 60)
  found = deep_rules.problem(ENERGY.apply, optax.sgd(1.0), x).variance

  def log_likelihood(v):
    total = 0.0
    for i, point in enumerate(np.float64(x)):
      others = np.float64(np.delete(x, i, axis=0))
      total += np.log(
        scipy.stats.multivariate_normal(point, v * np.eye(2)).pdf(others).sum()
      )
    return total

  values = found * np.exp(np.linspace(-1, 1, 21))
  assert np.argmax([log_likelihood(v) for v in values]) == 10


def test_the_scale_follows_the_finest_structure():
  for width in (0.05, 0.2):
    x = densities.rings([1.0, 3.0], width=width).sample(KEY, 1000)
    found = deep_rules.problem(ENERGY.apply, optax.sgd(1.0), x).variance
    assert 0.2 < found / width**2 < 1.5


def one_step(name, factor):
  """θ before and after a step of the rule."""
  x = densities.two_modes(2, separation=3.0).sample(KEY, 200)
  rule = deep_rules.make(name, ENERGY.apply, optax.sgd(0.1), x, factor=factor)
  theta = ENERGY.init_from_data(KEY, x)
  state = rule.init(KEY, theta, x[:20])
  state, metrics = rule.update(KEY, state, x[:20])
  assert all(np.isfinite(value) for value in metrics.values())
  return theta, deep_rules.theta(state)


@pytest.mark.parametrize("name", deep_rules.RULES)
def test_every_rule_learns_and_its_number_matters(name):
  rule = deep_rules.RULES[name]
  assert rule.low <= rule.default <= rule.high
  start, default = one_step(name, None)
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), start, default)
  assert max(jax.tree.leaves(moved)) > 1e-6
  chex_equal = jax.tree.map(jnp.array_equal, default, one_step(name, rule.default)[1])
  assert all(jax.tree.leaves(chex_equal))
  # One step of the energy hardly sees the critic's rate, but the number is used.
  other = one_step(name, 0.7 * rule.default)[1]
  same = all(jax.tree.leaves(jax.tree.map(jnp.array_equal, default, other)))
  assert same == (not rule.number)


def test_a_step_of_cd_is_that_of_the_library():
  x = densities.two_modes(2, separation=3.0).sample(KEY, 200)
  theta, found = one_step("cd1", 0.5)
  variance = deep_rules.problem(ENERGY.apply, optax.sgd(0.1), x).variance
  rule = stein_jax.contrastive_divergence(
    ENERGY.apply,
    optax.sgd(0.1),
    num_steps=1,
    step_size=0.5 * variance,
    antithetic=True,
  )
  state = rule.init(KEY, theta, x[:20])
  expected = rule.update(KEY, state, x[:20])[0].params
  for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_an_unknown_rule_is_named():
  with pytest.raises(KeyError, match="no_such_rule"):
    deep_rules.make("no_such_rule", ENERGY.apply, optax.sgd(0.1), np.zeros((9, 2)))
