"""Trains SteinGAN and DCGAN on images: section 5.2, figures 2 to 4.

With narrow networks, half an hour on one CPU core (CIFAR-10 must be prepared):

  python -m experiments.images --flagfile=experiments/flags/images_small.flags

With the networks and settings of the paper, on a GPU:

  python -m experiments.images --flagfile=experiments/flags/cifar10.flags
  python -m experiments.images --flagfile=experiments/flags/celeb_a.flags
  python -m experiments.images --flagfile=experiments/flags/lsun.flags

A flag after the flagfile overrides it. The same command continues a run that was
interrupted; with more methods, seeds or steps it extends the run. It writes to
--workdir: samples.png, training.png, reconstructions.png, summary.json and flags.txt,
which is itself a flagfile; and for every METHOD/seed_K the samples and reconstructions
during training, metrics.jsonl, checkpoints, and the generator, which
experiments.evaluate and experiments.latent_walk load.
"""

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments.pictures import (
  models,
  results,
  saved_generators,
  square_images,
  streams,
)
from experiments.pictures.model_settings import ModelSettings
from experiments.pictures.results import markdown
from experiments.shared import (
  datasets,
  devices,
  loading,
  logs,
  settings,
  summaries,
  workdirs,
)
from experiments.shared.settings import setting
from stein_jax import parallel, training
from stein_jax.training.records import AnotherRun

_MAX_IN_MEMORY = 2**31  # bytes of images; more are streamed
_NUM_HELD_OUT = 256


@dataclasses.dataclass(frozen=True)
class Settings(
  ModelSettings,
  loading.Folders,
  devices.Devices,
  summaries.FromSummary,
  workdirs.Trains,
):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.images"
  files: ClassVar[tuple[str, ...]] = (
    "samples.png",
    "training.png",
    "reconstructions.png",
    *(f"{method}/seed_*" for method in models.METHODS),
  )

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/images")
  method: tuple[str, ...] = setting(
    ("steingan", "dcgan"),
    "The methods to train, separated by commas.",
    choices=tuple(models.METHODS),
    may_grow=True,
  )
  dataset: str = setting(
    "cifar10",
    "cifar10, celeb_a or lsun/bedroom (or another category). Images of celeb_a and "
    "lsun are cropped to squares and resized; lsun may also be read from its lmdb, or "
    "from a folder of images, in --data_dir. mnist5k, the embedded digits, get a "
    "border: 32×32 in colour.",
  )
  size: int | None = setting(None, "Resize images to this side in pixels, 32 or 64.")
  conditional: bool = setting(
    False, "Learn images together with their labels, by the joint energy (25)."
  )
  stream: bool = setting(
    False,
    "Read images from disk in every step. Images of more than 2 GiB are always "
    "streamed.",
  )
  steps: int = setting(50_000, "Training steps.", at_least=1, may_grow=True)
  batch_size: int = setting(100, "m, images in each step.", at_least=2)
  seeds: tuple[int, ...] = setting(
    (0,),
    "Seeds of the initial parameters, the batches and the noise.",
    at_least=0,
    at_most=settings.MAX_SEED,
    may_grow=True,
  )
  eval_every: int = setting(
    1000, "Steps between evaluations: samples and checkpoints.", at_least=1
  )
  log_every: int = setting(100, "Steps between rows of metrics.jsonl.", at_least=1)

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.size not in (None, *models.LAYERS):
      sizes = ", ".join(map(str, models.LAYERS))
      raise ValueError(f"--size must be one of {sizes}, got {self.size}.")
    if self.bfloat16 and "steincd_gan" in self.method:
      raise ValueError(
        "steincd_gan needs small differences of energies, for which bfloat16 is not "
        "precise enough: leave --bfloat16 out."
      )


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  logs.quiet_checkpoints()
  mesh = devices.join(own)
  devices.check_divides(mesh, own.batch_size)
  workdirs.check(own)
  dataset = load(own)
  workdir = workdirs.prepare(own)
  runs: dict[str, list[dict[str, Any]]] = {method: [] for method in own.method}
  failed = False
  for method in own.method:
    for seed in own.seeds:
      folder = workdir / method / f"seed_{seed}"
      label = f"{models.METHODS[method]}, seed {seed}"
      try:
        fit = train(own, dataset, method, seed, folder, label, mesh)
      except training.TrainingDiverged as error:
        print(f"{label}: {error}", file=sys.stderr)
        runs[method].append(results.diverged_run(seed, error))
        failed = True
        continue
      except AnotherRun as error:  # its data has another fingerprint
        sys.exit(f"{label}: {error}")
      runs[method].append(results.finished_run(seed, fit.history))
  if parallel.is_first_process():
    _report(own, dataset.name, runs)
  parallel.wait_for_all("reported")
  if failed:
    sys.exit(1)


def _report(own: Settings, name: str, runs: Mapping[str, Any]) -> None:
  """Writes summary.json and the figures, and prints the table."""
  workdir = Path(own.workdir)
  title = f"{name}, {own.steps} steps of {own.batch_size}"
  summary = summaries.write(own, {"runs": runs})
  results.draw(workdir, list(runs), own.seeds, title=title)
  print(markdown(summary))
  print(f"\nFigures and summary.json: {workdir}")


def load(own: Settings) -> datasets.Dataset:
  """The images of --dataset; a message ends the program if other flags do not fit."""
  dataset = square_images.load_or_exit(own.dataset, own, size=own.size)
  if dataset.train.shape[1:] == (28, 28, 1):
    dataset = square_images.with_border(dataset)
  height, width, channels = dataset.train.shape[1:]
  if height != width or height not in models.LAYERS or channels != 3:
    sizes = " or ".join(f"{size}×{size}" for size in models.LAYERS)
    settings.wrong_usage(
      f"--dataset={own.dataset}: images of {height}×{width}×{channels}; the networks "
      f"here take colour images of {sizes}."
    )
  if own.conditional and dataset.train_labels is None:
    settings.wrong_usage(
      f"--dataset={own.dataset} has no labels: leave --conditional out."
    )
  if own.conditional and _is_streamed(own, dataset):
    settings.wrong_usage(
      "--conditional needs images that fit into memory, at most 2 GiB of them, and no "
      f"--stream; {own.dataset} has {dataset.train.nbytes / 2**30:.1f} GiB."
    )
  if own.batch_size > len(dataset.train):
    settings.wrong_usage(
      f"--batch_size={own.batch_size} is more than the {len(dataset.train)} training "
      f"images of {own.dataset}."
    )
  print(f"Data: {dataset.source}", file=sys.stderr)
  return dataset


def _is_streamed(own: Settings, dataset: datasets.Dataset) -> bool:
  return own.stream or dataset.train.nbytes > _MAX_IN_MEMORY


def train(
  own: Settings,
  dataset: datasets.Dataset,
  method: str,
  seed: int,
  folder: Path,
  label: str,
  mesh: Mesh | None,
) -> training.Fit:
  """Trains one method from one seed. The batches depend on the seed alone.

  Args:
    own: the settings.
    dataset: as `load` returns it.
    method: one of `models.METHODS`.
    seed: one of the seeds.
    folder: the run's folder.
    label: the name of the run, for the progress bar.
    mesh: the devices, or None.
  """
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  labels = dataset.train_labels if own.conditional else None
  size = dataset.train.shape[1]
  task = models.Task(size, None if labels is None else int(labels.max()) + 1)

  def batch(rows: slice) -> Any:
    x = dataset.train[rows]
    return x if labels is None else {"x": x, "context": labels[rows]}

  examples = models.transform(jax.tree.map(jnp.asarray, batch(slice(2))))
  axis_name = None if mesh is None else parallel.AXIS
  model = models.build(init_key, method, own, task, examples, axis_name=axis_name)
  data: Any = batch(slice(None))
  if _is_streamed(own, dataset):
    data = streams.stream(dataset.train, size=size, seed=seed)
  about = {
    "method": method,
    "label": models.METHODS[method],
    "dataset": dataset.name,
    "seed": seed,
    "label_counts": None if labels is None else np.bincount(labels).tolist(),
    "settings": saved_generators.generator_settings(own, task),
  }
  held_out = dataset.test[:_NUM_HELD_OUT]
  held_out_labels = None if labels is None else dataset.test_labels[:_NUM_HELD_OUT]
  recorder = results.Recorder(model, about, folder, held_out, held_out_labels)
  # SteinCD takes differences of nearby energies, which need full float32 precision;
  # accelerators use less by default.
  precision = "highest" if method == "steincd_gan" else None
  with jax.default_matmul_precision(precision):
    return training.fit(
      fit_key,
      model.algorithm,
      model.params,
      data,
      num_steps=own.steps,
      batch_size=own.batch_size,
      transform=models.transform,
      log_every=min(own.log_every, own.eval_every),
      evaluate=recorder.evaluate,
      eval_every=own.eval_every,
      observe=recorder.observe,
      workdir=folder,
      on_nonfinite=own.on_nonfinite,
      progress=own.progress,
      label=label,
      mesh=mesh,
    )


if __name__ == "__main__":
  settings.run(devices.ending_together(main), Settings)
