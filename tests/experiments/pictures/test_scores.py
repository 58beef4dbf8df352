"""Scores of images on data whose scores are known."""

import numpy as np
import pytest

from experiments.pictures import scores
from experiments.shared import scores as shared_scores
from stein_jax import evaluation


def test_scores_equal_those_of_evaluation():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (60, 4, 4, 3), np.uint8)
  p = rng.dirichlet(np.ones(5), size=60)
  features, real = rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + 1
  found = scores.scores(images, probabilities=p, features=features, real_features=real)
  expected = {
    "inception_score": evaluation.inception_score(p),
    "label_entropy": evaluation.label_entropy(p),
    "frechet_distance": evaluation.frechet_distance(features, real),
    "kernel_inception_distance": evaluation.kernel_inception_distance(features, real),
    "mean_pairwise_distance": evaluation.mean_pairwise_distance(images / 255),
  }
  for name, estimate in expected.items():
    assert found[name] == pytest.approx(estimate.value, rel=1e-5)
    assert found[f"{name}_standard_error"] > 0
  precision, recall = evaluation.precision_and_recall(real, features)
  assert (found["precision"], found["recall"]) == (precision, recall)


def test_the_order_of_the_images_does_not_matter(monkeypatch):
  for module in (scores, shared_scores):
    monkeypatch.setattr(module, "COMPARED", 300)
  rng = np.random.default_rng(0)
  labels = np.arange(1000) // 100
  features = np.eye(10)[labels] + 0.01 * rng.normal(size=(1000, 10))
  images = np.full((1000, 2, 2, 3), 25, np.uint8) * labels[:, None, None, None]
  images = images.astype(np.uint8)
  p = np.eye(10)[labels]
  for order in (np.arange(1000), np.arange(1000).reshape(10, 100).T.reshape(-1)):
    found = scores.scores(
      images[order], probabilities=p[order], features=features[order],
      real_features=np.eye(10)[labels] + 0.01 * rng.normal(size=(1000, 10)),
    )  # fmt: skip
    # Ten classes, equally frequent, give 10. Blocks of one class each would give a
    # large standard error.
    assert found["inception_score"] == pytest.approx(10)
    assert found["inception_score_standard_error"] < 0.3
    # The first rows of sorted images would be of three classes only.
    assert found["recall"] > 0.7
    assert abs(found["kernel_inception_distance"]) < 0.02
    assert found["mean_pairwise_distance"] > 0.5


def test_the_frechet_distance_uses_equal_numbers_of_both_kinds():
  rng = np.random.default_rng(0)
  features, real = rng.normal(size=(2000, 30)), rng.normal(size=(100, 30))
  images = np.zeros((2000, 1, 1, 3), np.uint8)
  images[::2] = 255
  found = scores.scores(
    images, probabilities=np.full((2000, 2), 0.5), features=features,
    real_features=real,
  )["frechet_distance"]  # fmt: skip
  equal, unequal = (
    evaluation.frechet_distance(features[:n], real).value for n in (100, 2000)
  )
  assert abs(found - equal) < abs(found - unequal)


def test_wrong_images_and_unequal_numbers_are_errors():
  arrays = {
    "probabilities": np.full((20, 2), 0.5),
    "features": np.zeros((20, 2)),
    "real_features": np.zeros((20, 2)),
  }
  with pytest.raises(ValueError, match="uint8"):
    scores.scores(np.zeros((20, 2, 2, 3)), **arrays)
  with pytest.raises(ValueError, match="19 images need the same number of rows"):
    scores.scores(np.zeros((19, 2, 2, 3), np.uint8), **arrays)
