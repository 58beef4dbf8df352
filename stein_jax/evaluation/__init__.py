"""Evaluation of models: likelihoods, scores of samples, and classifiers for them."""

from stein_jax.evaluation.classifier import DigitClassifier
from stein_jax.evaluation.likelihood import (
  MeanLogLikelihood,
  gaussian_baseline,
  mean_log_likelihood,
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
)

__all__ = [
  "DigitClassifier",
  "Estimate",
  "MeanLogLikelihood",
  "ResNet",
  "frechet_distance",
  "gaussian_baseline",
  "inception_score",
  "kernel_inception_distance",
  "label_entropy",
  "mean_log_likelihood",
  "mean_pairwise_distance",
  "precision_and_recall",
]
