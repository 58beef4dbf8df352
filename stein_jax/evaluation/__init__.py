"""Evaluation of models: likelihoods, scores of samples, and classifiers for them."""

from stein_jax.evaluation.classifier import DigitClassifier
from stein_jax.evaluation.detection import (
  TwoSampleTest,
  area_under_roc,
  classifier_two_sample_test,
  expected_calibration_error,
)
from stein_jax.evaluation.likelihood import (
  MeanLogLikelihood,
  gaussian_baseline,
  mean_log_likelihood,
)
from stein_jax.evaluation.partition import (
  LogPartition,
  annealed_log_partition,
  importance_log_partition,
  log_partition_on_grid,
)
from stein_jax.evaluation.resnet import ResNet
from stein_jax.evaluation.samples import (
  Estimate,
  frechet_distance,
  inception_score,
  kernel_inception_distance,
  label_entropy,
  mean_pairwise_distance,
  precision_and_recall,
  sliced_wasserstein_distance,
)
from stein_jax.evaluation.truth import (
  Comparison,
  broad_gaussian,
  compare_with_truth,
)

__all__ = [
  "Comparison",
  "DigitClassifier",
  "Estimate",
  "LogPartition",
  "MeanLogLikelihood",
  "ResNet",
  "TwoSampleTest",
  "annealed_log_partition",
  "area_under_roc",
  "broad_gaussian",
  "classifier_two_sample_test",
  "compare_with_truth",
  "expected_calibration_error",
  "frechet_distance",
  "gaussian_baseline",
  "importance_log_partition",
  "inception_score",
  "kernel_inception_distance",
  "label_entropy",
  "log_partition_on_grid",
  "mean_log_likelihood",
  "mean_pairwise_distance",
  "precision_and_recall",
  "sliced_wasserstein_distance",
]
