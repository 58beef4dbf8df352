"""Tests of two sets, against scikit-learn and SciPy."""

import jax
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics

from stein_jax import evaluation

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)


# ---------------------------------------------------------------- a classifier's test


def test_p_values_are_uniform_for_one_distribution():
  p_values = []
  for seed in range(200):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 60, 3))
    found = evaluation.classifier_two_sample_test(jax.random.key(seed), a, b)
    p_values.append(found.p_value)
  for level in (0.05, 0.2, 0.5):  # a discrete test is at most of its level
    rejected = np.mean(np.array(p_values) <= level)
    assert rejected <= level + 3 * np.sqrt(level * (1 - level) / 200)
  assert np.mean(np.array(p_values) <= 0.5) > 0.25


def test_different_sets_are_told_apart():
  a, b = RNG.normal(size=(300, 2)), RNG.normal(size=(400, 2)) + 1
  found = evaluation.classifier_two_sample_test(KEY, a, b)
  best = scipy.stats.norm.cdf(np.sqrt(2) / 2)  # the optimal classifier's accuracy
  assert abs(found.accuracy - best) < 0.08
  assert found.p_value < 1e-6


@pytest.mark.parametrize(("accuracy", "m"), [(0.5, 100), (0.6, 100), (0.0, 8)])
def test_p_values_are_binomial_tails(accuracy, m):
  count = round(accuracy * m)
  a = np.arange(m, dtype=float)[:, None]
  found = evaluation.classifier_two_sample_test(KEY, a, a, num_neighbors=1)
  count = round(found.accuracy * m)
  want = scipy.stats.binom.sf(count - 1, m, 0.5)
  np.testing.assert_allclose(found.p_value, want, rtol=1e-3, atol=1e-6)


# ------------------------------------------------------------------------------ AUROC


@pytest.mark.parametrize("ties", [False, True])
def test_area_is_that_of_scikit_learn(ties):
  x, y = RNG.normal(size=80), RNG.normal(size=50) + 0.7
  if ties:
    x, y = np.round(x), np.round(y)
  labels = np.repeat([0, 1], [80, 50])
  want = sklearn.metrics.roc_auc_score(labels, np.concatenate([x, y]))
  np.testing.assert_allclose(evaluation.area_under_roc(x, y).value, want, rtol=1e-12)


def test_the_area_s_error_is_its_spread():
  found = [
    evaluation.area_under_roc(RNG.normal(size=100), RNG.normal(size=60) + 0.5)
    for _ in range(400)
  ]
  spread = np.std([estimate.value for estimate in found])
  stated = np.mean([estimate.standard_error for estimate in found])
  np.testing.assert_allclose(stated, spread, rtol=0.12)


def test_area_of_separate_and_of_equal_energies():
  assert evaluation.area_under_roc([0.0, 1.0], [2.0, 3.0]) == (1.0, 0.0)
  assert evaluation.area_under_roc([5.0, 5.0], [5.0, 5.0]).value == 0.5


# ------------------------------------------------------------------------ calibration


def test_calibration_by_hand():
  p = np.array([[0.9, 0.1], [0.2, 0.8], [0.65, 0.35], [0.6, 0.4]])
  y = np.array([0, 0, 0, 1])
  found = evaluation.expected_calibration_error(p, y, num_bins=2, num_blocks=2)
  # All four confidences are in [0.5, 1]: mean 0.7375, accuracy 0.5.
  np.testing.assert_allclose(found.value, 0.2375)
  four = evaluation.expected_calibration_error(p, y, num_bins=4, num_blocks=2)
  low, high = abs(0.5 - 0.625), abs(0.5 - 0.85)  # [0.5, 0.75) and [0.75, 1]
  np.testing.assert_allclose(four.value, (low + high) / 2)


def test_a_calibrated_classifier_has_a_small_error():
  p = RNG.dirichlet(np.ones(3), size=20_000)
  y = (RNG.uniform(size=(20_000, 1)) > np.cumsum(p, axis=1)).sum(1)
  assert evaluation.expected_calibration_error(p, y).value < 0.02
  sharper = p**3 / (p**3).sum(axis=1, keepdims=True)
  assert evaluation.expected_calibration_error(sharper, y).value > 0.1


# ---------------------------------------------------------------- sliced Wasserstein


@pytest.mark.parametrize("weighted", [False, True])
def test_sliced_distance_is_the_mean_of_scipy_s(weighted):
  a, b = RNG.normal(size=(30, 3)), RNG.normal(size=(45, 3)) + 0.5
  weights = (RNG.uniform(size=30), RNG.uniform(size=45)) if weighted else (None, None)
  found = evaluation.sliced_wasserstein_distance(
    KEY, a, b, weights=weights[0], other_weights=weights[1], num_directions=7
  )
  directions = np.float64(jax.random.normal(KEY, (3, 7)))
  directions /= np.linalg.norm(directions, axis=0)
  want = [
    scipy.stats.wasserstein_distance(a @ u, b @ u, *weights) for u in directions.T
  ]
  np.testing.assert_allclose(found.value, np.mean(want), rtol=1e-10)
  np.testing.assert_allclose(found.standard_error, np.std(want, ddof=1) / np.sqrt(7))


def test_sliced_distance_of_a_set_to_itself_is_zero():
  a = RNG.normal(size=(30, 2))
  found = evaluation.sliced_wasserstein_distance(KEY, a, a[::-1])
  np.testing.assert_allclose(found.value, 0, atol=1e-12)


# -------------------------------------------------------------------------- bad input

X = RNG.normal(size=(9, 2))
P = np.full((4, 2), 0.5)


@pytest.mark.parametrize(
  ("call", "message"),
  [
    (lambda: evaluation.classifier_two_sample_test(KEY, X[:3], X), "at least 4 points"),
    (lambda: evaluation.classifier_two_sample_test(KEY, X, X[:, :1]), "same d"),
    (
      lambda: evaluation.classifier_two_sample_test(KEY, X, X, num_neighbors=2),
      "must be odd",
    ),
    (
      lambda: evaluation.classifier_two_sample_test(KEY, X, X, num_neighbors=11),
      "at most 8",
    ),
    (
      lambda: evaluation.area_under_roc([1.0], [1.0, 2.0]),
      "inside must be at least two",
    ),
    (lambda: evaluation.area_under_roc([1.0, 2.0], [1.0, np.nan]), "outside.*NaN"),
    (lambda: evaluation.area_under_roc(X, [1.0, 2.0]), r"shape \(9, 2\)"),
    (lambda: evaluation.expected_calibration_error(P, [0, 1, 2, 0]), "from 0 to 1"),
    (lambda: evaluation.expected_calibration_error(P, [0.0] * 4), "integers"),
    (lambda: evaluation.expected_calibration_error(P, [0, 1]), r"\[4\]"),
    (lambda: evaluation.expected_calibration_error(P * 2, [0] * 4), "sum to 1"),
    (
      lambda: evaluation.sliced_wasserstein_distance(KEY, X, X, weights=-np.ones(9)),
      "weights must be",
    ),
    (
      lambda: evaluation.sliced_wasserstein_distance(KEY, X, X, num_directions=0),
      "num_directions",
    ),
  ],
)
def test_bad_input(call, message):
  with pytest.raises(ValueError, match=message):
    call()
