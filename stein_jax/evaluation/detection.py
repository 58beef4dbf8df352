"""Whether two sets differ: a classifier's test, detection of points from outside of a
distribution by their energies, and the calibration of a classifier's confidence."""

from typing import NamedTuple

import jax
import numpy as np

from stein_jax import checks
from stein_jax.evaluation.samples import (
  Estimate,
  as_features,
  as_probabilities,
  jackknife,
  squared_distances,
)
from stein_jax.types import Array, Key


class TwoSampleTest(NamedTuple):
  """The result of `classifier_two_sample_test`.

  Attributes:
    accuracy: of the classifier on held-out points; ½ if the sets have one distribution.
    p_value: the probability of this accuracy, or a higher one, if they have.
  """

  accuracy: float
  p_value: float


def classifier_two_sample_test(
  key: Key, features: Array, other_features: Array, *, num_neighbors: int | None = None
) -> TwoSampleTest:
  """Can a classifier tell two sets of features apart?

  Half of each set, of equal size, trains a k-nearest-neighbour classifier. On the other
  halves its number of correct answers is binomial with probability ½, if both sets have
  one distribution.

  Args:
    key: a PRNG key, for the split.
    features: `[n, d]`, such as real data's.
    other_features: `[n', d]`, such as generated ones. Of the larger set as many points
      as the smaller one has are used.
    num_neighbors: k, odd; None: about the square root of the training set's size.

  Raises:
    ValueError: sets of fewer than 4 points or of different d, or an even k, or one that
      is larger than the training set.

  Source: Lopez-Paz & Oquab (2017).
  """
  a, b = as_features(features, other_features)
  half = min(len(a), len(b)) // 2
  if half < 2:
    raise ValueError(
      f"each set must have at least 4 points, got {len(a)} and {len(b)}."
    )
  k = 2 * (int(np.sqrt(2 * half)) // 2) + 1 if num_neighbors is None else num_neighbors
  checks.at_least_one("num_neighbors", k)
  if k % 2 == 0 or k > 2 * half:
    raise ValueError(
      f"num_neighbors must be odd and at most {2 * half}, the size of the training "
      f"set, got {k}."
    )
  parts = []
  for key_of_set, points in zip(jax.random.split(key), (a, b)):
    order = np.asarray(jax.random.permutation(key_of_set, len(points)))
    parts.append((points[order[:half]], points[order[half : 2 * half]]))
  (train_a, test_a), (train_b, test_b) = parts
  train, test = np.concatenate([train_a, train_b]), np.concatenate([test_a, test_b])
  labels = np.arange(2 * half) >= half
  predicted = []
  for rows in np.array_split(test, -(-len(test) // 500)):  # a table of 500 rows at once
    nearest = np.argpartition(squared_distances(rows, train), k - 1, axis=1)[:, :k]
    predicted.append(labels[nearest].mean(axis=1) > 0.5)
  count, m = int((np.concatenate(predicted) == labels).sum()), len(test)
  return TwoSampleTest(count / m, _binomial_tail(count, m))


def _binomial_tail(count: int, m: int) -> float:
  """P(X ≥ count) of m trials with probability ½."""
  k = np.arange(1, m + 1)
  log_choices = np.concatenate([[0.0], np.cumsum(np.log((m - k + 1) / k))])
  return min(1.0, float(np.exp(log_choices[count:] - m * np.log(2)).sum()))


def area_under_roc(inside: Array, outside: Array) -> Estimate:
  """The probability that a point from outside has the higher energy; ties count half.

  It is 1 if the energies of points outside of the distribution are all above those
  inside, and ½ if energies do not tell them apart.

  Args:
    inside: energies of points of the distribution, `[n]`.
    outside: energies of other points, `[n']`.

  Returns:
    The area under the receiver operating characteristic, and its standard error of
    DeLong et al. (1988).

  Raises:
    ValueError: fewer than two energies of a kind, or energies that are not finite.
  """
  x, y = (np.asarray(values, np.float64) for values in (inside, outside))
  for name, values in (("inside", x), ("outside", y)):
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all():
      raise ValueError(
        f"{name} must be at least two finite energies, [n], got shape {values.shape}"
        f"{'' if np.isfinite(values).all() else ' with NaN or infinity'}."
      )
  # For each point the share of the other set that it is on the right side of.
  of_outside = _mean_below(y, x)
  of_inside = 1 - _mean_below(x, y)
  variance = of_outside.var(ddof=1) / len(y) + of_inside.var(ddof=1) / len(x)
  return Estimate(float(of_outside.mean()), float(np.sqrt(variance)))


def _mean_below(values: np.ndarray, others: np.ndarray) -> np.ndarray:
  """For each value the share of the others below it; equal ones count half."""
  ordered = np.sort(others)
  below = np.searchsorted(ordered, values, side="left")
  not_above = np.searchsorted(ordered, values, side="right")
  return (below + not_above) / (2 * len(others))


def expected_calibration_error(
  probabilities: Array, labels: Array, *, num_bins: int = 15, num_blocks: int = 10
) -> Estimate:
  """Σ_b (n_b/n) |accuracy in b − mean confidence in b|, over bins of the confidence.

  The confidence is the probability of the most probable class. 0 for a classifier that
  is right as often as it says.

  Args:
    probabilities: p(y | x), `[n, classes]`, rows that sum to 1.
    labels: the true classes, `[n]`, integers.
    num_bins: of equal width.
    num_blocks: as in `inception_score`.

  Raises:
    ValueError: rows that are no distributions, or labels that do not fit.

  Source: Guo et al. (2017).
  """
  p = as_probabilities(probabilities)
  y = np.asarray(labels)
  checks.at_least_one("num_bins", num_bins)
  if y.shape != p.shape[:1] or not np.issubdtype(y.dtype, np.integer):
    raise ValueError(
      f"labels must be integers [{len(p)}], got {y.dtype} of shape {y.shape}."
    )
  if (y < 0).any() or (y >= p.shape[1]).any():
    raise ValueError(
      f"labels must be from 0 to {p.shape[1] - 1}, got {y.min()} to {y.max()}."
    )
  confidence = p.max(axis=1)
  correct = (p.argmax(axis=1) == y).astype(np.float64)
  bins = np.minimum((confidence * num_bins).astype(int), num_bins - 1)

  def error(bins: np.ndarray, gap: np.ndarray) -> float:
    sums = np.bincount(bins, weights=gap, minlength=num_bins)
    return float(np.abs(sums).sum() / len(gap))

  return jackknife(error, (bins, correct - confidence), num_blocks)
