"""Trains SteinGAN and DCGAN on pictures: section 5.2, figures 2 to 4.

Half an hour on a CPU core, with narrow networks, where CIFAR-10 is prepared:

  python -m experiments.images --flagfile=experiments/flags/images_small.flags

The networks and settings of the paper, on a GPU:

  python -m experiments.images --flagfile=experiments/flags/cifar10.flags
  python -m experiments.images --flagfile=experiments/flags/celeb_a.flags
  python -m experiments.images --flagfile=experiments/flags/lsun.flags

Any flag after the flagfile wins. A run that was stopped goes on where it stopped when
the same command is given again; more methods, seeds or steps extend it. In --workdir it
leaves samples.png, training.png, reconstructions.png, summary.json and, for every
METHOD/seed_K, samples and reconstructions over training, metrics.jsonl, checkpoints
and the generator, which experiments.evaluate and experiments.latent_walk read; and
flags.txt, a flagfile itself.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from jax.sharding import Mesh

from experiments.pictures import (
  image_data,
  image_models,
  image_results,
)
from experiments.shared import common
from stein_jax import AlignmentController, energies, kernels, parallel, training
from stein_jax.algorithms.stein_gan import AUTHORS_ALIGNMENT
from stein_jax.training.records import AnotherRun

_ALIGNMENTS = {
  "aligned": AlignmentController(),
  "aligned_authors": AUTHORS_ALIGNMENT,
}
_LARGE = 2**31  # bytes of pictures; more are streamed

_MAY_GROW = frozenset(("method", "seeds", "steps"))


def main(argv: list[str]) -> None:
  if common.printed_from_summary(argv, markdown):
    return
  common.hush_checkpoints()
  methods = common.chosen("method", flags.FLAGS.method, tuple(image_models.METHODS))
  seeds = common.numbers("seeds", flags.FLAGS.seeds, int, at_least=0)
  mesh = common.join_devices()
  common.check_divides(mesh, flags.FLAGS.batch_size)
  common.claim_workdir(before_work=True, may_grow=_MAY_GROW)
  dataset = load()
  settings = settings_of_flags(dataset)
  workdir = common.claim_workdir(before_work=False)
  runs: dict[str, list[dict[str, Any]]] = {method: [] for method in methods}
  failed = False
  for method in methods:
    for seed in seeds:
      folder = workdir / method / f"seed_{seed}"
      label = f"{image_models.METHODS[method]}, seed {seed}"
      try:
        fit = train(dataset, method, settings, seed, folder, label, mesh)
      except training.TrainingDiverged as error:
        print(f"{label}: {error}", file=sys.stderr)
        runs[method].append(image_results.of_divergence(seed, error))
        failed = True
        continue
      except AnotherRun as error:  # on other data, by its fingerprint
        sys.exit(f"{label}: {error}")
      runs[method].append(image_results.of_history(seed, fit.history))
  if parallel.is_first_process():
    _report(workdir, dataset.name, runs, seeds)
  parallel.wait_for_all("reported")
  if failed:
    sys.exit(1)


def _report(
  workdir: Path, name: str, runs: dict[str, list[dict[str, Any]]], seeds: list[int]
) -> None:
  title = f"{name}, {flags.FLAGS.steps} steps of {flags.FLAGS.batch_size}"
  summary = common.write_summary(workdir, "experiments.images", {"runs": runs})
  image_results.draw(workdir, list(runs), seeds, title=title)
  print(markdown(summary))
  print(f"\nPictures and summary.json: {workdir}")


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json."""
  return image_results.table(summary)


def load() -> Any:
  """The pictures of --dataset, checked against the other flags."""
  name, size = flags.FLAGS.dataset, flags.FLAGS.size
  if size not in (None, *image_models.LAYERS):
    sys.exit(f"--size must be one of {', '.join(map(str, image_models.LAYERS))}.")
  dataset = common.load_pictures(name, size=size)
  if dataset.train.shape[1:] == (28, 28, 1):
    dataset = image_data.framed(dataset)
  shape = dataset.train.shape[1:]
  if shape[0] != shape[1] or shape[0] not in image_models.LAYERS or shape[2] != 3:
    sys.exit(
      f"--dataset={name}: pictures of {'×'.join(map(str, shape))}; the networks here "
      f"take colour pictures of {' or '.join(f'{s}×{s}' for s in image_models.LAYERS)}."
    )
  if flags.FLAGS.conditional and dataset.train_labels is None:
    sys.exit(f"--dataset={name} has no labels: leave --conditional out.")
  if flags.FLAGS.conditional and _streamed(dataset):
    sys.exit(
      "--conditional needs pictures that fit into memory, up to 2 GiB of them, and no "
      f"--stream; {name} has {dataset.train.nbytes / 2**30:.1f} GiB."
    )
  if flags.FLAGS.batch_size > len(dataset.train):
    sys.exit(
      f"--batch_size={flags.FLAGS.batch_size} is more than the {len(dataset.train)} "
      f"training pictures of {name}."
    )
  print(f"Data: {dataset.source}", file=sys.stderr)
  return dataset


def _streamed(dataset: Any) -> bool:
  return flags.FLAGS.stream or dataset.train.nbytes > _LARGE


def settings_of_flags(dataset: Any) -> image_models.Settings:
  """The flags as settings; a message ends the program where one cannot be meant."""
  values = flags.FLAGS
  common.positive(
    "width",
    "generator_width",
    "discriminator_width",
    "bandwidth_multiple",
    "energy_learning_rate",
    "generator_learning_rate",
    "dcgan_learning_rate",
    "mix_scale",
    "step_size",
  )
  discount: Any = _ALIGNMENTS.get(values.discount)
  if discount is None:
    discount = _discount(values.discount)
  if values.average is not None and not 0 < values.average < 1:
    sys.exit(f"--average must lie between 0 and 1, got {values.average}.")
  if values.bfloat16 and "steincd_gan" in values.method:
    sys.exit(
      "steincd_gan takes small differences of energies, which bfloat16 drowns: leave "
      "--bfloat16 out."
    )
  num_classes = None
  if values.conditional:
    num_classes = int(dataset.train_labels.max()) + 1
  known = [name for name in image_models.Settings._fields if name in values]
  return image_models.Settings(**{name: values[name].value for name in known})._replace(
    size=dataset.train.shape[1],
    num_classes=num_classes,
    num_neighbors=values.num_neighbors or None,
    discount=discount,
  )


def _discount(text: str) -> float:
  try:
    value = float(text)
  except ValueError:
    value = -1.0
  if not 0 <= value < 1:
    sys.exit(
      f"--discount must be a number in [0, 1) or {' or '.join(_ALIGNMENTS)}, got "
      f"{text!r}."
    )
  return value


def train(
  dataset: Any,
  method: str,
  settings: image_models.Settings,
  seed: int,
  folder: Path,
  label: str,
  mesh: Mesh | None,
) -> training.Fit:
  """Trains one method from one seed; all methods share a seed's batches."""
  init_key, fit_key = jax.random.split(jax.random.key(seed))
  conditional = settings.num_classes is not None

  def pictures(x: Any, labels: Any) -> Any:
    return {"x": x, "context": labels} if conditional else x

  few = pictures(dataset.train[:2], dataset.train_labels[:2] if conditional else None)
  few = image_models.transform(jax.tree.map(jnp.asarray, few))
  axis_name = None if mesh is None else parallel.AXIS
  model = image_models.build(init_key, method, settings, few, axis_name=axis_name)
  data: Any = pictures(dataset.train, dataset.train_labels)
  if _streamed(dataset):
    data = image_data.stream(dataset.train, size=settings.size, seed=seed)
  counts = np.bincount(dataset.train_labels).tolist() if conditional else None
  about = {
    "method": method,
    "label": image_models.METHODS[method],
    "dataset": dataset.name,
    "seed": seed,
    "label_counts": counts,
    # what the generator is made of
    "settings": {
      name: getattr(settings, name)
      for name in ("size", "num_classes", "generator_width", "bfloat16")
    },
  }
  held_out = dataset.test[:256]
  labels = dataset.test_labels[:256] if conditional else None
  watch = image_results.Watch(model, about, folder, held_out, labels)
  # SteinCD's difference of nearby energies needs all digits, which accelerators spare.
  precision = "highest" if method == "steincd_gan" else None
  with jax.default_matmul_precision(precision):
    return _fit(fit_key, model, data, watch, folder, label, mesh)


def _fit(
  key: jax.Array,
  model: image_models.Model,
  data: Any,
  watch: image_results.Watch,
  folder: Path,
  label: str,
  mesh: Mesh | None,
) -> training.Fit:
  values = flags.FLAGS
  return training.fit(
    key,
    model.algorithm,
    model.params,
    data,
    num_steps=values.steps,
    batch_size=values.batch_size,
    transform=image_models.transform,
    log_every=min(values.log_every, values.eval_every),
    evaluate=watch.evaluate,
    eval_every=values.eval_every,
    observe=watch.observe,
    workdir=folder,
    progress=values.progress,
    label=label,
    mesh=mesh,
  )


def _define_flags() -> None:
  flags.DEFINE_list(
    "method",
    ["steingan", "dcgan"],
    f"What to train, separated by commas, out of: {', '.join(image_models.METHODS)}.",
  )
  flags.DEFINE_string(
    "dataset",
    "cifar10",
    "cifar10, celeb_a or lsun/bedroom (or another category); the latter two are cut "
    "to squares and resized, and LSUN is also read from its lmdb, or a folder of "
    "pictures, in --data_dir. mnist5k, the embedded digits, get a border up to 32×32.",
  )
  common.define_place_flags()
  flags.DEFINE_integer("size", None, "Resize pictures to so many pixels, 32 or 64.")
  flags.DEFINE_bool(
    "conditional", False, "Learn pictures with their labels, by the joint energy (25)."
  )
  flags.DEFINE_bool(
    "stream",
    False,
    "Read pictures from disk in every step; so are those of more than 2 GiB anyway.",
  )
  flags.DEFINE_integer("steps", 50_000, "Training steps.", lower_bound=1)
  flags.DEFINE_integer("batch_size", 100, "m, pictures a step.", lower_bound=2)
  flags.DEFINE_list("seeds", ["0"], "Seeds of the start, the batches and the noise.")
  flags.DEFINE_integer(
    "eval_every", 1000, "Steps between samples and checkpoints.", lower_bound=1
  )
  flags.DEFINE_integer("log_every", 100, "Steps between rows.", lower_bound=1)
  flags.DEFINE_float("width", 1.0, "A factor on the energy's channels.")
  flags.DEFINE_float("generator_width", 1.0, "A factor on the generator's maps.")
  flags.DEFINE_float("discriminator_width", 1.0, "The same of DCGAN's discriminator.")
  flags.DEFINE_enum(
    "normalization",
    "group",
    list(energies.autoencoder.NORMALIZATIONS),
    "How the energy normalises within a picture.",
  )
  flags.DEFINE_bool("tied", True, "Whether the decoder has the encoder's kernels.")
  flags.DEFINE_enum(
    "norm",
    "l2",
    list(energies.autoencoder.NORMS),
    "Of what the autoencoder does not give back; l1_l2 is the authors' for CelebA.",
  )
  flags.DEFINE_enum(
    "bandwidth",
    "median",
    sorted(kernels.BANDWIDTHS),
    "Of the kernel on the encoder's features. features is the paper's and "
    "features_authors its code's: with them nothing repels.",
  )
  flags.DEFINE_float("bandwidth_multiple", 1.0, "A factor on the bandwidth.")
  flags.DEFINE_integer(
    "num_neighbors",
    0,
    "Only so many nearest pictures repel each one; 0: all, exactly, at the cost of as "
    "many passes through the encoder as there are pictures in a batch. k takes as much "
    "memory as k batches.",
    lower_bound=0,
  )
  flags.DEFINE_string(
    "discount",
    "aligned",
    "γ: a number in [0, 1), or aligned: 0.7, and 0.9 while real pictures have more "
    "energy than generated ones; aligned_authors: 0.7 then and 0.9 otherwise, as the "
    "authors' code has it.",
  )
  flags.DEFINE_float("energy_learning_rate", 5e-4, "Adam's, of the energy.")
  flags.DEFINE_float("generator_learning_rate", 1e-3, "Adam's, of the generator.")
  flags.DEFINE_float("dcgan_learning_rate", 2e-4, "Adam's, of both of DCGAN's.")
  flags.DEFINE_float("beta1", 0.5, "Adam's β₁.", lower_bound=0.0, upper_bound=0.999)
  flags.DEFINE_float("mix", 0.25, "α of steincd_gan.", lower_bound=0.0, upper_bound=1.0)
  flags.DEFINE_float("mix_scale", 1.0, "A factor on SteinCD's gradient there.")
  flags.DEFINE_float("step_size", 0.1, "ε of SteinCD there.")
  flags.DEFINE_float(
    "average",
    None,
    "The decay, between 0 and 1, of a moving average of the generator, which samples "
    "then come from. It starts at the untrained one: .999 needs some 5 000 steps.",
  )
  flags.DEFINE_bool("bfloat16", False, "Compute in bfloat16; parameters stay float32.")
  common.define_device_flags()
  common.define_run_flags("runs/images")


if __name__ == "__main__":
  _define_flags()
  app.run(common.ending_together(main))
