"""Curves over seconds, from the curves over steps of finished runs."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.rbm.training import Training
from experiments.shared import settings, summaries

REFERENCE = "exact MLE"
TARGETS = (1.0, 0.5, 0.2)  # nats below the reference's last value

HEADER = (
  "method",
  "ms/step",
  *(f"s to {target:g} nat{'s' * (target != 1)}" for target in TARGETS),
  "test, final",
)

# Settings that all runs must share, and that PyTorch's training gets.
_PROBLEM = (
  "dataset",
  "validation",
  "num_hidden",
  "weight_scale",
  "batch_size",
  "learning_rate",
  "adam_b1",
)
# Settings that all runs must share, of which PyTorch's training has the defaults only.
_BY_DEFAULT = ("initialization", "optimizer", "schedule", "center", "scale")


def read_run(path: str) -> dict[str, Any]:
  """A summary.json of experiments.mnist_rbm; else the program ends with a message."""
  run = summaries.read(path, flag="--runs=")
  wanted = ("methods", "flags", "gaussian_baseline", "environment")
  missing = [key for key in wanted if key not in run]
  if missing:
    sys.exit(
      f"--runs={path} is not a summary of experiments.mnist_rbm: it has no "
      f"{', '.join(missing)}."
    )
  try:
    has_curve = any("curve" in method for method in run["methods"].values())
  except (TypeError, AttributeError) as error:
    sys.exit(f"--runs={path} is not a summary of experiments.mnist_rbm: {error}.")
  if not has_curve:
    sys.exit(f"--runs={path} holds no curve: no method has finished there.")
  return run


def problem_of(runs: Mapping[str, Mapping[str, Any]], *, peers: bool) -> dict[str, Any]:
  """What the runs have in common: data, model and optimizer.

  Args:
    runs: path -> summary.
    peers: whether PyTorch trains too.
  """
  (first, run), *others = runs.items()
  defaults = {name: settings.record(Training())[name] for name in _BY_DEFAULT}
  for path, other in others:
    differ = [
      f"--{name}: {run['flags'].get(name, default)} in {first}, "
      f"{other['flags'].get(name, default)} in {path}"
      for name, default in (dict.fromkeys(_PROBLEM) | defaults).items()
      if run["flags"].get(name, default) != other["flags"].get(name, default)
    ]
    if differ:
      settings.wrong_usage(f"--runs differ in what they solve ({'; '.join(differ)}).")
  unknown = [
    f"--{name}={run['flags'][name]}"
    for name, only in defaults.items()
    if run["flags"].get(name, only) != only
  ]
  if peers and unknown:
    settings.wrong_usage(
      f"The PyTorch training does not support {', '.join(unknown)}, which {first} "
      "used. Use --peers=false to leave PyTorch out."
    )
  missing = [name for name in _PROBLEM if name not in run["flags"]]
  if missing:
    sys.exit(f"--runs={first} has no record of --{', --'.join(missing)}.")
  known = Training(**{name: run["flags"][name] for name in _PROBLEM})
  return {name: getattr(known, name) for name in _PROBLEM}


def ours(runs: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
  """label -> a method's curve over seconds, from the curves over steps of all runs.

  If several runs have a label, the first run's curve is taken.
  """
  methods: dict[str, dict[str, Any]] = {}
  for path, run in runs.items():
    for label, method in run["methods"].items():
      if "curve" not in method or method["ms_per_step"] is None:
        lacks = "curve" if "curve" not in method else "ms/step"
        print(f"{label} of {path} is left out: it has no {lacks}.", file=sys.stderr)
      elif label in methods:
        used = methods[label]["from"]
        print(f"{label} is taken from {used}, not from {path}.", file=sys.stderr)
      else:
        curve = method["curve"]
        methods[label] = {
          "peer": False,
          "from": path,
          "seeds": method["seeds"],
          "ms_per_step": method["ms_per_step"],
          "curve": {key: curve[key] for key in ("steps", "mean", "sd")}
          | {"seconds": seconds(curve["steps"], method["ms_per_step"])},
        }
  if REFERENCE not in methods:
    settings.wrong_usage(
      f"--runs must hold a timed curve of {REFERENCE}: mnist_rbm --method=mle."
    )
  return methods


def with_times(methods: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
  """The methods, each with `seconds_to`: target -> seconds, None if never reached."""
  best = methods[REFERENCE]["curve"]["mean"][-1]

  def seconds_to(curve: Mapping[str, Sequence[float]], target: float) -> float | None:
    reached = (s for s, v in zip(curve["seconds"], curve["mean"]) if v >= best - target)
    return next(reached, None)

  return {
    "yardstick": {"method": REFERENCE, "final": best},
    "methods": {
      label: {
        **method,
        "seconds_to": {
          str(target): seconds_to(method["curve"], target) for target in TARGETS
        },
      }
      for label, method in methods.items()
    },
  }


def rows(summary: Mapping[str, Any]) -> list[list[str]]:
  """The rows under `HEADER`: milliseconds, seconds and nats (mean ± sd over seeds)."""
  return [
    [
      label,
      f"{method['ms_per_step']:.2f}",
      *("—" if s is None else f"{s:.2f}" for s in method["seconds_to"].values()),
      f"{method['curve']['mean'][-1]:.2f}"
      + (f" ± {method['curve']['sd'][-1]:.2f}" if len(method["seeds"]) > 1 else ""),
    ]
    for label, method in summary["methods"].items()
  ]


def seconds(steps: Sequence[int], ms_per_step: float) -> list[float]:
  """The seconds of training after each number of steps."""
  return [step * ms_per_step / 1000 for step in steps]
