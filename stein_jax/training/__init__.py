"""The training loop: compiled chunks of steps, metrics, checkpoints and data feeds."""

from stein_jax.training.chunks import TrainingDiverged
from stein_jax.training.feeds import Stream, unit_interval
from stein_jax.training.folder import WorkdirInUse
from stein_jax.training.loop import EvaluateFn, Fit, ObserveFn, fit
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
  "WorkdirInUse",
]
