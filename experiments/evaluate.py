"""Judges generators of `experiments.images`: the table of figure 2.

  python -m experiments.evaluate --runs=runs/cifar10/dcgan/seed_0,...

draws 50 000 pictures from each, with labels by the training set's counts, and prints
their inception score, Fréchet and kernel distances in the view of our own classifier, a
ResNet trained on the real training set, and the paper's second score: how well a ResNet
that has learned from the pictures and their labels classifies real ones, beside one
that has learned from the real training set and one from 500 pictures copied 100 times.
--inception_weights adds the scores of the ImageNet Inception network
(`pip install -e '.[inception]'`), the ones that the paper quotes.

Of runs without labels there is no second score. The ResNets are kept in --cache_dir: a
run that was stopped does not repeat those it finished. In --workdir it leaves
summary.json and pictures.png.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import app, flags

from experiments import inception
from experiments.pictures import image_generators, image_scores
from experiments.shared import (
  common,
  data,
  plots,
)
from stein_jax import evaluation

_COLUMNS = {
  "dcgan": image_scores.DCGAN,
  "steingan": image_scores.STEIN_GAN,
  "steingan_no_kernel": image_scores.NO_KERNEL,
  "steincd_gan": "SteinCD-GAN",
}


def main(argv: list[str]) -> None:
  if common.printed_from_summary(argv, markdown):
    return
  values = flags.FLAGS
  if not values.runs:
    sys.exit(
      "--runs: name folders that experiments.images left, WORKDIR/METHOD/seed_0."
    )
  trained = [image_generators.load(Path(folder)) for folder in values.runs]
  name = _only({t.about["dataset"] for t in trained}, "data sets")
  _only({str(t.generator.size) for t in trained}, "sizes of pictures")
  common.claim_workdir(before_work=True)
  if values.inception_weights:
    try:
      inception.check_requirements(values.inception_weights)
    except (ImportError, OSError, ValueError) as error:
      sys.exit(f"--inception_weights: {error}")
  dataset = common.load_pictures(name, size=trained[0].generator.size)
  print(f"Data: {dataset.source}", file=sys.stderr)
  workdir = common.claim_workdir(before_work=False)
  recipe = image_scores.Recipe(
    num_steps=values.resnet_steps,
    depth=values.resnet_depth,
    width=values.resnet_width,
    dtype="bfloat16" if values.bfloat16 else "float32",
  )
  columns = _columns(trained)
  pictures = {column: t.pictures(values.num_samples) for column, t in columns.items()}
  about = {column: t.about for column, t in columns.items()}

  def written(results: dict[str, dict[str, float]]) -> dict[str, Any]:
    return common.write_summary(
      workdir,
      "experiments.evaluate",
      {"dataset": name, "results": results, "runs": about},
    )

  sets, results = _scores(dataset, columns, pictures, recipe)
  summary = written(results)
  if values.inception_weights:
    real = np.asarray(dataset.train)
    for column, images in sets.items():
      results[column] |= inception.inception_scores(
        images,
        real,
        weights_path=values.inception_weights,
        progress=values.progress,
      )
    summary = written(results)
  grids = {column: images[:100] / 255 for column, images in pictures.items()}
  plots.image_grids(workdir / "pictures.png", grids, title=name)
  print(markdown(summary))
  print(f"\nPictures and summary.json: {workdir}")


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  results, values = summary["results"], summary["flags"]
  steps = ", ".join(
    f"{column} {about['step']}" for column, about in summary["runs"].items()
  )
  text = image_scores.figure2_table(results, paper=summary["dataset"] == "cifar10")
  text += f"\n\nTraining steps: {steps}."
  if any("testing_accuracy" in found for found in results.values()):
    text += (
      f" Testing accuracy, and our classifier, by {values['resnet_steps']} steps of a "
      f"ResNet-{values['resnet_depth']} of width {values['resnet_width']}."
    )
  return text


def _columns(
  trained: list[image_generators.Trained],
) -> dict[str, image_generators.Trained]:
  """The table's columns; of several seeds of a method all but the first are named."""
  found: dict[str, image_generators.Trained] = {}
  for t in trained:
    column = _COLUMNS[t.about["method"]]
    if column in found:
      column = f"{column}, seed {t.about['seed']}"
    if column in found:
      sys.exit(f"--runs holds two runs of {column}.")
    found[column] = t
  return found


def _only(found: set[str], what: str) -> str:
  if len(found) > 1:
    sys.exit(f"--runs learned from several {what}: {', '.join(sorted(found))}.")
  return found.pop()


def _scores(
  dataset: data.Dataset,
  columns: Mapping[str, image_generators.Trained],
  pictures: Mapping[str, np.ndarray],
  recipe: image_scores.Recipe,
) -> tuple[dict[str, np.ndarray], dict[str, dict[str, float]]]:
  """The pictures of every column; and their scores in the view of our own classifier.

  Without labels there is no classifier, only how far pictures are from each other.
  """
  options = {"cache_dir": flags.FLAGS.cache_dir, "progress": flags.FLAGS.progress}
  results: dict[str, dict[str, float]] = {column: {} for column in columns}
  if dataset.train_labels is None:
    for column, images in pictures.items():
      distance = evaluation.mean_pairwise_distance(images[:1000] / 255)
      results[column]["mean_pairwise_distance"] = distance.value
    return dict(pictures), results
  real = image_scores.real_training_set(dataset)
  copies = flags.FLAGS.num_samples // 500 or 1
  twice = image_scores.duplicates(*real, num_distinct=500, copies=copies)
  judge = image_scores.judge(dataset, recipe=recipe, **options)
  features = judge.features(dataset.test)
  sets = {image_scores.REAL: real[0], image_scores.DUPLICATE: twice[0], **pictures}
  for column, images in sets.items():
    results.setdefault(column, {})
    results[column] |= image_scores.scores_of(images, judge, features)
  training_sets = {image_scores.DUPLICATE: twice} | {
    column: (pictures[column], t.labels(len(pictures[column])))
    for column, t in columns.items()
    if t.about["label_counts"] is not None
  }
  accuracies = image_scores.accuracy_by_training_set(
    training_sets,
    (dataset.test, dataset.test_labels),
    recipe=recipe,
    num_classes=int(real[1].max()) + 1,
    **options,
  )
  accuracies[image_scores.REAL] = judge.test_accuracy
  for column, value in accuracies.items():
    results[column]["testing_accuracy"] = value
  return sets, json.loads(json.dumps(results))  # plain numbers, as in the file


def _define_flags() -> None:
  flags.DEFINE_list(
    "runs", [], "Folders of trained generators, WORKDIR/METHOD/seed_K, with commas."
  )
  common.define_place_flags()
  flags.DEFINE_integer(
    "num_samples", 50_000, "Pictures of each generator.", lower_bound=2000
  )
  flags.DEFINE_integer(
    "resnet_steps",
    64_000,
    "Training steps of a ResNet, of 128 pictures.",
    lower_bound=1,
  )
  flags.DEFINE_integer("resnet_depth", 20, "6n + 2 layers of the ResNet.")
  flags.DEFINE_float("resnet_width", 1.0, "A factor on its channels.")
  flags.DEFINE_bool("bfloat16", False, "Compute the ResNet in bfloat16.")
  flags.DEFINE_string(
    "inception_weights",
    None,
    f"torch-fidelity's {inception.WEIGHTS}, for scores of the ImageNet Inception "
    "network.",
  )
  common.define_run_flags("runs/evaluate")


if __name__ == "__main__":
  _define_flags()
  app.run(main)
