"""Densities in the plane, learned from samples: the first thing to try.

  python -m experiments.toy2d
  python -m experiments.toy2d --density=two_moons,rings --rule=nce,sliced,stein_cd

A network on a Gaussian base learns every --density from --train of its samples by every
--rule. In the plane everything is known: a grid gives log Z, so the log-likelihood of
test points is exact, and so are samples of the model. It takes about half a minute on
two CPU cores for each density and rule. A run that was stopped continues with the next
one. By default noise-contrastive estimation learns: in the plane, noise reaches all
that the data reach. In many dimensions others are better, see
`experiments.known_density`.

In --workdir it writes, for each density, <density>.png (the truth and, for every rule,
the learned density, samples, and particles with arrows of the Stein direction φ) and
<density>_<rule>.gif (the learned density during training); curves.png (KL and
kernelised Stein discrepancy against steps), runs.jsonl, summary.json, and flags.txt,
which can be used as a flagfile.
"""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import jax
import numpy as np
import optax
from tqdm import tqdm

from experiments.deep import plane_plots
from experiments.deep.planes import SHAPES, Judge, Plane, plane
from experiments.shared import (
  deep_rules,
  runlog,
  settings,
  summaries,
  tables,
  workdirs,
)
from experiments.shared.settings import setting
from stein_jax import kernels, svgd_direction, training
from stein_jax.algorithms.energy import scores
from stein_jax.energies import MLP
from stein_jax.evaluation import broad_gaussian
from stein_jax.training.files import open_atomically

SHOWN = ("two_moons", "rings", "pinwheel", "checkerboard")


@dataclasses.dataclass(frozen=True)
class Settings(summaries.FromSummary, workdirs.Run):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.toy2d"
  files: ClassVar[tuple[str, ...]] = ("runs.jsonl", "*.png", "*.gif", "fields/*.npz")

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/toy2d")
  density: tuple[str, ...] = setting(
    SHOWN,
    f"What is learned, some of: {', '.join(SHAPES)}.",
    choices=tuple(SHAPES),
    may_grow=True,
  )
  rule: tuple[str, ...] = setting(
    ("nce",),
    f"Learning rules, some of: {', '.join(deep_rules.RULES)}.",
    choices=tuple(deep_rules.RULES),
    may_grow=True,
  )
  factor: float | None = setting(
    None,
    "The rule's own number, relative to the scale of the data: a step size, a noise "
    "scale, a bandwidth. By default the one that `experiments.known_density` starts "
    "from.",
    above=0,
  )
  steps: int = setting(4000, "Training steps.", at_least=1)
  learning_rate: float = setting(
    5e-3, "Adam's, at the start; it goes to zero along a cosine.", above=0
  )
  batch_size: int = setting(200, "Points in a batch.", at_least=2)
  width: int = setting(128, "Units in each of the network's two layers.", at_least=1)
  train: int = setting(10_000, "Points to learn from.", at_least=2)
  test: int = setting(5000, "Points to judge by.", at_least=2)
  frames: int = setting(25, "Pictures in a GIF, and points of a curve.", at_least=2)
  gif: bool = setting(True, "Write GIFs.", may_differ=True)
  seed: int = setting(
    0, "Of all random numbers.", at_least=0, at_most=settings.MAX_SEED
  )


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  if own.batch_size > own.train:
    settings.wrong_usage(
      f"--batch_size={own.batch_size} is more than --train={own.train}."
    )
  workdirs.check(own)
  workdir = workdirs.prepare(own)
  (workdir / "fields").mkdir(exist_ok=True)
  record = workdir / "runs.jsonl"
  bar = tqdm(total=len(own.density) * len(own.rule), disable=not own.progress)
  for density in own.density:
    done = {run["rule"] for run in runlog.read(record) if run["density"] == density}
    task: Plane | None = None
    for rule in own.rule:
      bar.set_description(f"{density}, {rule}")
      if rule not in done:
        task = task or _task(own, density)
        runlog.append(record, _learn(own, task, density, rule, workdir))
      bar.update()
    _draw(own, density, workdir)
  bar.close()
  found = {(run["density"], run["rule"]): run for run in runlog.read(record)}
  runs = [found[density, rule] for density in own.density for rule in own.rule]
  summary = summaries.write(
    own,
    {
      "dataset": "samples of densities in the plane",
      "labels": {rule: deep_rules.RULES[rule].label for rule in own.rule},
      "runs": runs,
    },
  )
  plane_plots.curves(workdir / "curves.png", _curves(own, summary))
  print(tables.plain(*_table(summary)))
  print(f"\nExact, in nats. Pictures and summary.json: {workdir}")


def _task(own: Settings, density: str) -> Plane:
  key = jax.random.key(own.seed)
  return plane(SHAPES[density](), key, num_train=own.train, num_test=own.test)


def _learn(
  own: Settings, task: Plane, density: str, rule: str, workdir: Path
) -> dict[str, Any]:
  """Trains one energy; its fields are saved, its numbers returned."""
  start_key, fit_key, show_key = jax.random.split(jax.random.key(own.seed + 1), 3)
  energy = MLP((own.width, own.width), activation=jax.nn.silu, base="diagonal")
  rate = optax.cosine_decay_schedule(own.learning_rate, own.steps)
  algorithm = deep_rules.make(
    rule, energy.apply, optax.adam(rate), np.asarray(task.train), factor=own.factor
  )
  judge = Judge(energy.apply, task)
  coarse = Judge(energy.apply, dataclasses.replace(task, num_points=80))
  fields: list[np.ndarray] = []

  def observe(step: int, state: Any) -> None:
    values = coarse.log_density_on_grid(deep_rules.theta(state))
    fields.append(coarse.plane.as_picture(values))

  every = max(1, own.steps // (own.frames - 1))
  try:
    fit = training.fit(
      fit_key,
      algorithm,
      energy.init_from_data(start_key, task.train),
      task.train,
      num_steps=own.steps,
      batch_size=own.batch_size,
      log_every=every,
      evaluate=lambda state: judge(deep_rules.theta(state)),
      eval_every=every,
      observe=observe,
      on_runaway="ignore",
      progress=False,
    )
  except training.TrainingDiverged as error:
    return {"density": density, "rule": rule, "diverged": error.step}
  theta = deep_rules.theta(fit.state)
  sample_key, particle_key = jax.random.split(show_key)
  particles = broad_gaussian(task.train).sample(particle_key, 150)
  phi = svgd_direction(particles, scores(theta, energy.apply, particles), kernels.rbf())
  on_grid = judge.log_density_on_grid(theta)
  with open_atomically(_fields(workdir, density, rule)) as file:
    np.savez_compressed(
      file,
      learned=np.exp(task.as_picture(on_grid)).astype(np.float32),
      frames=np.exp(np.stack(fields)).astype(np.float32),
      samples=np.asarray(judge.samples(sample_key, theta, 2000)),
      particles=np.asarray(particles),
      phi=np.asarray(phi),
    )
  rows = [row for row in fit.history if "kl" in row]
  times = [row["ms_per_step"] for row in fit.history if row.get("ms_per_step")]
  names = ("log_likelihood", "kl", "kl_error", "ksd_squared")
  return {
    "density": density,
    "rule": rule,
    "truth": float(judge.log_truth.mean()),
    "ms": min(times) if times else None,
    "mass_at_edge": judge.mass_at_edge(theta),
    "steps": [row["step"] for row in rows],
    **{name: [round(row[name], 5) for row in rows] for name in names},
  }


def _fields(workdir: Path, density: str, rule: str) -> Path:
  return workdir / "fields" / f"{density}_{rule}.npz"


def _draw(own: Settings, density: str, workdir: Path) -> None:
  """The pictures of one density, from the saved fields."""
  task = _task(own, density)
  found = {}
  for rule in own.rule:
    path = _fields(workdir, density, rule)
    if path.exists():
      with np.load(path) as arrays:
        found[rule] = dict(arrays)
  if not found:
    return
  labels = {rule: deep_rules.RULES[rule].label for rule in found}
  plane_plots.panels(
    workdir / f"{density}.png",
    task,
    {labels[rule]: fields for rule, fields in found.items()},
    title=task.truth.name,
  )
  for rule, fields in found.items():
    path = workdir / f"{density}_{rule}.gif"
    if own.gif and not path.exists():
      plane_plots.animation(path, task, fields["frames"], title=labels[rule])


def _curves(own: Settings, summary: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
  """density -> label -> the run."""
  found: dict[str, dict[str, Any]] = {density: {} for density in own.density}
  for run in summary["runs"]:
    if "kl" in run:
      found[run["density"]][summary["labels"][run["rule"]]] = run
  return found


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a `summary.json` in Markdown."""
  return tables.markdown(*_table(summary))


def _table(summary: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
  header = [
    "density",
    "rule",
    "log-likelihood",
    "of the truth",
    "KL(p* ‖ p)",
    "KSD² (U)",
    "ms a step",
  ]
  rows = []
  for run in summary["runs"]:
    names = [run["density"], summary["labels"][run["rule"]]]
    if "diverged" in run:
      rows.append([*names, f"diverged at {run['diverged']}", "", "", "", ""])
      continue
    leaks = " (and more outside of the grid)" if run["mass_at_edge"] > 0.01 else ""
    rows.append(
      [
        *names,
        f"{run['log_likelihood'][-1]:.3f}{leaks}",
        f"{run['truth']:.3f}",
        f"{run['kl'][-1]:.3f} ± {run['kl_error'][-1]:.3f}",
        f"{run['ksd_squared'][-1]:.3f}",
        "" if run["ms"] is None else f"{run['ms']:.2f}",
      ]
    )
  return header, rows


if __name__ == "__main__":
  settings.run(main, Settings)
