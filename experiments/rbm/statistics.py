"""Means and standard deviations over seeds, for summary.json."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

SPLITS = ("test", "train", "validation")


def summarize(histories: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
  """Summarises the seeds of one method.

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
  # A run that was continued has one more evaluation, at the step where it first ended.
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


def _nats_over_seeds(rows: Sequence[Mapping[str, Any]], split: str) -> dict[str, Any]:
  return over_seeds([row[f"log_likelihood/{split}"] for row in rows])


def over_seeds(numbers: Sequence[float]) -> dict[str, Any]:
  """Mean, standard deviation and values of a number over seeds."""
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
