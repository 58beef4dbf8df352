"""Trains the RBM of section 5.1: CD-type methods, exact MLE, SteinGAN (figure 1).

The quickstart needs no download and takes about a minute on two CPU cores:

  python -m experiments.mnist_rbm --flagfile=experiments/flags/quickstart.flags

Figure 1(a) on all of MNIST, three seeds:

  python -m experiments.mnist_rbm --flagfile=experiments/flags/figure1a.flags

Figures 1(b) to 1(d), SteinGAN and its mix with SteinCD, where a generator is trained
with the energy:

  python -m experiments.mnist_rbm --flagfile=experiments/flags/figure1b.flags

A flag after the flagfile takes precedence: for a quick test add
`--seeds=0 --steps=1000 --workdir=runs/test`. If a run was stopped, the same command
continues it; more seeds, methods or steps extend it. In --workdir it writes
figure1a.png, a picture of filters and samples for every method, summary.json,
metrics.jsonl, checkpoints, and flags.txt, which can be used as a flagfile; for
generators also their samples over training, samples.png and, for several α,
figure1b.png.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from jax.sharding import Mesh

from experiments.rbm import generators, problem, results
from experiments.rbm.runs import Run, Setup
from experiments.rbm.settings import Rules, of_curves
from experiments.rbm.training import Training, energy_params, runs_of, train
from experiments.shared import devices, logs, settings, workdirs
from stein_jax import parallel, training
from stein_jax.training.records import AnotherRun


@dataclasses.dataclass(frozen=True)
class Settings(Training):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.mnist_rbm"
  files: ClassVar[tuple[str, ...]] = results.FILES

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/mnist_rbm")


def main(own: Settings) -> None:
  logs.quiet_checkpoints()
  mesh = devices.join(own)
  devices.check_divides(mesh, own.batch_size)
  runs = runs_of(own)
  with_generator = any(run.has_generator for run in runs)
  if with_generator and (own.center or own.scale != 1):
    settings.wrong_usage(
      "A generator makes pixels in [0, 1]: leave --center and --scale out."
    )
  curves = [run.name for run in runs if run.energy_from is None]
  try:
    rules = of_curves(own, own.overrides, curves)
  except ValueError as error:
    settings.wrong_usage(str(error))
  workdirs.check(own, fixed=_fixed(own))
  task = problem.load(own, own.batch_size)
  evaluator = None
  if with_generator:
    evaluator = generators.evaluator_of(
      task,
      own.generator(),
      cache_dir=own.cache_dir,
      num_steps=own.classifier_steps,
      progress=own.progress,
    )
  workdirs.prepare(own)
  found = results.Results(own, task, evaluator, runs)
  _train_all(own, task, runs, rules, found, mesh)
  if parallel.is_first_process():
    found.gather_metrics(own.seeds)
    print(found.tables())
    print(f"\nExact log-likelihood in nats. Pictures and summary.json: {own.workdir}")
  parallel.wait_for_all("reported")
  if found.diverged:
    sys.exit(1)


def _fixed(own: Settings) -> Sequence[str]:
  """The settings that must not grow when this run is continued."""
  # The schedule depends on the number of steps; and a generator would be trained on two
  # energies, the one before and the one after.
  scheduled = own.schedule != "constant" or "schedule=" in own.overrides
  return ("steps",) if scheduled or own.generator_after else ()


def _train_all(
  own: Settings,
  task: problem.Problem,
  runs: Sequence[Run],
  rules: Mapping[str, Rules],
  found: results.Results,
  mesh: Mesh | None,
) -> None:
  """Trains every curve from every seed, and adds each curve to the results."""
  axis_name = None if mesh is None else parallel.AXIS
  data = partial(problem.whitening_data, task)
  energies: dict[tuple[str, int], Any] = {}
  for run in runs:
    histories: dict[int, list[dict[str, Any]]] = {}
    diverged: dict[int, int] = {}
    scores: list[dict[str, float]] = []
    own_rules = rules.get(run.name, own)
    setup = Setup(own_rules, own_rules.energy_optimizer(), axis_name, data)
    algorithm = run.build(setup)
    for seed in own.seeds:
      folder = Path(own.workdir) / run.name / f"seed_{seed}"
      energy = energies.get((run.energy_from, seed)) if run.energy_from else None
      if run.energy_from and energy is None:
        diverged[seed] = found.diverged[run.energy_from, seed]
        continue
      evaluator = found.evaluator if run.has_generator else None
      try:
        fit = train(
          task,
          algorithm,
          seed,
          own,
          run.label,
          folder,
          evaluator=evaluator,
          energy=energy,
          mesh=mesh,
        )
      except training.TrainingDiverged as error:
        print(f"{run.label}, seed {seed}: {error}", file=sys.stderr)
        diverged[seed] = found.diverged[run.name, seed] = error.step
        continue
      except AnotherRun as error:  # the data is not that of the checkpoints
        sys.exit(f"{run.label}, seed {seed}: {error}")
      histories[seed] = fit.history
      energies[run.name, seed] = energy_params(fit.state)
      if evaluator is not None and parallel.is_first_process():
        last, record = fit.history[-1]["step"], folder / "scores.json"
        scores.append(
          generators.finished_scores(
            evaluator, fit.state, last, own.num_samples, record
          )
        )
    if parallel.is_first_process():
      found.add(run, histories, diverged, scores, energies)


if __name__ == "__main__":
  settings.run(devices.ending_together(main), Settings)
