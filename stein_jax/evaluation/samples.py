"""Scores of samples, from a classifier's or another network's outputs for them.

No network is used here: every score takes the probabilities `[n, classes]` or the
features `[n, d]` that a network returned. The scores are computed by NumPy in float64.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from stein_jax import checks
from stein_jax.types import Array, Key


class Estimate(NamedTuple):
  """A score of samples and its standard error."""

  value: float
  standard_error: float


def inception_score(probabilities: Array, *, num_blocks: int | None = 10) -> Estimate:
  """exp(mean KL(p(y | x) ‖ p(y))), where p(y) is the mean of p(y | x) over the samples.

  It is between 1 and the number of classes. It is 1 if p(y | x) is the same for all
  samples: all of them belong to one class, or none of them to any.

  Args:
    probabilities: p(y | x), `[n, classes]`, n ≥ 2, rows that sum to 1.
    num_blocks: the number of blocks of the jackknife that estimates the standard error;
      None: no jackknife, and the standard error is nan.

  Raises:
    ValueError: a row is not a probability distribution, or too few rows or blocks.

  Source: Salimans et al. (2016); Liu & Wang (2017), section 5.
  """
  p = as_probabilities(probabilities)

  def score(p: np.ndarray) -> float:
    return float(np.exp(_entropy(p.mean(axis=0)) - _entropy(p).mean()))

  return jackknife(score, (p,), num_blocks)


def label_entropy(probabilities: Array, *, num_blocks: int | None = 10) -> Estimate:
  """The entropy, in nats, of the frequencies of the most probable classes.

  It is log(classes) if all classes are equally frequent, and 0 if all samples belong to
  one class.

  Args:
    probabilities: p(y | x), `[n, classes]`, rows that sum to 1.
    num_blocks: as in `inception_score`.
  """
  p = as_probabilities(probabilities)
  labels = np.eye(p.shape[1])[p.argmax(axis=1)]
  return jackknife(lambda y: float(_entropy(y.mean(axis=0))), (labels,), num_blocks)


def frechet_distance(
  features: Array, other_features: Array, *, num_blocks: int | None = 10
) -> Estimate:
  """‖μ₁ − μ₂‖² + tr(C₁ + C₂ − 2 (C₁C₂)^½) of two sets of features.

  This is the squared Wasserstein distance between the Gaussians with the means and the
  covariances of the sets. Its bias is positive, of order d/n: compare only values for
  sets of the same size.

  Args:
    features: `[n, d]`, n ≥ 2.
    other_features: `[n', d]`, n' ≥ 2.
    num_blocks: as in `inception_score`.

  Raises:
    ValueError: features that are not finite or do not fit, or too few.

  Source: Heusel et al. (2017).
  """
  a, b = as_features(features, other_features)

  def distance(a: np.ndarray, b: np.ndarray) -> float:
    means = np.square(a.mean(axis=0) - b.mean(axis=0)).sum()
    covariances = np.atleast_2d(np.cov(a.T)), np.atleast_2d(np.cov(b.T))
    # (C₁C₂)^½ has the same eigenvalues as the symmetric matrix (C₁^½ C₂ C₁^½)^½.
    values, vectors = np.linalg.eigh(covariances[0])
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    product = np.linalg.eigvalsh(root @ covariances[1] @ root)
    traces = sum(np.trace(c) for c in covariances)
    return float(means + traces - 2 * np.sqrt(np.maximum(product, 0)).sum())

  return jackknife(distance, (a, b), num_blocks)


def kernel_inception_distance(
  features: Array, other_features: Array, *, num_blocks: int | None = 10
) -> Estimate:
  """The unbiased squared MMD of two sets of features, with the kernel (xᵀy/d + 1)³.

  Args:
    features: `[n, d]`, n ≥ 2.
    other_features: `[n', d]`, n' ≥ 2.
    num_blocks: as in `inception_score`.

  Raises:
    ValueError: as in `frechet_distance`.

  Source: Bińkowski et al. (2018).
  """
  a, b = as_features(features, other_features)

  def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3

  def within(k: np.ndarray) -> float:
    n = len(k)
    return (k.sum() - np.trace(k)) / (n * (n - 1))

  def distance(a: np.ndarray, b: np.ndarray) -> float:
    between = kernel(a, b).mean()
    return float(within(kernel(a, a)) + within(kernel(b, b)) - 2 * between)

  return jackknife(distance, (a, b), num_blocks)


def mean_pairwise_distance(samples: Array, *, num_blocks: int | None = 10) -> Estimate:
  """The mean Euclidean distance between two different samples, a measure of diversity.

  Args:
    samples: `[n, ...]`, n ≥ 2.
    num_blocks: as in `inception_score`.

  Raises:
    ValueError: samples that are not finite, or too few.
  """
  x = _real("samples", samples)
  if x.ndim == 0:
    raise ValueError("samples must be [n, ...], got a scalar.")
  _at_least_two("samples", x)
  x = x.reshape(len(x), -1)

  def distance(x: np.ndarray) -> float:
    return float(np.sqrt(squared_distances(x, x)).sum() / (len(x) * (len(x) - 1)))

  return jackknife(distance, (x,), num_blocks)


def sliced_wasserstein_distance(
  key: Key,
  samples: Array,
  other_samples: Array,
  *,
  weights: Array | None = None,
  other_weights: Array | None = None,
  num_directions: int = 100,
) -> Estimate:
  """The mean over random directions u of W₁ between the projections xᵀu and yᵀu.

  In one dimension W₁ = ∫ |F − G| of the distribution functions, which is exact for two
  weighted sets of points.

  Args:
    key: a PRNG key, for the directions.
    samples: `[n, d]`.
    other_samples: `[n', d]`.
    weights: of the samples, `[n]`, for importance sampling; None: equal ones.
    other_weights: of the other ones, `[n']`.
    num_directions: how many directions.

  Returns:
    The mean, and its standard error over the directions alone. For samples of one
    distribution the mean is not 0, but about as large as for two sets of real samples.

  Raises:
    ValueError: shapes that do not fit, or weights that are negative or all zero.

  Source: Bonneel et al. (2015).
  """
  a, b = as_features(samples, other_samples)
  checks.integer("num_directions", num_directions, least=2)
  mass_a, mass_b = _masses(weights, len(a)), _masses(other_weights, len(b))
  drawn = jax.random.normal(key, (a.shape[1], num_directions))
  directions = np.array(drawn, np.float64)
  directions /= np.linalg.norm(directions, axis=0)[None]
  mass = np.concatenate([mass_a, -mass_b])
  values = np.concatenate([a @ directions, b @ directions])
  order = np.argsort(values, axis=0)
  ordered = np.take_along_axis(values, order, axis=0)
  difference = np.cumsum(mass[order], axis=0)[:-1]  # F − G between two values
  distances = np.sum(np.abs(difference) * np.diff(ordered, axis=0), axis=0)
  error = distances.std(ddof=1) / np.sqrt(num_directions)
  return Estimate(float(distances.mean()), float(error))


def _masses(weights: Array | None, n: int) -> np.ndarray:
  w = np.ones(n) if weights is None else np.asarray(weights, np.float64)
  if w.shape != (n,) or not (w >= 0).all() or not 0 < w.sum() < np.inf:
    raise ValueError(
      f"weights must be [{n}], at least 0 and not all 0, got shape {w.shape}."
    )
  return w / w.sum()


def precision_and_recall(
  real: Array, generated: Array, *, num_neighbors: int = 3
) -> tuple[float, float]:
  """The fraction of generated points near real ones, and of real near generated ones.

  A point is near a set if its distance to a member of the set is at most the distance
  of that member to its k-th nearest neighbour in the set.

  Args:
    real: features `[n, d]`.
    generated: features `[n', d]`.
    num_neighbors: k.

  Returns:
    Precision and recall, each in [0, 1].

  Raises:
    ValueError: as in `frechet_distance`, or num_neighbors outside its range.

  Source: Kynkäänniemi et al. (2019).
  """
  a, b = as_features(real, generated)
  checks.at_least_one("num_neighbors", num_neighbors)
  if num_neighbors >= min(len(a), len(b)):
    raise ValueError(
      "num_neighbors must be at least 1 and below the number of points in the smaller "
      f"set, {min(len(a), len(b))}, got {num_neighbors}."
    )

  def share_inside(points: np.ndarray, of: np.ndarray) -> float:
    # index k, since the distance of a point to itself, 0, is at index 0
    within = np.partition(squared_distances(of, of), num_neighbors, axis=1)
    radii = within[:, num_neighbors]
    return float((squared_distances(points, of) <= radii[None]).any(axis=1).mean())

  return share_inside(b, a), share_inside(a, b)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
  """‖xᵢ − yⱼ‖² of points `[n, d]` and `[n', d]`, `[n, n']`."""
  centre = y.mean(axis=0)
  x, y = x - centre, y - centre
  norms = np.square(x).sum(axis=1)[:, None] + np.square(y).sum(axis=1)[None]
  distances = np.maximum(norms - 2 * x @ y.T, 0)
  if x.shape == y.shape and np.array_equal(x, y):
    np.fill_diagonal(distances, 0.0)  # rounding would make it slightly positive
  return distances


def _entropy(p: np.ndarray) -> Any:
  """−Σ p log p along the last axis, with 0 log 0 = 0."""
  return -np.sum(p * np.log(np.where(p > 0, p, 1.0)), axis=-1)


def jackknife(
  statistic: Callable[..., float],
  arrays: tuple[np.ndarray, ...],
  num_blocks: int | None,
) -> Estimate:
  """A statistic of all rows, and its jackknife standard error over blocks of rows.

  Row i is in block i mod num_blocks, so that rows that are sorted by class do not give
  blocks of one class.
  """
  if num_blocks is None:
    return Estimate(statistic(*arrays), np.nan)
  checks.integer("num_blocks", num_blocks, least=2)
  n = min(map(len, arrays))
  if num_blocks > n:
    raise ValueError(
      f"num_blocks must be between 2 and the number of points, {n}, got {num_blocks}."
    )
  if n - -(-n // num_blocks) < 2:  # without the largest block
    raise ValueError(
      f"num_blocks={num_blocks} leaves fewer than 2 of {n} points without a block; "
      "pass more points, or num_blocks=None."
    )
  value = statistic(*arrays)
  left = [
    statistic(*(x[np.arange(len(x)) % num_blocks != block] for x in arrays))
    for block in range(num_blocks)
  ]
  variance = (num_blocks - 1) * np.var(left)
  return Estimate(value, float(np.sqrt(variance)))


def as_probabilities(probabilities: Array) -> np.ndarray:
  """Probabilities `[n, classes]` in float64, whose rows sum to 1.

  Raises:
    ValueError: a row is not a probability distribution.
  """
  p = _real("probabilities", probabilities)
  if p.ndim != 2 or (p < 0).any() or not np.allclose(p.sum(axis=1), 1, atol=1e-3):
    raise ValueError(
      "probabilities must be [n, classes] with rows that sum to 1, got shape "
      f"{p.shape}; apply a softmax to logits first."
    )
  _at_least_two("probabilities", p)
  return p / p.sum(axis=1, keepdims=True)


def as_features(*sets: Array) -> tuple[np.ndarray, ...]:
  """Sets of features `[n, d]` in float64.

  Raises:
    ValueError: other shapes, or different d.
  """
  arrays = tuple(_real("features", x) for x in sets)
  if any(x.ndim != 2 or x.shape[1] != arrays[0].shape[1] for x in arrays):
    raise ValueError(
      "features must be [n, d] with the same d for both sets, got "
      f"{' and '.join(str(x.shape) for x in arrays)}."
    )
  for x in arrays:
    _at_least_two("features", x)
    if not x.size:
      raise ValueError(f"features must hold at least one number each, got {x.shape}.")
  return arrays


def _real(name: str, values: Array) -> np.ndarray:
  """Finite numbers, in float64."""
  checks.array(name, values)
  try:
    array = np.asarray(values)
  except ValueError:
    raise ValueError(f"{name} must be rows of one length, got others.") from None
  if array.dtype.kind in "cOSU":
    raise TypeError(f"{name} must be real numbers, got {array.dtype}.")
  checks.finite(name, array)
  return array.astype(np.float64)


def _at_least_two(name: str, rows: np.ndarray) -> None:
  if len(rows) < 2:
    raise ValueError(
      f"{name} must have at least 2 rows, one for each sample, got shape {rows.shape}."
    )
