"""Scores of samples against closed forms, SciPy and double loops."""

import numpy as np
import pytest
import scipy.linalg
from scipy.spatial.distance import cdist, pdist

from stein_jax.evaluation import samples as scores


@pytest.fixture
def rng():
  return np.random.default_rng(0)


def one_hot(labels, classes):
  return np.eye(classes)[labels]


def test_inception_score_in_closed_form():
  even = one_hot(np.arange(100) % 10, 10)
  assert scores.inception_score(even).value == pytest.approx(10)
  assert scores.inception_score(np.full((50, 10), 0.1)).value == pytest.approx(1)
  assert scores.inception_score(one_hot(np.zeros(50, int), 10)).value == pytest.approx(
    1
  )
  quarter = one_hot((np.arange(400) % 4 == 0).astype(int), 2)
  entropy = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
  assert scores.inception_score(quarter, num_blocks=20).value == pytest.approx(
    np.exp(entropy)
  )


def test_inception_score_is_the_mean_divergence(rng):
  p = rng.dirichlet(np.ones(5), size=60)
  marginal = p.mean(axis=0)
  divergence = [np.sum(row * np.log(row / marginal)) for row in p]
  got = scores.inception_score(p)
  assert got.value == pytest.approx(np.exp(np.mean(divergence)))


def test_standard_errors_are_those_of_many_draws(rng):
  weights = np.array([0.5, 0.3, 0.2])
  draws = [
    scores.label_entropy(one_hot(rng.choice(3, 300, p=weights), 3), num_blocks=30)
    for _ in range(200)
  ]
  spread = np.std([draw.value for draw in draws])
  claimed = np.mean([draw.standard_error for draw in draws])
  assert claimed == pytest.approx(spread, rel=0.25)
  exact = -np.sum(weights * np.log(weights))
  assert np.mean([draw.value for draw in draws]) == pytest.approx(exact, abs=0.02)


def test_without_blocks_the_score_is_the_same_and_has_no_error(rng):
  a, b = rng.normal(size=(40, 3)), rng.normal(size=(50, 3))
  once = scores.frechet_distance(a, b, num_blocks=None)
  assert once.value == scores.frechet_distance(a, b).value
  assert np.isnan(once.standard_error)


def test_frechet_distance_of_gaussians(rng):
  n = 200_000
  a = rng.normal(size=(n, 2)) * [1.0, 2.0] + [0.0, 1.0]
  b = rng.normal(size=(n, 2)) * [3.0, 1.0] + [2.0, 0.0]
  # axis-parallel: (1 − 3)² + (2 − 1)² plus 4 + 1 from the means
  got = scores.frechet_distance(a, b)
  assert got.value == pytest.approx(10.0, abs=5 * got.standard_error)
  assert 0 < got.standard_error < 0.2


@pytest.mark.parametrize("d", [1, 4])
def test_frechet_distance_is_that_of_scipys_square_root(d, rng):
  a, b = rng.normal(size=(50, d)), rng.normal(size=(60, d)) @ rng.normal(size=(d, d))
  covariances = np.cov(a.T).reshape(d, d), np.cov(b.T).reshape(d, d)
  root = scipy.linalg.sqrtm(covariances[0] @ covariances[1]).real
  want = np.square(a.mean(axis=0) - b.mean(axis=0)).sum() + np.trace(
    covariances[0] + covariances[1] - 2 * root
  )
  assert scores.frechet_distance(a, b).value == pytest.approx(want, rel=1e-6)
  assert scores.frechet_distance(a, a).value == pytest.approx(0, abs=1e-6)


def test_kernel_distance_is_the_double_loop(rng):
  a, b = rng.normal(size=(20, 3)), rng.normal(size=(25, 3)) + 0.5
  k = lambda x, y: (x @ y / 3 + 1) ** 3  # noqa: E731
  aa = np.mean([k(a[i], a[j]) for i in range(20) for j in range(20) if i != j])
  bb = np.mean([k(b[i], b[j]) for i in range(25) for j in range(25) if i != j])
  ab = np.mean([k(x, y) for x in a for y in b])
  got = scores.kernel_inception_distance(a, b)
  assert got.value == pytest.approx(aa + bb - 2 * ab)


def test_kernel_distance_is_unbiased(rng):
  draws = [
    scores.kernel_inception_distance(*rng.normal(size=(2, 30, 2))).value
    for _ in range(300)
  ]
  assert abs(np.mean(draws)) < 4 * np.std(draws) / np.sqrt(300)


def test_mean_pairwise_distance_is_scipys(rng):
  x = rng.normal(size=(30, 2, 3)) + 100
  want = pdist(x.reshape(30, 6)).mean()
  assert scores.mean_pairwise_distance(x).value == pytest.approx(want, rel=1e-9)
  same = np.ones((10, 4)) * 7.3
  assert scores.mean_pairwise_distance(same) == (0.0, 0.0)


def test_label_entropy_in_closed_form():
  assert scores.label_entropy(one_hot(np.arange(100) % 10, 10)).value == pytest.approx(
    np.log(10)
  )
  assert scores.label_entropy(np.full((30, 4), 0.25)).value == 0  # ties: class 0


def test_precision_and_recall_by_double_loop(rng):
  a, b = rng.normal(size=(40, 3)), rng.normal(size=(50, 3)) * 0.6

  def inside(points, of, k):
    radii = np.sort(cdist(of, of), axis=1)[:, k]
    return np.mean([any(np.linalg.norm(p - of, axis=1) <= radii) for p in points])

  got = scores.precision_and_recall(a, b, num_neighbors=2)
  np.testing.assert_allclose(got, (inside(b, a, 2), inside(a, b, 2)))
  assert scores.precision_and_recall(a, a) == (1.0, 1.0)
  assert scores.precision_and_recall(a, b + 100) == (0.0, 0.0)


def test_bad_input_is_named(rng):
  with pytest.raises(ValueError, match="softmax"):
    scores.inception_score(rng.normal(size=(10, 3)))
  with pytest.raises(ValueError, match="num_blocks"):
    scores.inception_score(np.full((5, 2), 0.5))
  with pytest.raises(ValueError, match="same d for both"):
    scores.frechet_distance(np.zeros((5, 2)), np.zeros((5, 3)))
  with pytest.raises(ValueError, match="num_neighbors"):
    scores.precision_and_recall(np.zeros((3, 2)), np.zeros((5, 2)))
