"""The training loop: compiled chunks of steps, metrics, checkpoints and guards."""

from stein_jax.training.loop import (
  EvaluateFn,
  Fit,
  ObserveFn,
  Stream,
  TrainingDiverged,
  fit,
  unit_interval,
)
from stein_jax.training.records import AnotherRun

__all__ = [
  "fit",
  "Fit",
  "Stream",
  "EvaluateFn",
  "ObserveFn",
  "unit_interval",
  "TrainingDiverged",
  "AnotherRun",
]
