"""The generators of experiments.mnist_rbm: their samples, scores and pictures.

The scores of a state of `stein_gan` are a digit classifier's view of 50 000 samples,
their distances from each other and from the test digits, and the kernelised Stein
discrepancy between them and the energy, next to that of exact samples.
"""

import functools
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.tree_util import Partial

from experiments.rbm import statistics
from experiments.rbm.generator_methods import NOISE_FN
from experiments.rbm.problem import Problem
from experiments.rbm.runs import Run
from experiments.shared import classifiers, plots, scores, settings, summaries
from stein_jax import evaluation, generators, kernels, ksd_squared, parallel
from stein_jax.algorithms.stein_gan import SteinGANState
from stein_jax.energies import GaussianBernoulliRBM
from stein_jax.training.files import open_atomically

PICTURED = 100
"""The number of samples that are saved for pictures at every evaluation."""


class Evaluator(NamedTuple):
  """What samples are compared with.

  Attributes:
    rbm: the energy.
    generator: the generator's network.
    classifier: of the data's own classes.
    test: the test images, uint8 `[n, 28, 28, 1]`.
    features: the classifier's features of them, `[n, 128]`.
  """

  rbm: GaussianBernoulliRBM
  generator: nn.Module
  classifier: classifiers.Classifier
  test: np.ndarray
  features: np.ndarray

  def while_training(self, state: SteinGANState) -> Mapping[str, float]:
    """A few scores of 1 000 samples, for the rows of the history."""
    images = sample(self.generator, state, 1000)
    probabilities = self.classifier.probabilities(images)
    once = {"num_blocks": None}  # no standard errors
    return {
      "inception_score": evaluation.inception_score(probabilities, **once).value,
      "mean_pairwise_distance": evaluation.mean_pairwise_distance(images, **once).value,
      **_discrepancies(self.rbm, state.params["energy"], images),
    }

  def final_scores(self, state: SteinGANState, num_samples: int) -> dict[str, float]:
    """All scores of a finished run, with standard errors where there are some."""
    images = sample(self.generator, state, num_samples)
    return self._of_images(images, self.features) | _discrepancies(
      self.rbm, state.params["energy"], images[: scores.COMPARED]
    )

  def of_test_images(self) -> dict[str, float]:
    """The scores of one half of the test set, compared with the other."""
    images = self.test[::2].astype(np.float32) / 255
    return self._of_images(images, self.features[1::2])

  def _of_images(self, images: np.ndarray, real: np.ndarray) -> dict[str, float]:
    """Scores that need no energy, of pictures [n, 28, 28, 1] in [0, 1]."""
    probabilities = self.classifier.probabilities(images)
    features = self.classifier.features(images[: len(self.test)])
    return scores.compared(images, probabilities, features, real)


def evaluator_of(
  problem: Problem,
  generator: nn.Module,
  *,
  cache_dir: str | None,
  num_steps: int | None,
  progress: bool,
) -> Evaluator:
  """The test set, and a classifier of its classes, which is fitted once and kept.

  The program ends with a message if the data set has other images, or no labels.

  Args:
    problem: the data and the energy.
    generator: the generator's network.
    cache_dir, num_steps, progress: as in `classifiers.load_or_fit`.
  """
  dataset = problem.dataset
  if dataset.test.shape[1:] != (28, 28, 1):
    settings.wrong_usage(
      f"The generator makes pictures of 28×28 grey pixels; {dataset.name} has "
      f"{'×'.join(map(str, dataset.test.shape[1:]))}."
    )
  try:
    with parallel.first_process_first("classifier"):
      fitted = classifiers.load_or_fit(
        dataset, cache_dir=cache_dir, num_steps=num_steps, progress=progress
      )
  except ValueError as error:
    sys.exit(f"--dataset={dataset.name}: {error}")
  print(
    f"Classifier: {100 * fitted.test_accuracy:.2f} % of the test set are right.",
    file=sys.stderr,
  )
  features = fitted.features(dataset.test)
  return Evaluator(problem.rbm, generator, fitted, dataset.test, features)


def sample(generator: nn.Module, state: SteinGANState, num_samples: int) -> np.ndarray:
  """Samples [num_samples, 28, 28, 1], from the same noise at every call."""
  keys = jax.random.split(jax.random.key(0), -(-num_samples // 500))
  params, stats = state.params["generator"], state.generator_stats
  batches = [np.asarray(_sample(generator, params, stats, key)) for key in keys]
  return np.concatenate(batches)[:num_samples]


@functools.partial(jax.jit, static_argnames="generator")
def _sample(generator: nn.Module, params: Any, stats: Any, key: jax.Array) -> jax.Array:
  noise = NOISE_FN(key, 500)
  return generators.sample(generator, params, stats, noise)


def _discrepancies(
  rbm: GaussianBernoulliRBM, theta: Any, images: np.ndarray
) -> dict[str, float]:
  """The unbiased KSD² between samples and energy, and that of exact samples, near 0.

  The RBF kernel has the exact samples' median bandwidth. The median of the generator's
  own samples would shrink if the generator collapses.
  """
  exact = rbm.sample(jax.random.key(1), theta, len(images))
  kernel = kernels.rbf(kernels.median_bandwidth(exact))

  def discrepancy(x: jax.Array) -> float:
    scores = jax.vmap(Partial(rbm.score, theta))(x)
    return float(ksd_squared(x, scores, kernel, statistic="U"))

  return {
    "ksd_squared": discrepancy(jnp.asarray(images).reshape(exact.shape)),
    "ksd_squared_of_exact_samples": discrepancy(exact),
  }


def keeping_samples(
  generator: nn.Module, folder: Path
) -> Callable[[int, SteinGANState], None]:
  """`observe` of `training.fit`, which saves samples of always the same noise."""

  def observe(step: int, state: SteinGANState) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    images = sample(generator, state, PICTURED)
    with open_atomically(folder / f"{step:08d}.npy") as file:
      np.save(file, np.round(255 * images).astype(np.uint8))

  return observe


def finished_scores(
  evaluator: Evaluator, state: SteinGANState, step: int, num_samples: int, record: Path
) -> dict[str, float]:
  """The scores of a finished run, read from `record` if they were saved before."""
  asked = {
    "step": step,
    "num_samples": num_samples,
    "classifier": evaluator.classifier.path.name,
  }
  try:
    known = json.loads(record.read_text())
  except (OSError, ValueError):  # not there yet, or damaged: it is computed again
    known = {}
  if {name: known.get(name) for name in asked} == asked:
    return known["scores"]
  found = evaluator.final_scores(state, num_samples)
  summaries.write_json(record, {**asked, "scores": found})
  return found


def draw_training(path: Path, folder: Path, *, title: str, last: int) -> None:
  """Ten samples at each of up to eight steps of a run; all rows have the same noise."""
  kept = (int(file.stem) for file in folder.glob("*.npy"))
  steps = sorted(step for step in kept if step <= last)
  if not steps:
    return  # the folder was removed
  rows = {
    f"after {step} steps": _load(folder, step)[:10]
    for step in plots.mostly_early(steps, 8)
  }
  plots.image_rows(path, rows, title=title, limits=(0, 1))


def draw_samples(
  path: Path, folders: Mapping[str, Path], summaries: Mapping[str, Any], *, title: str
) -> None:
  """The last seed's last samples of several runs side by side, with their scores.

  Args:
    path: the PNG to write.
    folders: label -> the run's `keeping_samples`.
    summaries: label -> the entry in summary.json.
    title: the picture's title.
  """
  grids = {}
  for label, folder in folders.items():
    scores, final = summaries[label]["samples"], summaries[label]["final"]["test"]
    caption = (
      f"{label}\ninception score {scores['inception_score']['values'][-1]:.2f}, "
      f"mean distance {scores['mean_pairwise_distance']['values'][-1]:.1f}\n"
      f"test {final['values'][-1]:.1f} nats"
    )
    last = summaries[label]["curve"]["steps"][-1]
    if (folder / f"{last:08d}.npy").exists():
      grids[caption] = _load(folder, last)
  if grids:
    plots.image_grids(path, grids, title=title)


def _load(folder: Path, step: int) -> np.ndarray:
  return np.load(folder / f"{step:08d}.npy") / 255


def draw_mix(
  path: Path,
  runs: Sequence[Run],
  summaries: Mapping[str, Any],
  *,
  title: str,
) -> None:
  """Figure 1(b), where there are runs with several α."""
  drawn = [
    run
    for run in runs
    if run.mix is not None and "no_kernel" not in run.name
    if "samples" in summaries.get(run.label, {})
  ]
  by_alpha = {run.mix: summaries[run.label] for run in drawn}
  if len(by_alpha) < 2 or len(by_alpha) < len(drawn):  # or an α has several mix scales
    return
  alphas = sorted(by_alpha)
  entries = [by_alpha[alpha] for alpha in alphas]
  plots.mix_trade_off(
    path,
    alphas,
    inception_scores=[
      entry["samples"]["inception_score"]["values"] for entry in entries
    ],
    log_likelihoods=[entry["final"]["test"]["values"] for entry in entries],
    title=title,
  )


def summarize(seeds: Sequence[Mapping[str, float]]) -> dict[str, Any]:
  """score -> mean, sd and values over seeds."""
  return {
    name: statistics.over_seeds([scores_of_seed[name] for scores_of_seed in seeds])
    for name in seeds[0]
  }
