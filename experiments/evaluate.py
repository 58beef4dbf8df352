"""Scores of the generators of `experiments.images`: the table of figure 2.

  python -m experiments.evaluate --runs=runs/cifar10/dcgan/seed_0,...

draws 50 000 images from each generator, with labels as frequent as in the training set,
and prints two kinds of scores. The first use a ResNet that was trained on the real
training set: the inception score, and the Fréchet and kernel distances to real images.
The second is the paper's testing accuracy: how well a ResNet classifies real images
after it was trained on the generated images and their labels. It is compared with
ResNets that were trained on the real training set and on 500 images copied 100 times.
--inception_weights adds the scores of the Inception network that was trained on
ImageNet (`pip install -e '.[inception]'`), which the paper quotes.

Runs without labels have no testing accuracy. The ResNets are saved in --cache_dir: the
same command continues an evaluation that was interrupted. It writes summary.json and
pictures.png to --workdir.
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from experiments.pictures import (
  figure2,
  inception,
  resnet,
  saved_generators,
  scores,
  square_images,
  testing_accuracy,
)
from experiments.shared import (
  datasets,
  loading,
  plots,
  settings,
  summaries,
  workdirs,
)
from experiments.shared.settings import setting
from stein_jax import evaluation

_COLUMNS = {
  "dcgan": figure2.DCGAN,
  "steingan": figure2.STEIN_GAN,
  "steingan_no_kernel": figure2.NO_KERNEL,
  "steincd_gan": "SteinCD-GAN",
}
_NUM_DISTINCT = 500  # images of the paper's baseline, each of which is copied


@dataclasses.dataclass(frozen=True)
class Settings(loading.Folders, summaries.FromSummary, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.evaluate"
  files: ClassVar[tuple[str, ...]] = ("pictures.png",)

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/evaluate")
  runs: tuple[str, ...] = setting(
    (),
    "Folders of trained generators, WORKDIR/METHOD/seed_K, separated by commas.",
    keep_repetitions=True,
  )
  num_samples: int = setting(
    50_000, "The number of images drawn from each generator.", at_least=2000
  )
  resnet_steps: int = setting(
    64_000, "Training steps of a ResNet, with batches of 128 images.", at_least=1
  )
  resnet_depth: int = setting(20, "The number of layers of the ResNets, 6n + 2.")
  resnet_width: float = setting(1.0, "A factor on the ResNets' channels.", above=0)
  bfloat16: bool = setting(False, "Compute the ResNets in bfloat16.")
  inception_weights: str | None = setting(
    None,
    f"torch-fidelity's file {inception.WEIGHTS}, for the scores of the Inception "
    "network that was trained on ImageNet.",
  )

  def __post_init__(self) -> None:
    super().__post_init__()
    try:
      evaluation.ResNet(depth=self.resnet_depth)
    except ValueError as error:
      raise ValueError(f"--resnet_{error}") from error

  @property
  def recipe(self) -> resnet.Recipe:
    """How the ResNets are trained."""
    return resnet.Recipe(
      num_steps=self.resnet_steps,
      depth=self.resnet_depth,
      width=self.resnet_width,
      dtype="bfloat16" if self.bfloat16 else "float32",
    )


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  if not own.runs:
    settings.wrong_usage(
      "--runs: give folders that experiments.images wrote, WORKDIR/METHOD/seed_0."
    )
  trained = [saved_generators.load(Path(folder)) for folder in own.runs]
  name = _only({t.about["dataset"] for t in trained}, "data sets")
  _only({str(t.generator.size) for t in trained}, "sizes of images")
  columns = _columns(trained)
  workdirs.check(own)
  if own.inception_weights:
    try:
      inception.check_requirements(own.inception_weights)
    except (ImportError, OSError, ValueError) as error:
      sys.exit(f"--inception_weights: {error}")
  dataset = square_images.load_or_exit(name, own, size=trained[0].generator.size)
  print(f"Data: {dataset.source}", file=sys.stderr)
  workdir = workdirs.prepare(own)
  samples = {column: t.sample(own.num_samples) for column, t in columns.items()}
  about = {column: t.about for column, t in columns.items()}

  def write(results: dict[str, dict[str, float]]) -> dict[str, Any]:
    return summaries.write(own, {"dataset": name, "results": results, "runs": about})

  images, results = _scores(own, dataset, columns, samples)
  summary = write(results)
  if own.inception_weights:
    real = np.asarray(dataset.train)
    for column in images:
      results[column] |= inception.inception_scores(
        images[column],
        real,
        weights_path=own.inception_weights,
        progress=own.progress,
      )
    summary = write(results)
  grids = {column: drawn[:100] / 255 for column, drawn in samples.items()}
  plots.image_grids(workdir / "pictures.png", grids, title=name)
  print(markdown(summary))
  print(f"\nImages and summary.json: {workdir}")


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json in Markdown."""
  results, values = summary["results"], summary["flags"]
  steps = ", ".join(
    f"{column} {about['step']}" for column, about in summary["runs"].items()
  )
  text = figure2.table(results, paper=summary["dataset"] == "cifar10")
  text += f"\n\nTraining steps: {steps}."
  if any("testing_accuracy" in found for found in results.values()):
    text += (
      f" Testing accuracy, and our classifier, by {values['resnet_steps']} steps of a "
      f"ResNet-{values['resnet_depth']} of width {values['resnet_width']}."
    )
  return text


def _columns(
  trained: list[saved_generators.Trained],
) -> dict[str, saved_generators.Trained]:
  """The table's columns. A second run of a method has its seed in its column's name."""
  columns: dict[str, saved_generators.Trained] = {}
  for t in trained:
    column = _COLUMNS[t.about["method"]]
    if column in columns:
      column = f"{column}, seed {t.about['seed']}"
    if column in columns:
      settings.wrong_usage(f"--runs holds two runs of {column}.")
    columns[column] = t
  return columns


def _only(values: set[str], what: str) -> str:
  """The one value; a message ends the program if there are several."""
  if len(values) > 1:
    settings.wrong_usage(
      f"--runs were trained on several {what}: {', '.join(sorted(values))}."
    )
  return values.pop()


def _scores(
  own: Settings,
  dataset: datasets.Dataset,
  columns: Mapping[str, saved_generators.Trained],
  samples: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
  """The images of every column, and their scores: column -> score -> value.

  Without labels there is no classifier, and the only score is the mean distance.
  """
  if dataset.train_labels is None:
    return dict(samples), {
      column: {
        "mean_pairwise_distance": evaluation.mean_pairwise_distance(
          drawn[:1000] / 255
        ).value
      }
      for column, drawn in samples.items()
    }
  options = {
    "recipe": own.recipe,
    "cache_dir": own.cache_dir,
    "progress": own.progress,
  }
  real_images, real_labels = resnet.real_training_set(dataset)
  duplicates = testing_accuracy.duplicates(
    real_images,
    real_labels,
    num_distinct=_NUM_DISTINCT,
    copies=own.num_samples // _NUM_DISTINCT,
  )
  reference = resnet.reference_resnet(dataset, **options)
  features = reference.features(dataset.test)
  images = {figure2.REAL: real_images, figure2.DUPLICATE: duplicates[0], **samples}
  results = {
    column: scores.scores_in_view_of(reference, images[column], features)
    for column in (*samples, figure2.REAL, figure2.DUPLICATE)
  }
  training_sets = {figure2.DUPLICATE: duplicates} | {
    column: (samples[column], t.labels(len(samples[column])))
    for column, t in columns.items()
    if t.about["label_counts"] is not None
  }
  accuracies = testing_accuracy.accuracy_by_training_set(
    training_sets,
    (dataset.test, dataset.test_labels),
    num_classes=int(real_labels.max()) + 1,
    **options,
  )
  accuracies[figure2.REAL] = reference.test_accuracy
  for column, value in accuracies.items():
    results[column]["testing_accuracy"] = value
  return images, json.loads(json.dumps(results))  # plain numbers, as in summary.json


if __name__ == "__main__":
  settings.run(main, Settings)
