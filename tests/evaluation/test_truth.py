"""A learned energy against a known density: closed forms, and other samples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from stein_jax import densities, evaluation
from stein_jax.energies import GaussianBernoulliRBM

KEY = jax.random.key(0)


def gaussian_energy(params, x):
  return 0.5 * params["a"] * jnp.square(x - params["mu"]).sum() + params["shift"]


@pytest.mark.parametrize("d", [1, 3])
def test_two_gaussians(d):
  """p* = N(0, I) and p = N(μ, I/a): every entry has a closed form."""
  a, mu, shift = 0.7, 0.4, 5.0
  params = {"a": a, "mu": mu, "shift": shift}
  found = evaluation.compare_with_truth(
    densities.gaussian(np.zeros(d)), gaussian_energy, params, KEY
  )
  kl = d * (0.5 * (a * (1 + mu**2) - 1) - 0.5 * np.log(a))
  fisher = d * ((a - 1) ** 2 + (a * mu) ** 2)
  variance = d * (0.5 * (a - 1) ** 2 + (a * mu) ** 2)
  log_z = 0.5 * d * np.log(2 * np.pi / a) - shift
  assert abs(found.kl.value - kl) < 4 * found.kl.standard_error
  assert abs(found.fisher.value - fisher) < 4 * found.fisher.standard_error
  assert abs(found.variance.value - variance) < 4 * found.variance.standard_error
  error = found.log_partition.standard_error
  assert abs(found.log_partition.value - log_z) < 4 * error
  np.testing.assert_allclose(found.slope, a, atol=0.02)
  assert found.mode_masses is None
  assert found.mode_mass_error is None
  assert found.kl.standard_error < 0.02


def test_the_truth_itself_has_no_distance():
  truth = densities.two_modes(4, separation=5.0)
  found = evaluation.compare_with_truth(
    truth, lambda params, x: -truth.log_density_fn(x), None, KEY
  )
  assert abs(found.kl.value) < 4 * found.kl.standard_error
  assert found.fisher.value < 1e-9
  assert found.variance.value < 1e-9
  np.testing.assert_allclose(found.slope, 1, atol=1e-4)
  np.testing.assert_allclose(found.mode_masses, [0.25, 0.75], atol=0.02)
  assert found.mode_mass_error < 0.02
  assert found.sliced_wasserstein.value < 0.1


def test_wrong_weights_of_modes_are_seen_by_all_but_fisher():
  truth = densities.two_modes(3, separation=12.0)
  other = densities.two_modes(3, weights=(0.5, 0.5), separation=12.0)
  found = evaluation.compare_with_truth(
    truth, lambda params, x: -other.log_density_fn(x), None, KEY
  )
  kl = 0.25 * np.log(0.25 / 0.5) + 0.75 * np.log(0.75 / 0.5)
  assert abs(found.kl.value - kl) < 4 * found.kl.standard_error
  assert found.fisher.value < 1e-6
  np.testing.assert_allclose(found.mode_mass_error, 0.25, atol=0.02)
  assert found.sliced_wasserstein.value > 0.5


@pytest.mark.slow
def test_an_invented_mode_is_seen():
  """With the truth alone as the proposal the KL is flattered."""
  truth = densities.gaussian(np.zeros(2))
  model = densities.mixture([truth, densities.gaussian([4.0, 0.0])], [1, 1])

  def energy_fn(params, x):
    return -model.log_density_fn(x)

  proposal = densities.mixture([truth, densities.gaussian([0.0, 0.0], width=3)], [2, 1])
  both = evaluation.compare_with_truth(truth, energy_fn, None, KEY, proposal=proposal)
  alone = evaluation.compare_with_truth(
    truth, energy_fn, None, KEY, proposal=truth, num_samples=2000
  )
  points = np.float64(truth.sample(jax.random.key(5), 50_000))
  exact = (
    np.float64(truth.log_density(points)) - np.float64(model.log_density(points))
  ).mean()
  assert 0.6 < exact < np.log(2)
  assert abs(both.kl.value - exact) < 4 * both.kl.standard_error + 0.005
  assert alone.kl.value < exact - 0.05
  assert alone.log_partition.effective_sample_size < 2000


@pytest.mark.slow
def test_an_rbm_against_another():
  rbm = GaussianBernoulliRBM(4)
  rng = np.random.default_rng(0)
  params, learned = (
    {
      "params": {
        k: jnp.float32(0.7 * rng.normal(size=v))
        for k, v in {"B": (6, 4), "b": (6,), "c": (4,)}.items()
      }
    }
    for _ in range(2)
  )
  truth = densities.of_rbm(rbm, params)
  found = evaluation.compare_with_truth(
    truth, rbm.apply, learned, KEY, proposal=densities.of_rbm(rbm, learned)
  )
  x = truth.sample(jax.random.key(9), 100_000)
  difference = np.float64(truth.log_density(x)) - np.float64(
    rbm.log_likelihood(learned, x)
  )
  error = difference.std() / np.sqrt(len(x))
  total = np.hypot(error, found.kl.standard_error)
  assert abs(found.kl.value - difference.mean()) < 4 * total


@pytest.mark.usefixtures("x64")
def test_float64():
  truth = densities.two_modes(2, separation=4.0)
  found = evaluation.compare_with_truth(
    truth, lambda params, x: -truth.log_density_fn(x), None, KEY, num_samples=500
  )
  assert abs(found.kl.value) < 5 * found.kl.standard_error + 1e-12
  assert 0.3 < found.sliced_wasserstein.value / found.sliced_wasserstein_floor < 3


@pytest.mark.slow
def test_masses_are_within_their_errors():
  truth = densities.two_modes(2, separation=6.0)
  off = []
  for seed in range(20):
    found = evaluation.compare_with_truth(
      truth,
      energy_of_truth,
      truth.log_density_fn,
      jax.random.key(seed),
      num_samples=500,
    )
    off.append(
      (found.mode_masses - truth.mode_masses) / found.mode_mass_standard_errors
    )
  assert 0.5 < np.std(np.array(off)[:, 0]) < 1.6


def energy_of_truth(log_density_fn, x):
  return -log_density_fn(x)


def test_a_second_comparison_compiles_nothing(compilations):
  truth = densities.gaussian([0.0, 1.0])
  for seed in range(3):
    if seed == 1:
      before = len(compilations)
    evaluation.compare_with_truth(
      truth,
      energy_of_truth,
      truth.log_density_fn,
      jax.random.key(seed),
      num_samples=50,
    )
  # The floor's sample has another size in each.
  assert len(compilations) - before <= 2


def test_broad_gaussian_has_the_moments_of_the_points():
  x = np.random.default_rng(0).normal(size=(50, 3)) * [1, 2, 3]
  density = evaluation.broad_gaussian(jnp.float32(x), factor=2.0)
  want = scipy.stats.multivariate_normal(x.mean(0), 4 * np.cov(x.T)).logpdf(x)
  np.testing.assert_allclose(density.log_density(jnp.float32(x)), want, rtol=1e-3)
  rbm = GaussianBernoulliRBM(3)
  params = rbm.init(jax.random.key(1), jnp.zeros(50))
  narrow = densities.of_rbm(rbm, params, pixel_noise=0.001).sample(KEY, 20)
  assert np.isfinite(evaluation.broad_gaussian(narrow).log_density(narrow)).all()
  few = evaluation.broad_gaussian(jnp.float32(x[:2]))  # fewer points than dimensions
  assert np.isfinite(few.log_density(jnp.float32(x[:2]))).all()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"num_samples": 9}, "num_samples must be at least 10"),
    ({"num_samples": 2.5}, "num_samples must be an integer"),
    ({"batch_size": 0}, "batch_size must be"),
    ({"energy_fn": lambda params, x: x}, "must return a scalar"),
    (
      {"energy_fn": lambda params, x: jnp.log(x).sum(), "num_samples": 50},
      r"energy_fn\(params, x\) is not finite at \d+ of 50 points",
    ),
  ],
)
def test_bad_input(options, message):
  energy_fn = options.pop("energy_fn", lambda params, x: jnp.square(x).sum())
  with pytest.raises(ValueError, match=message):
    evaluation.compare_with_truth(
      densities.gaussian([0.0, 0.0]), energy_fn, None, KEY, **options
    )
