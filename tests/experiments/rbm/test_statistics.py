"""Summaries and tables, by hand-made numbers."""

import numpy as np
import pytest

from experiments.rbm import statistics
from experiments.rbm import tables as rbm_tables


def test_summary_by_hand():
  def rows(values):
    return [
      {"step": step, "ms_per_step": ms}
      | {f"log_likelihood/{split}": value + shift for split, shift in shifts.items()}
      for step, (value, ms) in enumerate(zip(values, (None, 2.0, 4.0)))
    ]

  shifts = {"test": 0.0, "train": 1.0, "validation": -1.0}
  summary = statistics.summarize({0: rows([-9, -5, -6]), 7: rows([-9, -8, -4])})
  assert summary["final"]["test"]["values"] == [-6, -4]
  assert summary["final"]["test"]["mean"] == -5
  assert summary["final"]["test"]["sd"] == pytest.approx(np.sqrt(2))
  assert summary["best_on_validation"]["steps"] == [1, 2]
  assert summary["best_on_validation"]["test"]["mean"] == -4.5
  assert summary["ms_per_step"] == 3.0
  assert summary["curve"]["mean"] == [-9, -6.5, -5]
  longer = statistics.summarize({0: rows([-9, -5, -6]), 7: rows([-9, -8])})
  assert longer["curve"]["steps"] == [0, 1]
  assert longer["curve"]["mean"] == [-9, -6.5]


def test_summaries_side_by_side():
  def summary(baseline, **finals):
    methods = {
      label: {
        "final": {"test": entry, "train": entry},
        "best_on_validation": {"test": entry},
        "ms_per_step": None,
      }
      for label, mean in finals.items()
      for entry in [{"mean": mean, "sd": 0.25, "values": [mean] * 2}]
    }
    return {"gaussian_baseline": {"mean": baseline}, "methods": methods}

  text = rbm_tables.markdown_side_by_side(
    {"one": summary(-9.0, a=-5.0, b=-4.0), "two": summary(-8.0, b=-3.0)}
  )
  assert text.splitlines() == [
    "| test, final | one | two |",
    "| --- | --- | --- |",
    "| N(mean, I) | -9.00 | -8.00 |",
    "| b | -4.00 ± 0.25 | -3.00 ± 0.25 |",
  ]
