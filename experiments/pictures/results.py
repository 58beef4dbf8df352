"""What `experiments.images` records of a run, and the figures and table from it."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import models, saved_generators
from experiments.shared import plots, tables
from stein_jax import evaluation, training
from stein_jax.training.files import open_atomically

NUM_SAMPLES = 100
"""The number of samples that are saved at every evaluation."""

NUM_RECONSTRUCTIONS = 10
"""The number of reconstructions that are saved at every evaluation."""

_CURVES = (
  "energy_gap",
  "energy_data",
  "energy_held_out",
  "repulsion_share",
  "discount",
  "loss",
  "generator_loss",
  "mean_pairwise_distance",
)


class Recorder:
  """Records a run at every evaluation: samples, reconstructions and a few metrics.

  Args:
    model: the model that is trained.
    about: the description that is saved with the generator; see
      `saved_generators.Trained`.
    folder: the run's folder.
    held_out: uint8 images that are not trained on.
    labels: the labels of these images, or None.
  """

  def __init__(
    self,
    model: models.Model,
    about: Mapping[str, Any],
    folder: Path,
    held_out: np.ndarray,
    labels: np.ndarray | None,
  ):
    self._model, self._about, self._folder = model, dict(about), folder
    self._held_out = models.transform(jnp.asarray(held_out))
    self._labels = () if labels is None else (jnp.asarray(labels),)

  def evaluate(self, state: Any) -> dict[str, float]:
    """The mean distance between samples, and the energy of the held-out images."""
    images = self._trained(state, 0).sample(200).astype(np.float32) / 255
    distance = evaluation.mean_pairwise_distance(images, num_blocks=None).value
    metrics = {"mean_pairwise_distance": distance}
    energy = self._model.energy
    if energy is not None:
      params = state.params["energy"]
      values = _energies(energy, params, self._held_out, *self._labels)
      metrics["energy_held_out"] = float(values.mean())
    return metrics

  def observe(self, step: int, state: Any) -> None:
    """Saves the generator, samples and reconstructions; the noise is always the same.

    The samples of a conditional generator are ten for each label.
    """
    trained = self._trained(state, step)
    saved_generators.save(self._folder, trained)
    labels = None
    if trained.about["label_counts"] is not None:
      labels = np.arange(NUM_SAMPLES, dtype=np.int32) // 10
      labels = labels % len(trained.about["label_counts"])
    self._save("samples", step, trained.sample(NUM_SAMPLES, labels=labels))
    energy = self._model.energy
    if energy is not None:
      originals = self._held_out[:NUM_RECONSTRUCTIONS]
      reconstructions = _reconstructions(energy, state.params["energy"], originals)
      both = jnp.concatenate([originals, reconstructions])
      pixels = np.asarray(jnp.round((both + 1) * 127.5), np.uint8)
      self._save("reconstructions", step, pixels)

  def _trained(self, state: Any, step: int) -> saved_generators.Trained:
    about = {**self._about, "step": step}
    return saved_generators.from_state(self._model.generator, state, about)

  def _save(self, name: str, step: int, images: np.ndarray) -> None:
    (self._folder / name).mkdir(parents=True, exist_ok=True)
    with open_atomically(self._folder / name / f"{step:08d}.npy") as file:
      np.save(file, images)


@functools.partial(jax.jit, static_argnames="energy")
def _energies(energy: Any, params: Any, x: jax.Array, *labels: Any) -> jax.Array:
  return jax.vmap(functools.partial(energy.apply, params))(x, *labels)


@functools.partial(jax.jit, static_argnames="energy")
def _reconstructions(energy: Any, params: Any, x: jax.Array) -> jax.Array:
  return jax.vmap(lambda x: energy.apply(params, x, method="reconstruct"))(x)


def diverged_run(seed: int, error: training.TrainingDiverged) -> dict[str, Any]:
  """The entry in summary.json of a run that stopped at an infinite or NaN value."""
  return {"seed": seed, "diverged": {"step": error.step, "metric": error.metric}}


def finished_run(seed: int, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The entry in summary.json of a finished run.

  It holds the last row of the history, the median step time and the metrics' curves.
  """
  timed = [row["ms_per_step"] for row in history if row.get("ms_per_step")]
  curve = {
    name: [(row["step"], row[name]) for row in history if row.get(name) is not None]
    for name in _CURVES
  }
  return {
    "seed": seed,
    "last": history[-1],
    "ms_per_step": float(np.median(timed)) if timed else None,
    "curve": {name: points for name, points in curve.items() if points},
  }


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a summary.json in Markdown: the last metrics of every run."""
  lines = []
  for method, runs in summary["runs"].items():
    for run in runs:
      label = f"{models.METHODS[method]}, seed {run['seed']}"
      if "diverged" in run:
        lines.append([label, f"diverged at step {run['diverged']['step']}"] + ["—"] * 5)
        continue
      last, ms = run["last"], run["ms_per_step"]
      lines.append(
        [
          label,
          str(last["step"]),
          "—" if ms is None else f"{ms:.1f}",
          _number(last, "energy_gap", "loss"),
          _number(last, "energy_held_out", "generator_loss"),
          _number(last, "repulsion_share"),
          _number(last, "mean_pairwise_distance"),
        ]
      )
  header = [
    "",
    "steps",
    "ms a step",
    "energy gap (DCGAN: loss)",
    "energy of held-out pictures (DCGAN: generator's loss)",
    "repulsion's share of φ",
    "mean distance of samples",
  ]
  return tables.markdown(header, lines)


def _number(row: Mapping[str, Any], *names: str) -> str:
  """The first of these metrics that the row has."""
  found = next((row[name] for name in names if row.get(name) is not None), None)
  return "—" if found is None else f"{found:.3f}"


def draw(
  workdir: Path, methods: Sequence[str], seeds: Sequence[int], *, title: str
) -> None:
  """Draws samples.png, training.png and reconstructions.png, of the first seed.

  samples.png shows the last samples, training.png those of several steps, and
  reconstructions.png held-out images with their reconstructions. Held-out images may
  show real people: do not publish them.
  """
  grids, rows, reconstructions = {}, {}, {}
  for method in methods:
    label = models.METHODS[method]
    folder = workdir / method / f"seed_{seeds[0]}"
    saved = sorted((folder / "samples").glob("*.npy"))
    if not saved:
      continue
    grids[label] = np.load(saved[-1]) / 255
    for file in plots.mostly_early(saved, 6):
      images = np.load(file)[:: NUM_SAMPLES // 10][:10] / 255
      rows[f"{label}, after {int(file.stem)} steps"] = images
    for file in sorted((folder / "reconstructions").glob("*.npy"))[-1:]:
      both = np.load(file) / 255
      reconstructions["held-out images"] = both[:NUM_RECONSTRUCTIONS]
      reconstructions[f"{label}: reconstructions"] = both[NUM_RECONSTRUCTIONS:]
  if reconstructions:
    path = workdir / "reconstructions.png"
    plots.image_rows(path, reconstructions, title=title, limits=(0, 1))
  if grids:
    plots.image_grids(workdir / "samples.png", grids, title=title)
    plots.image_rows(workdir / "training.png", rows, title=title, limits=(0, 1))
