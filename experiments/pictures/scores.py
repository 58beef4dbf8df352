"""Scores of generated images in the view of a classifier.

The scores need the classifier's probabilities and features of the images, and its
features of real images.
"""

import numpy as np

from experiments.shared.classifiers import Classifier
from experiments.shared.scores import COMPARED, compared


def scores(
  images: np.ndarray,
  *,
  probabilities: np.ndarray,
  features: np.ndarray,
  real_features: np.ndarray,
) -> dict[str, float]:
  """Scores of the quality and the diversity of images, from a classifier's outputs.

  The Fréchet distance is biased by the number of images, so it uses equally many of
  both kinds. Kernel distance, precision, recall and the mean distance between images
  compare all pairs of 2000 images. Pixels are scaled to [0, 1] for the mean distance.
  Subsets are random, and the same in every call.

  Args:
    images: `[n, h, w, c]`, uint8.
    probabilities: the classifier's p(y | x) of the images, `[n, classes]`.
    features: the classifier's features of the images, `[n, d]`.
    real_features: the classifier's features of real images that the model was not
      trained on, `[n', d]`.

  Returns:
    inception_score, label_entropy, mean_pairwise_distance, frechet_distance and
    kernel_inception_distance; the standard error of each, under the name with the
    suffix _standard_error; precision and recall.

  Raises:
    ValueError: the images are not uint8, or the numbers of rows differ.
  """
  if images.dtype != np.uint8:
    raise ValueError(f"images must be uint8, got {images.dtype}.")
  if not len(images) == len(probabilities) == len(features):
    raise ValueError(
      f"{len(images)} images need the same number of rows of probabilities and "
      f"features, got {len(probabilities)} and {len(features)}."
    )
  # If the images are sorted by class, or if the classes alternate, the first rows and
  # the jackknife's blocks (every tenth row) are not representative: shuffle them.
  rng = np.random.default_rng(0)
  order = rng.permutation(len(images))
  images, probabilities = images[order[:COMPARED]], probabilities[order]
  features = features[order]
  real = real_features[rng.permutation(len(real_features))]
  pixels = images.astype(np.float32) / 255
  return compared(pixels, probabilities, features, real)


def scores_in_view_of(
  classifier: Classifier, images: np.ndarray, real_features: np.ndarray
) -> dict[str, float]:
  """`scores`, with the outputs of this classifier.

  Args:
    classifier: the classifier.
    images: `[n, h, w, c]`, uint8.
    real_features: the classifier's features of real images that the model was not
      trained on. An argument, so that several calls can share them.
  """
  return scores(
    images,
    probabilities=classifier.probabilities(images),
    features=classifier.features(images),
    real_features=real_features,
  )
