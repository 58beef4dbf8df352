"""Scores of samples that are based on a classifier."""

import numpy as np

from stein_jax import evaluation

COMPARED = 2000
"""The number of samples that the scores over all pairs use."""


def compared(
  pixels: np.ndarray,
  probabilities: np.ndarray,
  features: np.ndarray,
  real_features: np.ndarray,
) -> dict[str, float]:
  """How good and how diverse samples are, from a classifier's view of them.

  All rows must be in random order: the distances over pairs use the first `COMPARED`,
  the Fréchet distance the same number of samples and of real images, since it is biased
  by their number.

  Args:
    pixels: the samples, `[n, h, w, c]` in [0, 1].
    probabilities: the classifier's p(y | x) of them, `[n, classes]`.
    features: the classifier's features of them, `[n', d]`.
    real_features: its features of real images that no model has seen, `[n'', d]`.

  Returns:
    inception_score, label_entropy, mean_pairwise_distance, frechet_distance and
    kernel_inception_distance, each also with _standard_error; precision and recall.
  """
  equal = min(len(features), len(real_features))
  few, few_real = features[:COMPARED], real_features[:COMPARED]
  estimates = {
    "inception_score": evaluation.inception_score(probabilities),
    "label_entropy": evaluation.label_entropy(probabilities),
    "mean_pairwise_distance": evaluation.mean_pairwise_distance(pixels[:COMPARED]),
    "frechet_distance": evaluation.frechet_distance(
      features[:equal], real_features[:equal]
    ),
    "kernel_inception_distance": evaluation.kernel_inception_distance(few, few_real),
  }
  precision, recall = evaluation.precision_and_recall(few_real, few)
  return (
    {name: estimate.value for name, estimate in estimates.items()}
    | {f"{name}_standard_error": e.standard_error for name, e in estimates.items()}
    | {"precision": precision, "recall": recall}
  )
