"""The files that experiments.mnist_rbm writes in its workdir."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.rbm import generators, statistics, tables
from experiments.rbm.problem import Problem
from experiments.rbm.runs import Run
from experiments.rbm.training import Training
from experiments.shared import plots, settings, summaries
from experiments.shared import tables as shared_tables
from stein_jax.training.files import write_atomically

FILES = (
  "figure1a.png",
  "figure1b.png",
  "samples.png",
  "training_*.png",
  "filters_and_samples_*.png",
  "metrics.jsonl",
  "*/seed_*/metrics.jsonl",
  "*/seed_*/scores.json",
  "*/seed_*/samples/*.npy",
  "*/seed_*/checkpoints/*",
  "*/seed_*/damaged_checkpoints/*",
  "*/seed_*/run.json",
  "*/seed_*/nonfinite_batch.npz",
)
"""Patterns of these files, as in `workdirs.Run.files`."""


class Results:
  """The results so far: summary.json and the figures, written after every method.

  Args:
    own: the command's settings.
    problem: what is learned.
    evaluator: of generators; None without generators.
    runs: the curves.
  """

  def __init__(
    self,
    own: Training,
    problem: Problem,
    evaluator: generators.Evaluator | None,
    runs: Sequence[Run],
  ):
    self.own, self.problem, self.evaluator = own, problem, evaluator
    self.workdir, self.runs = Path(own.workdir), runs
    self.summaries: dict[str, Any] = {}
    self.diverged: dict[tuple[str, int], int] = {}  # run, seed -> step
    self.test_images = evaluator and evaluator.of_test_images()

  def add(
    self,
    run: Run,
    histories: Mapping[int, list[dict[str, Any]]],
    diverged: Mapping[int, int],
    scores: Sequence[Mapping[str, float]],
    energies: Mapping[tuple[str, int], Any],
  ) -> None:
    """Adds all seeds of a method."""
    if not histories:
      self.summaries[run.label] = {"diverged": dict(diverged)}
      self.write()
      return
    summary = self.summaries[run.label] = statistics.summarize(histories)
    if diverged:
      summary["diverged"] = dict(diverged)
    seed = list(histories)[-1]
    if run.energy_from is None:
      _draw_model(
        self.workdir / f"filters_and_samples_{run.name}.png",
        run.label,
        self.problem,
        energies[run.name, seed],
      )
    if run.has_generator:
      summary["samples"] = generators.summarize(scores)
      generators.draw_training(
        self.workdir / f"training_{run.name}.png",
        self._kept_samples(run, seed),
        title=run.label,
        last=histories[seed][-1]["step"],
      )
    self.write()

  def _kept_samples(self, run: Run, seed: int) -> Path:
    return self.workdir / run.name / f"seed_{seed}" / "samples"

  def write(self) -> None:
    """Writes summary.json and the figures."""
    dataset, baseline = self.problem.dataset, self.problem.baseline
    record = self.workdir / "flags.txt"
    summary = {
      "command": f"python -m {self.own.command} --flagfile={record}",
      "dataset": dataset.name,
      "sizes": {
        name: len(getattr(dataset, name)) for name in ("train", "validation", "test")
      },
      "flags": settings.record(self.own),
      "gaussian_baseline": {k: float(v) for k, v in baseline._asdict().items()},
      "methods": self.summaries,
      "environment": summaries.environment(),
    }
    if self.evaluator is not None:
      summary["classifier_test_accuracy"] = self.evaluator.classifier.test_accuracy
      summary["test_images"] = self.test_images
    summaries.write_json(self.workdir / "summary.json", summary)
    self._draw()

  def _draw(self) -> None:
    ell, name = self.problem.rbm.num_hidden, self.problem.dataset.name
    title = f"RBM with {ell} hidden units on {name}"
    after = {run.label for run in self.runs if run.energy_from is not None}
    plots.likelihood_curves(
      self.workdir / "figure1a.png",
      {
        label: summary["curve"]
        for label, summary in self.summaries.items()
        if "curve" in summary and label not in after
      },
      baseline=float(self.problem.baseline.mean),
      title=title,
    )
    folders = {
      run.label: self._kept_samples(run, self.summaries[run.label]["seeds"][-1])
      for run in self.runs
      if "samples" in self.summaries.get(run.label, {})
    }
    if folders:
      generators.draw_samples(
        self.workdir / "samples.png", folders, self.summaries, title=title
      )
      generators.draw_mix(
        self.workdir / "figure1b.png", self.runs, self.summaries, title=title
      )

  def gather_metrics(self, seeds: Sequence[int]) -> None:
    """Joins the metrics of all runs in one file; each row gets its method and seed."""
    lines = []
    for run in self.runs:
      for seed in seeds:
        path = self.workdir / run.name / f"seed_{seed}" / "metrics.jsonl"
        for line in path.read_text().splitlines() if path.exists() else ():
          row = {"method": run.name, "seed": seed, **json.loads(line)}
          lines.append(json.dumps(row) + "\n")
    write_atomically(self.workdir / "metrics.jsonl", "".join(lines))

  def tables(self) -> str:
    """The tables that the program prints at its end."""
    lines = tables.rows(self.summaries, float(self.problem.baseline.mean))
    text = shared_tables.plain(tables.HEADER, lines)
    if self.evaluator is not None:
      summary = {"methods": self.summaries, "test_images": self.test_images}
      lines = tables.samples_rows(summary)
      text += "\n\n" + shared_tables.plain(tables.SAMPLES_HEADER, lines)
    return text


def _draw_model(
  path: Path,
  label: str,
  problem: Problem,
  params: Any,
) -> None:
  """Draws the columns of B, and exact samples with and without pixel noise."""
  rbm, weights = problem.rbm, params["params"]["B"]
  samples = rbm.sample(jax.random.key(0), params, 10)
  y = jax.vmap(lambda x: rbm.features(params, x))(samples)
  denoised = params["params"]["b"] + jnp.tanh(y) @ weights.T
  rows = {
    "filters: the columns of B": weights.T,
    "exact samples x ~ p": problem.untransform(samples),
    "the same without pixel noise: E[b + Bh | x]": problem.untransform(denoised),
  }
  image_shape = problem.dataset.train.shape[1:]
  plots.image_rows(
    path,
    {k: np.asarray(v).reshape(-1, *image_shape) for k, v in rows.items()},
    title=label,
  )
