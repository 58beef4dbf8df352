"""What `experiments.images` records and draws of its runs."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.pictures import image_generators, image_models
from experiments.shared import plots, tables
from stein_jax import evaluation, training

PICTURED = 100
"""Samples that are kept for pictures at every evaluation."""

RECONSTRUCTED = 10

_HEALTH = (
  "energy_gap",
  "energy_data",
  "energy_held_out",
  "repulsion_share",
  "discount",
  "loss",
  "generator_loss",
  "mean_pairwise_distance",
)


class Watch:
  """Looks at a run at every evaluation: samples, reconstructions, and a few numbers.

  Args:
    model: what is trained.
    about: what `image_generators.save` notes.
    folder: where the run's files go.
    held_out: uint8 pictures that are not trained on.
    labels: theirs, or None.
  """

  def __init__(
    self,
    model: image_models.Model,
    about: Mapping[str, Any],
    folder: Path,
    held_out: np.ndarray,
    labels: np.ndarray | None,
  ):
    self._model, self._about, self._folder = model, dict(about), folder
    self._held_out = image_models.transform(jnp.asarray(held_out))
    self._labels = () if labels is None else (jnp.asarray(labels),)

  def evaluate(self, state: Any) -> dict[str, float]:
    """How far samples are from one another, and the energy of held-out pictures."""
    images = self._trained(state, 0).pictures(200).astype(np.float32) / 255
    distance = evaluation.mean_pairwise_distance(images, num_blocks=None).value
    found = {"mean_pairwise_distance": distance}
    energy = self._model.energy
    if energy is not None:
      theta = state.params["energy"]
      values = _energies(energy, theta, self._held_out, *self._labels)
      found["energy_held_out"] = float(values.mean())
    return found

  def observe(self, step: int, state: Any) -> None:
    """Saves the generator, samples of always the same noise, and reconstructions."""
    trained = self._trained(state, step)
    image_generators.save(self._folder, trained)
    labels = None
    if trained.about["label_counts"] is not None:  # a row for each label
      labels = np.arange(PICTURED, dtype=np.int32) // 10
      labels = labels % len(trained.about["label_counts"])
    self._save("samples", step, trained.pictures(PICTURED, labels=labels))
    energy = self._model.energy
    if energy is not None:
      some = self._held_out[:RECONSTRUCTED]
      back = _reconstructions(energy, state.params["energy"], some)
      both = jnp.concatenate([some, back])
      pixels = np.asarray(jnp.round((both + 1) * 127.5), np.uint8)
      self._save("reconstructions", step, pixels)

  def _trained(self, state: Any, step: int) -> image_generators.Trained:
    about = {**self._about, "step": step}
    return image_generators.of_state(self._model.generator, state, about)

  def _save(self, name: str, step: int, images: np.ndarray) -> None:
    (self._folder / name).mkdir(parents=True, exist_ok=True)
    np.save(self._folder / name / f"{step:08d}.npy", images)


@functools.partial(jax.jit, static_argnames="energy")
def _energies(energy: Any, theta: Any, x: jax.Array, *labels: Any) -> jax.Array:
  return jax.vmap(functools.partial(energy.apply, theta))(x, *labels)


@functools.partial(jax.jit, static_argnames="energy")
def _reconstructions(energy: Any, theta: Any, x: jax.Array) -> jax.Array:
  return jax.vmap(lambda x: energy.apply(theta, x, method="reconstruct"))(x)


def of_divergence(seed: int, error: training.TrainingDiverged) -> dict[str, Any]:
  """A summary's entry of a run that ceased to be finite."""
  return {"seed": seed, "diverged": {"step": error.step, "metric": error.metric}}


def of_history(seed: int, history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """A summary's entry of a finished run: its last row, mean step time and curve."""
  timed = [row["ms_per_step"] for row in history if row.get("ms_per_step")]
  curve = {
    name: [(row["step"], row[name]) for row in history if row.get(name) is not None]
    for name in _HEALTH
  }
  return {
    "seed": seed,
    "last": history[-1],
    "ms_per_step": float(np.median(timed)) if timed else None,
    "curve": {name: points for name, points in curve.items() if points},
  }


def table(summary: Mapping[str, Any]) -> str:
  """A line for every run: its last numbers."""
  lines = []
  for method, runs in summary["runs"].items():
    for run in runs:
      label = f"{image_models.METHODS[method]}, seed {run['seed']}"
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
  found = next((row[name] for name in names if row.get(name) is not None), None)
  return "—" if found is None else f"{found:.3f}"


def draw(
  workdir: Path, methods: Sequence[str], seeds: Sequence[int], *, title: str
) -> None:
  """The first seed's last samples, its samples over training, and reconstructions.

  The last show held-out pictures, which may be of people: they are for looking at.
  """
  grids, rows, given_back = {}, {}, {}
  for method in methods:
    label = image_models.METHODS[method]
    folder = workdir / method / f"seed_{seeds[0]}"
    kept = sorted((folder / "samples").glob("*.npy"))
    if not kept:
      continue
    grids[label] = np.load(kept[-1]) / 255
    for file in plots.mostly_early(kept, 6):
      images = np.load(file)[:: PICTURED // 10][:10] / 255
      rows[f"{label}, after {int(file.stem)} steps"] = images
    for file in sorted((folder / "reconstructions").glob("*.npy"))[-1:]:
      both = np.load(file) / 255
      given_back["held-out pictures"] = both[:RECONSTRUCTED]
      given_back[f"{label}: what its autoencoder gives back"] = both[RECONSTRUCTED:]
  if given_back:
    path = workdir / "reconstructions.png"
    plots.image_rows(path, given_back, title=title, limits=(0, 1))
  if grids:
    plots.image_grids(workdir / "samples.png", grids, title=title)
    plots.image_rows(workdir / "training.png", rows, title=title, limits=(0, 1))
