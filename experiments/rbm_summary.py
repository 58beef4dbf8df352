"""From the histories of runs to `summary.json`, the figure's curves and the table.

  python -m experiments.rbm_summary experiments/results/figure1a/summary.json

prints the table of a summary in Markdown, as it stands in the README; a number after
the path prints instead every seed's test log-likelihood at that step, the word samples
the scores of the generators' samples, and several paths the final test log-likelihoods
side by side.
"""

import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SPLITS = ("test", "train", "validation")


def summarize(histories: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
  """What the seeds of one method came to.

  Args:
    histories: seed -> the rows of `training.fit`, of which those that hold
      "log_likelihood/test" are evaluations.

  Returns:
    `final` and `best_on_validation`, each with mean, sd and values over seeds of the
    mean log-likelihood per split in nats; `ms_per_step`, the median over all windows
    without compilation; and `curve`, the test log-likelihood over steps.
  """
  evaluations = {
    seed: [row for row in rows if f"log_likelihood/{SPLITS[0]}" in row]
    for seed, rows in histories.items()
  }
  final = [rows[-1] for rows in evaluations.values()]
  best = [
    max(rows, key=lambda row: row["log_likelihood/validation"])
    for rows in evaluations.values()
  ]
  timings = [
    row["ms_per_step"]
    for rows in histories.values()
    for row in rows
    if row.get("ms_per_step") is not None
  ]
  by_step = [
    {row["step"]: row["log_likelihood/test"] for row in rows}
    for rows in evaluations.values()
  ]
  # A run that was continued may have one evaluation more, where it first ended.
  steps = sorted(set.intersection(*map(set, by_step)))
  test = np.array([[values[step] for step in steps] for values in by_step])
  return {
    "seeds": list(histories),
    "final": {split: _nats_over_seeds(final, split) for split in SPLITS},
    "best_on_validation": {
      **{split: _nats_over_seeds(best, split) for split in SPLITS},
      "steps": [row["step"] for row in best],
    },
    "ms_per_step": float(np.median(timings)) if timings else None,
    "curve": {
      "steps": steps,
      "mean": test.mean(axis=0).tolist(),
      "sd": _sd(test).tolist(),
      "values": test.tolist(),
    },
  }


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
  return markdown_table(SAMPLES_HEADER, samples_rows(summary))


def markdown(summary: Mapping[str, Any]) -> str:
  """The table of a `summary.json` in Markdown."""
  lines = rows(summary["methods"], summary["gaussian_baseline"]["mean"])
  return markdown_table(HEADER, lines)


def markdown_side_by_side(summaries: Mapping[str, Mapping[str, Any]]) -> str:
  """Final test log-likelihoods of several summaries, a column for each name.

  Methods that one of the summaries lacks are left out.
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
  return markdown_table(("test, final", *summaries), lines)


def markdown_at(summary: Mapping[str, Any], step: int) -> str:
  """Test log-likelihoods in nats after so many steps, a column for each seed."""
  curves = {k: m["curve"] for k, m in summary["methods"].items() if "curve" in m}
  seeds = next(m["seeds"] for m in summary["methods"].values() if "seeds" in m)
  header = [f"after {step} steps", *(f"seed {seed}" for seed in seeds)]
  lines = []
  for label, curve in curves.items():
    if step not in curve["steps"]:
      raise ValueError(f"{label} was not evaluated at step {step}: {curve['steps']}")
    place = curve["steps"].index(step)
    lines.append([label, *(f"{values[place]:.2f}" for values in curve["values"])])
  return markdown_table(header, lines)


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A table in Markdown, as `plots.table` is in plain text."""
  rule = ["---"] * len(header)
  return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, rule, *rows))


def _nats_over_seeds(rows: Sequence[Mapping[str, Any]], split: str) -> dict[str, Any]:
  return over_seeds([row[f"log_likelihood/{split}"] for row in rows])


def over_seeds(numbers: Sequence[float]) -> dict[str, Any]:
  """Mean, standard deviation and values of one number of every seed."""
  values = np.array(numbers)
  return {
    "mean": float(values.mean()),
    "sd": float(_sd(values[:, None])[0]),
    "values": values.tolist(),
  }


def _sd(values: np.ndarray) -> np.ndarray:
  """The sample standard deviation over seeds (axis 0); 0 for a single seed."""
  if len(values) < 2:
    return np.zeros(values.shape[1:])
  return values.std(axis=0, ddof=1)


def _nats(entry: Mapping[str, Any]) -> str:
  if not math.isfinite(entry["mean"]):
    return str(entry["mean"])
  spread = f" ± {entry['sd']:.2f}" if len(entry["values"]) > 1 else ""
  return f"{entry['mean']:.2f}{spread}"


def main(arguments: Sequence[str]) -> str:
  """What the command line prints."""
  last = arguments[-1] if arguments else ""
  special = last == "samples" or last.isdigit()
  paths = [Path(text) for text in (arguments[:-1] if special else arguments)]
  if not paths or (special and len(paths) > 1):
    sys.exit(__doc__)
  summaries = {path.parent.name: json.loads(path.read_text()) for path in paths}
  if len(summaries) > 1:
    return markdown_side_by_side(summaries)
  (summary,) = summaries.values()
  if last == "samples":
    return markdown_samples(summary)
  return markdown_at(summary, int(last)) if special else markdown(summary)


if __name__ == "__main__":
  print(main(sys.argv[1:]))
