"""Tables and curves of a summary.json of experiments.known_density."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

FEW = 30
"""An effective sample size below which a KL by importance sampling is too low."""

Table = tuple[str, list[str], list[list[str]]]
"""A title, a header and rows."""


def tables_of(summary: Mapping[str, Any]) -> list[Table]:
  """The KL of all rules on all truths, then a table for each truth."""
  return [_overview(summary), *(_of_truth(summary, t) for t in summary["cells"])]


def _rules(summary: Mapping[str, Any]) -> list[str]:
  """The rules with any result: the oracles first."""
  cells = summary["cells"].values()
  found = [r for r in summary["labels"] if any(r in of_truth for of_truth in cells)]
  return sorted(found, key=lambda rule: rule not in summary["oracles"])


def _label(summary: Mapping[str, Any], rule: str) -> str:
  label = summary["labels"][rule]
  return f"*{label}*" if rule in summary["oracles"] else label


def _overview(summary: Mapping[str, Any]) -> Table:
  truths = list(summary["cells"])
  rows = [
    [
      _label(summary, rule),
      *(_kl(summary["cells"][truth].get(rule)) for truth in truths),
    ]
    for rule in _rules(summary)
  ]
  gaussian = [_number(summary["gaussian"][truth]) for truth in truths]
  rows.insert(0, ["*Gaussian with the mean and covariance of the data*", *gaussian])
  title = f"KL(p* ‖ p) in nats after {summary['flags']['steps']} steps, mean ± sd"
  return title, ["rule", *truths], rows


def _kl(cell: Mapping[str, Any] | None) -> str:
  """Mean ± sample standard deviation over the seeds."""
  if cell is None:
    return ""
  tests, lost = cell["tests"], len(cell["diverged"])
  note = f" ({lost} diverged)" if lost else ""
  if not tests:
    return f"all {lost} diverged"
  return _at_least(tests) + _spread([test["kl"]["value"] for test in tests]) + note


def _at_least(tests: Sequence[Mapping[str, Any]]) -> str:
  few = min(test["effective_sample_size"] for test in tests) < FEW
  return "≥ " if few else ""


def _spread(values: Sequence[float]) -> str:
  spread = f" ± {_number(np.std(values, ddof=1))}" if len(values) > 1 else ""
  return f"{_number(np.mean(values))}{spread}"


def _number(value: Any) -> str:
  """Three decimals below 10, one from there on."""
  return f"{value:.3f}" if abs(value) < 10 else f"{value:.3g}"


def _of_truth(summary: Mapping[str, Any], truth: str) -> Table:
  flags = summary["flags"]
  timed = float(flags["seconds"])
  header = [
    truth,
    f"KL after {flags['steps']} steps",
    "standard error",
    *([f"KL after {timed:g} s"] if timed else []),
    "KL, chosen by data alone",
    "effective sample size",
    "Fisher",
    "Var",
    "slope",
    "mass error",
    "ms a step",
    "compile s",
    "learning rate",
    "number",
  ]
  rows = []
  for rule in _rules(summary):
    cell = summary["cells"][truth].get(rule)
    if cell is None:
      continue
    row = [_label(summary, rule), _kl(cell), *_measured(cell["tests"], cell, timed)]
    number = summary["numbers"][rule]
    factor = f"{number} = {cell['factor']:.2g}" if number and cell["factor"] else ""
    rate = "" if cell["rate"] is None else f"{cell['rate']:.1e}"
    ms = "" if cell["ms"] is None else f"{cell['ms']:.2f}"
    seconds = cell["compile_seconds"]
    compiled = "" if seconds is None else f"{seconds:.1f}"
    rows.append([*row, ms, compiled, rate, factor])
  return f"{truth}: means over seeds", header, rows


def _measured(
  tests: Sequence[Mapping[str, Any]], cell: Mapping[str, Any], timed: float
) -> list[str]:
  """From the standard error to the error of the modes' masses."""
  at_time = []
  if timed:
    of_time = (cell["seconds"] or {}).get("test")
    at_time = [""] if of_time is None else [_kl({"tests": [of_time], "diverged": []})]
  by_data = cell["kl_by_data_alone"]
  alone = "" if by_data is None else _number(by_data)
  if not tests:
    return ["", *at_time, alone, *[""] * 5]

  def mean(values: Sequence[Any]) -> str:
    known = [value for value in values if value is not None]
    return _number(np.mean(known)) if known else ""

  return [
    mean([test["kl"]["error"] for test in tests]),
    *at_time,
    alone,
    f"{min(test['effective_sample_size'] for test in tests):.0f}",
    mean([test["fisher"]["value"] for test in tests]),
    mean([test["variance"]["value"] for test in tests]),
    mean([test["slope"] for test in tests]),
    mean([test["mode_mass_error"] for test in tests]),
  ]


def curves(summary: Mapping[str, Any]) -> dict[str, dict[str, Mapping[str, Any]]]:
  """truth -> label -> {"seconds", "mean", "low", "high", "oracle"} of the KL."""
  found: dict[str, dict[str, Mapping[str, Any]]] = {}
  for truth, cells in summary["cells"].items():
    found[truth] = {}
    for rule in _rules(summary):
      cell = cells.get(rule)
      if cell is None or cell["curve"] is None or cell["ms"] is None:
        continue
      seconds = np.asarray(cell["curve"]["steps"]) * cell["ms"] / 1e3
      found[truth][summary["labels"][rule]] = {
        **{key: np.asarray(cell["curve"][key]) for key in ("mean", "low", "high")},
        "seconds": seconds,
        "oracle": rule in summary["oracles"],
      }
  return found
