"""Tunes every learning rule of experiments.mnist_rbm with the same budget.

  python -m experiments.tune_rbm --flagfile=experiments/flags/tune_rbm.flags

Every curve gets --budget runs of the full length: the flags' own settings first, then
learning rates, schedules and step sizes drawn from a Sobol sequence that all methods
share. The criterion is the exact log-likelihood of the validation set at the last step;
the test set is not used. The winners are written to --write_flags as a flagfile for
experiments.mnist_rbm, all trials to summary.json in --workdir. If a search was stopped,
the same command continues it. All of MNIST takes about half an hour.
"""

import dataclasses
import math
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import scipy.stats.qmc
from tqdm import tqdm

from experiments.rbm import problem
from experiments.rbm.runs import Run, Setup
from experiments.rbm.training import Training, runs_of, train
from experiments.shared import (
  devices,
  folders,
  logs,
  runlog,
  settings,
  summaries,
  tables,
  workdirs,
)
from experiments.shared.settings import setting
from stein_jax import training
from stein_jax.training.files import write_atomically


@dataclasses.dataclass(frozen=True)
class Settings(summaries.FromSummary, Training):
  """The settings of this command."""

  command: ClassVar[str] = "experiments.tune_rbm"
  files: ClassVar[tuple[str, ...]] = ("trials.jsonl", "figure1a_tuned.flags")

  workdir: str = settings.like(workdirs.Run, "workdir", default="runs/tune_rbm")
  seeds: tuple[int, ...] = settings.like(Training, "seeds", recorded=False)
  budget: int = setting(
    12, "The number of runs of each curve.", at_least=1, may_grow=True
  )
  write_flags: str | None = setting(
    None,
    "Where the winners' flagfile goes; by default in --workdir.",
    recorded=False,
  )


LEARNING_RATES = (1e-4, 3e-3)
STEP_SIZES = {
  "langevin_step_size": (0.05, 1.0),
  "step_size": (0.01, 3.0),
  "stein_step_size": (0.2, 1.2),
}
"""Logarithmic ranges of the search; the name of a curve says which step size it has."""


def main(own: Settings) -> None:
  if summaries.printed(own, markdown):
    return
  logs.quiet_checkpoints()
  runs = runs_of(own)
  if any(run.has_generator for run in runs):
    settings.wrong_usage(
      "tuning is for methods that learn an energy without a generator."
    )
  if len(own.langevin_step_size) > 1 or own.overrides:
    settings.wrong_usage(
      "tuning chooses --langevin_step_size (give one) and --overrides itself."
    )
  if devices.are_given(own):
    settings.wrong_usage(
      "tuning runs on one device: start several searches, each with some methods."
    )
  # Every trial has run to its end: more steps would be another search.
  workdirs.check(own, fixed=("steps", "mix"))
  if own.write_flags:
    workdirs.check_usable(_flagfile(own).parent, flag="write_flags")
  task = problem.load(own, own.batch_size)
  workdir = workdirs.prepare(own)
  trials = _run_trials(own, task, runs, workdir / "trials.jsonl")
  summary = {
    "command": f"python -m {own.command} --flagfile={workdir / 'flags.txt'}",
    "budget": own.budget,
    "flags": settings.record(own, of=Training),
    "ranges": {"learning_rate": LEARNING_RATES, **STEP_SIZES},
    "trials": [trial for trial in trials if trial["place"] < own.budget],
  }
  summaries.write_json(workdir / "summary.json", summary)
  flagfile = _flagfile(own)
  flagfile.parent.mkdir(parents=True, exist_ok=True)
  write_atomically(flagfile, winners_flagfile(summary))
  print(tables.plain(HEADER, rows(summary)))
  print(f"\nThe winners' flagfile: {flagfile}. All trials: {workdir / 'summary.json'}")


def _flagfile(own: Settings) -> Path:
  """Where the winners' flagfile goes."""
  if own.write_flags:
    return Path(folders.resolved(own.write_flags))
  return Path(own.workdir) / "figure1a_tuned.flags"


def _run_trials(
  own: Settings, task: problem.Problem, runs: list[Run], record: Path
) -> list[dict[str, Any]]:
  """All trials: those of the record, and those that are missing there, run now."""
  trials = runlog.read(record)
  known = {(trial["curve"], trial["place"]) for trial in trials}
  planned = [
    (run, index, changes)
    for run in runs
    for index, changes in enumerate(candidates(run.name, own.budget))
    if (run.name, index) not in known
  ]
  bar = tqdm(planned, disable=not own.progress)
  own = dataclasses.replace(own, progress=False)  # one bar, not one for each run
  for run, index, changes in bar:
    bar.set_description(f"{run.label}, {index + 1} of {own.budget}")
    trial = {"curve": run.name, "label": run.label, "place": index, "settings": changes}
    trial["validation"] = _validation(task, run, dataclasses.replace(own, **changes))
    trials.append(trial)
    runlog.append(record, trial)
  return trials


def candidates(curve: str, budget: int) -> list[dict[str, Any]]:
  """Settings to try: first no changes, then the points of a Sobol sequence.

  The k-th candidates of all curves have the same learning rate and schedule, and step
  sizes at the same fraction of their ranges.
  """
  # The sequence is balanced over a power of two; its first point is a corner of the
  # ranges, and left out.
  sequence = scipy.stats.qmc.Sobol(d=3, scramble=False)
  points = sequence.random_base2(math.ceil(math.log2(budget + 1)))[1:]
  step = step_size_of(curve)
  tried: list[dict[str, Any]] = [{}]
  for rate, schedule, size in points[: budget - 1].tolist():
    own: dict[str, Any] = {
      "learning_rate": _log_between(rate, LEARNING_RATES),
      "schedule": "constant" if schedule < 0.5 else "cosine",
    }
    if step:
      own[step] = _log_between(size, STEP_SIZES[step])
    tried.append(own)
  return tried


def step_size_of(curve: str) -> str | None:
  """The name of the step size that a curve has, if it has one."""
  if curve.startswith(("cd_", "pcd_", "chains", "mix_")):
    return "langevin_step_size"
  if curve.startswith(("stein_cd_regularized", "stein_cd_refreshed")):
    return "stein_step_size"
  return "step_size" if curve.startswith("stein_cd") else None


def _log_between(fraction: float, ends: tuple[float, float]) -> float:
  """The number at a fraction, 0 to 1, of a logarithmic range; to three digits."""
  return float(f"{ends[0] * (ends[1] / ends[0]) ** fraction:.3g}")


def _validation(task: problem.Problem, run: Run, own: Settings) -> float | None:
  """The validation log-likelihood of the last step; None if the run diverged."""
  data = partial(problem.whitening_data, task)
  algorithm = run.build(Setup(own, own.energy_optimizer(), data=data))
  try:
    fit = train(task, algorithm, 0, own, run.label)
  except training.TrainingDiverged:
    return None
  value = fit.history[-1]["log_likelihood/validation"]
  return value if math.isfinite(value) else None


HEADER = (
  "method",
  "learning rate",
  "schedule",
  "step size",
  "validation",
  "validation, default",
)


def winners(summary: Mapping[str, Any]) -> list[Mapping[str, Any]]:
  """The best trial of every curve."""
  best: dict[str, Mapping[str, Any]] = {}
  for trial in summary["trials"]:
    before = best.get(trial["curve"])
    if trial["validation"] is not None and (
      before is None or trial["validation"] > before["validation"]
    ):
      best[trial["curve"]] = trial
  return list(best.values())


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
  """The rows under `HEADER`: the winners, and the default's validation score."""
  default = {t["curve"]: t["validation"] for t in summary["trials"] if t["place"] == 0}
  lines = []
  for trial in winners(summary):
    own = trial["settings"]
    step = step_size_of(trial["curve"])
    untuned = default[trial["curve"]]
    lines.append(
      [
        trial["label"],
        str(own.get("learning_rate", "default")),
        own.get("schedule", "default"),
        str(own.get(step, "default")) if step else "",
        f"{trial['validation']:.2f}",
        "diverged" if untuned is None else f"{untuned:.2f}",
      ]
    )
  return lines


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of the winners in Markdown."""
  return tables.markdown(HEADER, rows(summary))


def winners_flagfile(summary: Mapping[str, Any]) -> str:
  """The flagfile of `experiments.mnist_rbm` with the winners' settings."""
  clauses = [
    f"{trial['curve']}: " + " ".join(f"{k}={v}" for k, v in trial["settings"].items())
    for trial in winners(summary)
    if trial["settings"]
  ]
  here = ("workdir", "data_dir", "cache_dir", "progress", "overwrite")
  own = {k: v for k, v in summary["flags"].items() if k not in here} | {
    "seeds": "0,1,2",
    "eval_every": "250",
    "workdir": "runs/figure1a_tuned",
    "overrides": "; ".join(clauses),
  }
  return (
    "# Figure 1(a) with the settings that experiments.tune_rbm chose for every method\n"
    f"# by {summary['budget']} runs each on the validation set.\n"
  ) + "".join(f"--{name}={value}\n" for name, value in own.items())


if __name__ == "__main__":
  settings.run(main, Settings)
