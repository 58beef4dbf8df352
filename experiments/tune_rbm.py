"""Tunes every learning rule of experiments.mnist_rbm with the same budget.

  python -m experiments.tune_rbm --flagfile=experiments/flags/tune_rbm.flags

Every curve gets --budget runs of the full length: the flags' own settings first, then
learning rates, schedules and step sizes drawn from a Sobol sequence that all methods
share. A run is judged by the exact log-likelihood of the validation set at its last
step; the test set is not looked at. The winners are written to --write_flags as a
flagfile for experiments.mnist_rbm, all trials to summary.json in --workdir. A search
that was stopped goes on where it stopped. All of MNIST takes about half an hour.
"""

import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import scipy.stats.qmc
from absl import app, flags, logging
from tqdm import tqdm

from experiments import mnist_rbm, rbm_summary
from experiments.rbm import (
  flags_of_rules as rbm_flags,
)
from experiments.rbm import (
  methods as rbm_methods,
)
from experiments.rbm import (
  problem as rbm_problem,
)
from experiments.shared import (
  common,
  plots,
  workdirs,
)
from stein_jax import training

_BUDGET = flags.DEFINE_integer(
  "budget", 12, "How many runs each curve gets.", lower_bound=1
)
_WRITE_FLAGS = flags.DEFINE_string(
  "write_flags", None, "Where the winners' flagfile goes; by default in --workdir."
)
_FROM_SUMMARY = flags.DEFINE_string(
  "from_summary", None, "Print the table of this summary.json in Markdown and exit."
)
flags.adopt_module_key_flags(mnist_rbm)

LEARNING_RATES = (1e-4, 3e-3)
STEP_SIZES = {
  "langevin_step_size": (0.05, 1.0),
  "step_size": (0.01, 3.0),
  "stein_step_size": (0.2, 1.2),
}
"""Ranges of the search, logarithmic; which step size a curve has follows its name."""


def main(argv: list[str]) -> None:
  common.refuse_arguments(argv)
  if _FROM_SUMMARY.value:
    print(markdown(common.read_summary(_FROM_SUMMARY.value)))
    return
  logging.set_verbosity(logging.WARNING)
  base = rbm_flags.settings()
  runs = mnist_rbm.runs_of_flags(base)
  if any(run.has_generator for run in runs):
    sys.exit("tuning is for methods that learn an energy alone, without a generator.")
  if len(base.langevin_step_size) > 1 or flags.FLAGS["overrides"].value:
    sys.exit("tuning chooses --langevin_step_size (give one) and --overrides itself.")
  if any(flags.FLAGS[name].value for name in common.DEVICES):
    sys.exit("tuning runs on one device: start several with methods of their own.")
  workdir = Path(flags.FLAGS["workdir"].value)
  values = {
    name: value
    for module in ("method", "budget")
    for name, value in workdirs.own_flags(module).items()
    if name not in {"seeds", "write_flags", *common.OWN}
  }
  overwrite = flags.FLAGS["overwrite"].value
  workdirs.check(
    workdir,
    values,
    may_differ=common.ELSEWHERE,
    may_grow={"method", "budget"},
    overwrite=overwrite,
  )
  problem = rbm_problem.load(flags.FLAGS["batch_size"].value)
  workdirs.prepare(workdir, values, overwrite=overwrite)
  record = workdir / "trials.jsonl"
  done = _trials(record)
  known = {(trial["curve"], trial["place"]) for trial in done}
  planned = [
    (run, place, own)
    for run in runs
    for place, own in enumerate(candidates(run.name, _BUDGET.value))
  ]
  planned = [plan for plan in planned if (plan[0].name, plan[1]) not in known]
  bar = tqdm(planned, disable=not flags.FLAGS["progress"].value)
  flags.FLAGS["progress"].value = False  # one bar for all runs, not one for each
  for run, place, own in bar:
    bar.set_description(f"{run.label}, {place + 1} of {_BUDGET.value}")
    trial = {"curve": run.name, "label": run.label, "place": place, "settings": own}
    trial["validation"] = _validation(problem, run, own)
    done.append(trial)
    with record.open("a") as file:
      file.write(json.dumps(trial) + "\n")
  summary = {
    "command": f"python -m experiments.tune_rbm --flagfile={workdir / 'flags.txt'}",
    "budget": _BUDGET.value,
    "flags": workdirs.own_flags("method"),
    "ranges": {"learning_rate": LEARNING_RATES, **STEP_SIZES},
    "trials": [trial for trial in done if trial["place"] < _BUDGET.value],
  }
  (workdir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
  flagfile = Path(_WRITE_FLAGS.value or workdir / "figure1a_tuned.flags")
  flagfile.write_text(winners_flagfile(summary))
  print(plots.table(HEADER, rows(summary)))
  print(f"\nThe winners' flagfile: {flagfile}. All trials: {workdir / 'summary.json'}")


def _trials(record: Path) -> list[dict[str, Any]]:
  """The trials of a search that was stopped, less a line that was cut off."""
  if not record.exists():
    return []
  *whole, _ = record.read_text().split("\n")
  record.write_text("".join(f"{line}\n" for line in whole))
  return [json.loads(line) for line in whole]


def candidates(curve: str, budget: int) -> list[dict[str, Any]]:
  """Settings to try: none of one's own first, then points of one Sobol sequence.

  The k-th candidates of all curves have the same learning rate and schedule, and step
  sizes at the same place of their ranges.
  """
  # Drawn by a power of two, over which the sequence is balanced, and then cut; its
  # first point is the corner of the ranges.
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
  if curve.startswith(("cd_", "pcd_")):
    return "langevin_step_size"
  if curve.startswith(("stein_cd_regularized", "stein_cd_refreshed")):
    return "stein_step_size"
  return "step_size" if curve.startswith("stein_cd") else None


def _log_between(place: float, ends: tuple[float, float]) -> float:
  """The number at this place, 0 to 1, of a logarithmic range; to three digits."""
  return float(f"{ends[0] * (ends[1] / ends[0]) ** place:.3g}")


def _validation(
  problem: rbm_problem.Problem, run: rbm_methods.Run, own: Mapping[str, Any]
) -> float | None:
  """The validation log-likelihood of the last step; None where the run diverged."""
  settings = rbm_flags.settings(own)
  try:
    fit = mnist_rbm.train(problem, run.build(settings), 0, run.label, None)
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
  return rbm_summary.markdown_table(HEADER, rows(summary))


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
  flags.FLAGS.set_default("workdir", "runs/tune_rbm")
  app.run(main)
