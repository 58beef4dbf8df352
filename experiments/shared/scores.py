"""Scores of samples in a classifier's view of them."""

import numpy as np

from stein_jax import evaluation

COMPARED = 2000
"""Samples of the scores that look at all pairs."""


def compared(
  pixels: np.ndarray,
  probabilities: np.ndarray,
  features: np.ndarray,
  real_features: np.ndarray,
) -> dict[str, float]:
  """`scores`, of pictures in [0, 1] and rows that are in no order of their own."""
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
