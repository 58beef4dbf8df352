"""Fits the classifier that the scores of samples are based on.

  python -m experiments.classifier --dataset=mnist

fits `stein_jax.evaluation.DigitClassifier` to the training and validation images. It
prints its accuracy on the test images, and their inception score: samples as good as
real images would have the same. On one CPU core MNIST takes two minutes (99.3 %) and
mnist5k half a minute (97.7 %).

The fit is saved in --cache_dir, in a file for each data set, --seed and --steps. Later
this command and all others load it from there; --refit fits it again.
"""

import dataclasses
import sys
from typing import ClassVar

from experiments.shared import classifiers, loading, settings, workdirs
from experiments.shared.classifiers import BATCH_SIZE, NUM_EPOCHS, NUM_STEPS
from experiments.shared.settings import setting
from stein_jax.evaluation import inception_score


@dataclasses.dataclass(frozen=True)
class Settings(loading.Data):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.classifier"

  seed: int = setting(
    0,
    "Seed of the start, the batches and the shifts.",
    at_least=0,
    at_most=settings.MAX_SEED,
  )
  steps: int | None = setting(
    None,
    f"Training steps, of {BATCH_SIZE} images each; by default {NUM_STEPS}, or "
    f"{NUM_EPOCHS} epochs where that is less.",
    at_least=1,
  )
  refit: bool = setting(False, "Fit again, even if it was fitted before.")
  progress: bool = settings.like(workdirs.Run, "progress", help="Show a progress bar.")


def main(own: Settings) -> None:
  dataset = loading.load(own, BATCH_SIZE)
  try:
    classifier = classifiers.load_or_fit(
      dataset,
      cache_dir=own.cache_dir,
      seed=own.seed,
      num_steps=own.steps,
      refit=own.refit,
      progress=own.progress,
    )
  except ValueError as error:  # no labels
    sys.exit(str(error))
  score = inception_score(classifier.probabilities(dataset.test))
  print(f"Test accuracy on {dataset.name}: {classifier.test_accuracy:.2%}")
  print(
    f"Inception score of the {len(dataset.test)} test images: "
    f"{score.value:.3f} ± {score.standard_error:.3f}"
  )
  print(f"Saved in {classifier.path}")


if __name__ == "__main__":
  settings.run(main, Settings)
