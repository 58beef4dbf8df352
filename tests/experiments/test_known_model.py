"""Gaps to a known truth, against enumeration in NumPy."""

import functools
import json

import jax
import numpy as np
import pytest

from experiments import known_model
from experiments.rbm.settings import Rules
from stein_jax.energies import GaussianBernoulliRBM
from tests import binaries

RBM = GaussianBernoulliRBM(3, weight_scale=0.5)


@pytest.fixture(scope="module")
def problem():
  return known_model.Problem(0, RBM, num_train=2000, num_test=3000)


def components(params):
  """Weights and means of an RBM's mixture, by enumeration of the hidden states."""
  B, b, c = (np.asarray(params["params"][name], np.float64) for name in "Bbc")
  bits = np.arange(2 ** len(c))[:, None] >> np.arange(len(c)) & 1
  h = 2.0 * bits - 1
  means = b + h @ B.T
  exponents = h @ c + 0.5 * np.square(means).sum(axis=1)
  return np.exp(exponents - np.logaddexp.reduce(exponents)), means


def log_likelihood(params, x):
  """log p as the log of a sum of Gaussian densities, in float64."""
  weights, means = components(params)
  squares = np.square(x[:, None] - means[None]).sum(axis=2)
  logs = np.log(weights) - squares / 2 - x.shape[1] / 2 * np.log(2 * np.pi)
  return np.logaddexp.reduce(logs, axis=1)


def test_the_true_model_has_no_gap(problem):
  found = problem.gap(problem.truth)
  assert found == {"gap": 0, "standard_error": 0}


def test_gap_is_that_of_enumeration(problem):
  x = np.asarray(problem.test, np.float64)
  ratios = log_likelihood(problem.truth, x) - log_likelihood(problem.start, x)
  found = problem.gap(problem.start)
  assert found["gap"] == pytest.approx(ratios.mean(), abs=1e-5)
  assert found["gap"] > 0.1
  error = ratios.std(ddof=1) / np.sqrt(len(x))
  assert found["standard_error"] == pytest.approx(error, rel=1e-4)


def test_samples_have_the_moments_of_the_true_model(problem):
  weights, means = components(problem.truth)
  mean = weights @ means
  covariance = np.eye(10) + (means - mean).T @ (weights[:, None] * (means - mean))
  for x in (problem.train, problem.test):
    x = np.asarray(x, np.float64)
    error = np.sqrt(np.diag(covariance) / len(x))
    assert (np.abs(x.mean(axis=0) - mean) < 5 * error).all()
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.25)
  assert not np.array_equal(problem.train[:100], problem.test[:100])


def test_effective_components_are_the_exponential_of_the_entropy(problem):
  weights, _ = components(problem.truth)
  entropy = -np.sum(weights * np.log(weights))
  assert problem.effective_components() == pytest.approx(np.exp(entropy), rel=1e-4)
  assert 1 < problem.effective_components() <= 8


def test_gaussian_baseline_by_scipy(problem):
  stats = pytest.importorskip("scipy.stats")
  train, x = (np.asarray(a, np.float64) for a in (problem.train, problem.test))
  gaussian = stats.multivariate_normal(train.mean(axis=0), np.cov(train.T))
  expected = np.mean(log_likelihood(problem.truth, x) - gaussian.logpdf(x))
  assert problem.gaussian_gap() == pytest.approx(expected, abs=1e-5)


def test_seeds_give_different_models_and_are_reproducible():
  first, again, other = (
    known_model.Problem(seed, RBM, num_train=10, num_test=10) for seed in (0, 0, 1)
  )
  np.testing.assert_array_equal(first.train, again.train)
  assert not np.array_equal(first.truth["params"]["B"], other.truth["params"]["B"])
  scale = np.std(
    [known_model.random_truth(jax.random.key(i), RBM)["params"]["B"] for i in range(20)]
  )
  assert scale == pytest.approx(RBM.weight_scale, rel=0.1)


@pytest.mark.slow
def test_a_variant_for_every_kernel_and_multiple():
  found = known_model._algorithms(
    ["stein_cd", "mle"],
    RBM,
    Rules(optimizer="sgd", learning_rate=0.1),
    [0.1, 1.0, 10.0],
  )
  assert list(found) == ["SteinCD", "exact MLE", "SteinCD, h × 0.1", "SteinCD, h × 10"]
  gradients = []
  for label in ("SteinCD", "SteinCD, h × 0.1", "SteinCD, h × 10"):
    params = RBM.init(jax.random.key(0), np.zeros(10, np.float32))
    batch = jax.random.normal(jax.random.key(1), (8, 10))
    state = found[label].init(jax.random.key(2), params, batch)
    state, _ = found[label].update(jax.random.key(2), state, batch)
    gradients.append(np.asarray(state.params["params"]["B"] - params["params"]["B"]))
  norms = [np.linalg.norm(gradient) for gradient in gradients]
  assert len({f"{norm:.3g}" for norm in norms}) == 3


def test_tables_by_hand():
  def gaps(*values):
    return {
      str(seed): {"gap": v} if v is not None else {"diverged": 7}
      for seed, v in enumerate(values)
    }

  summary = {
    "seeds": [0, 1],
    "gaussian": {"0": 0.5, "1": 0.5},
    "bandwidth_multiples": [1.0, 10.0],
    "methods": {
      "SteinCD": gaps(1.0, 3.0),
      "exact MLE": gaps(0.01, None),
      "SteinCD, h × 10": gaps(2.0, 2.0),
    },
  }
  gap_table, bandwidth_table = known_model.markdown(summary).split("\n\n")
  assert gap_table.splitlines()[2:] == [
    f"| {known_model.BASELINE} | 0.500 ± 0.000 | 0.500 | 0.500 |",
    "| SteinCD | 2.000 ± 1.414 | 1.000 | 3.000 |",
    "| exact MLE | 0.010 (1 diverged) | 0.010 | diverged at 7 |",
  ]
  assert bandwidth_table.splitlines() == [
    "| KL(p* ‖ p) in nats | h × 1 | h × 10 |",
    "| --- | --- | --- |",
    "| SteinCD | 2.000 ± 1.414 | 2.000 ± 0.000 |",
  ]


@pytest.mark.slow
def test_the_command_learns_and_writes_all_promised_files(tmp_path):
  workdir = tmp_path / "w"

  run = functools.partial(binaries.run, "known_model")

  short = (
    *("--method=stein_cd,mle", "--bandwidth_multiples=1", "--seeds=3,0"),
    *("--steps=300", "--eval_every=150", "--train=500", "--test=500"),
    *("--num_hidden=2", f"--workdir={workdir}"),
  )
  result = run(*short)
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  assert list(summary["methods"]) == ["SteinCD", "exact MLE"]
  for result_of_seed in summary["methods"]["exact MLE"].values():
    curve = result_of_seed["curve"]
    assert curve["steps"] == [0, 150, 300]
    assert result_of_seed["gap"] == curve["gap"][-1] < 0.5 * curve["gap"][0]
    assert -0.01 < result_of_seed["gap"] < 0.2
  assert (workdir / "known_model.png").stat().st_size > 10_000
  mean = known_model.markdown(summary).splitlines()[-1].split(" | ")[1]
  assert mean in result.stdout

  printed = run(f"--from_summary={workdir / 'summary.json'}")
  assert printed.stdout.strip() == known_model.markdown(summary)
  refused = run(*short, "--batch_size=501", "--overwrite")
  assert refused.returncode != 0
  assert "--batch_size=501 is more than --train=500" in refused.stderr
  assert "Traceback" not in refused.stderr
