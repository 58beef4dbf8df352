"""Judging a model by functions of it and samples from it."""

from stein_jax.evaluation.likelihood import (
  MeanLogLikelihood,
  gaussian_baseline,
  mean_log_likelihood,
)

__all__ = ["MeanLogLikelihood", "gaussian_baseline", "mean_log_likelihood"]
