"""The tables of a summary.json of experiments.mnist_rbm."""

import math
from collections.abc import Mapping
from typing import Any

from experiments.shared import tables

HEADER = ("method", "test, final", "test, best on validation", "train", "ms/step")


def rows(methods: Mapping[str, Mapping[str, Any]], baseline: float) -> list[list[str]]:
  """The rows under `HEADER`, in nats (mean ± sd over seeds) and milliseconds."""
  lines = [["N(mean, I)", f"{baseline:.2f}", "", "", ""]]
  for label, method in methods.items():
    if "diverged" in method:
      seeds = ", ".join(f"seed {s} at step {t}" for s, t in method["diverged"].items())
      lines.append([label, f"diverged: {seeds}", "", "", ""])
    if "final" not in method:
      continue
    ms = method["ms_per_step"]
    lines.append(
      [
        label,
        _nats(method["final"]["test"]),
        _nats(method["best_on_validation"]["test"]),
        _nats(method["final"]["train"]),
        "" if ms is None else f"{ms:.2f}",
      ]
    )
  return lines


SAMPLES_HEADER = (
  "samples of",
  "inception score",
  "label entropy",
  "distance",
  "Fréchet",
  "kernel distance",
  "precision",
  "recall",
  "KSD²",
  "KSD², exact",
)

_SAMPLE_SCORES = {
  "inception_score": ".2f",
  "label_entropy": ".2f",
  "mean_pairwise_distance": ".2f",
  "frechet_distance": ".1f",
  "kernel_inception_distance": ".3g",
  "precision": ".2f",
  "recall": ".2f",
  "ksd_squared": ".3g",
  "ksd_squared_of_exact_samples": ".2g",
}


def samples_rows(summary: Mapping[str, Any]) -> list[list[str]]:
  """The rows under `SAMPLES_HEADER`, means over seeds; none without a generator."""
  entries = {
    label: method["samples"]
    for label, method in summary["methods"].items()
    if "samples" in method
  }
  if not entries:
    return []
  real = {name: {"mean": v} for name, v in summary["test_images"].items()}
  return [
    [
      label,
      *(
        format(scores[name]["mean"], digits) if name in scores else ""
        for name, digits in _SAMPLE_SCORES.items()
      ),
    ]
    for label, scores in {"half of the test set": real, **entries}.items()
  ]


def markdown_samples(summary: Mapping[str, Any]) -> str:
  """The table of the generators' samples in Markdown."""
  return tables.markdown(SAMPLES_HEADER, samples_rows(summary))


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a `summary.json` in Markdown."""
  lines = rows(summary["methods"], summary["gaussian_baseline"]["mean"])
  return tables.markdown(HEADER, lines)


def markdown_side_by_side(summaries: Mapping[str, Mapping[str, Any]]) -> str:
  """Final test log-likelihoods of several summaries, a column for each name.

  Only methods that all summaries have are shown.
  """
  first, *others = (summary["methods"] for summary in summaries.values())
  labels = [label for label in first if all(label in other for other in others)]
  columns = [
    {
      row[0]: row[1]
      for row in rows(summary["methods"], summary["gaussian_baseline"]["mean"])
    }
    for summary in summaries.values()
  ]
  lines = [
    [label, *(column[label] for column in columns)] for label in ("N(mean, I)", *labels)
  ]
  return tables.markdown(("test, final", *summaries), lines)


def markdown_at(summary: Mapping[str, Any], step: int) -> str:
  """Test log-likelihoods in nats after this many steps, a column for each seed."""
  curves = {k: m["curve"] for k, m in summary["methods"].items() if "curve" in m}
  seeds = next(m["seeds"] for m in summary["methods"].values() if "seeds" in m)
  header = [f"after {step} steps", *(f"seed {seed}" for seed in seeds)]
  lines = []
  for label, curve in curves.items():
    if step not in curve["steps"]:
      raise ValueError(f"{label} was not evaluated at step {step}: {curve['steps']}")
    index = curve["steps"].index(step)
    lines.append([label, *(f"{values[index]:.2f}" for values in curve["values"])])
  return tables.markdown(header, lines)


def _nats(entry: Mapping[str, Any]) -> str:
  if not math.isfinite(entry["mean"]):
    return str(entry["mean"])
  spread = f" ± {entry['sd']:.2f}" if len(entry["values"]) > 1 else ""
  return f"{entry['mean']:.2f}{spread}"
