"""Seconds from steps, by hand-made numbers."""

import json

import pytest

from experiments.rbm import timed_curves

FLAGS = {
  "dataset": "mnist5k",
  "validation": "0.1",
  "num_hidden": "3",
  "weight_scale": "0.05",
  "batch_size": "100",
  "learning_rate": "0.0003",
  "adam_b1": "0.5",
  "initialization": "data_mean",
  "optimizer": "adam",
  "schedule": "constant",
}


def method(ms, mean, sd=(0.0, 0.0, 0.0), seeds=(0,)):
  return {
    "seeds": list(seeds),
    "ms_per_step": ms,
    "curve": {"steps": [0, 100, 200], "mean": list(mean), "sd": list(sd)},
  }


def a_run(**methods):
  return {
    "command": "python -m experiments.mnist_rbm",
    "flags": FLAGS,
    "methods": {"exact MLE": method(2.0, (-9.0, -6.0, -5.0)), **methods},
    "gaussian_baseline": {"mean": -8.0},
    "environment": {"jax": "0.10", "device": "cpu"},
  }


def summary_of(runs):
  return timed_curves.with_times(timed_curves.ours(runs))


def test_seconds_by_hand():
  fast = method(0.5, (-9.0, -5.5, -5.4), sd=(0.0, 0.0, 0.25), seeds=(0, 1))
  slow = method(30.0, (-9.0, -5.15, -7.0))  # falls again after it was reached
  summary = summary_of({"a": a_run(fast=fast, slow=slow)})
  assert summary["yardstick"] == {"method": "exact MLE", "final": -5.0}
  methods = summary["methods"]
  assert methods["exact MLE"]["curve"]["seconds"] == [0.0, 0.2, 0.4]
  assert methods["exact MLE"]["seconds_to"] == {"1.0": 0.2, "0.5": 0.4, "0.2": 0.4}
  assert methods["fast"]["seconds_to"] == {"1.0": 0.05, "0.5": 0.05, "0.2": None}
  assert methods["slow"]["seconds_to"] == {"1.0": 3.0, "0.5": 3.0, "0.2": 3.0}
  assert timed_curves.rows(summary) == [
    ["exact MLE", "2.00", "0.20", "0.40", "0.40", "-5.00"],
    ["fast", "0.50", "0.05", "0.05", "—", "-5.40 ± 0.25"],
    ["slow", "30.00", "3.00", "3.00", "3.00", "-7.00"],
  ]


def test_several_runs_and_methods_without_times(capsys):
  broken = {"diverged": {"0": 7}}
  runs = {
    "a": a_run(one=method(1.0, (-9, -8, -7)), broken=broken),
    "b": a_run(one=method(5.0, (-9, -8, -7)), untimed=method(None, (-9, -8, -7))),
  }
  methods = summary_of(runs)["methods"]
  assert list(methods) == ["exact MLE", "one"]
  assert methods["one"]["ms_per_step"] == 1.0
  said = capsys.readouterr().err
  assert "broken of a is left out: it has no curve" in said
  assert "untimed of b is left out: it has no ms/step" in said
  assert "one is taken from a, not from b" in said


@pytest.mark.parametrize(
  ("text", "words"),
  [
    (None, "No such file"),
    ("{", "Expecting property name"),
    ("[]", "holds no settings and results"),
    ("{}", "not a summary of experiments.mnist_rbm: it has no methods, flags"),
    (json.dumps(a_run() | {"methods": [1]}), "not a summary of"),
    (json.dumps(a_run() | {"methods": {"one": {"diverged": {}}}}), "holds no curve"),
  ],
)
def test_a_file_that_is_not_a_summary_ends_the_program(text, words, tmp_path):
  path = tmp_path / "summary.json"
  if text is not None:
    path.write_text(text)
  with pytest.raises(SystemExit, match=f"--runs={path}.*{words}"):
    timed_curves.read_run(str(path))


def test_runs_with_different_problems_end_the_program():
  def with_flags(**values):
    return a_run() | {"flags": FLAGS | values}

  problem = timed_curves.problem_of({"a": a_run()}, peers=True)
  assert problem["num_hidden"] == 3
  assert problem["learning_rate"] == 3e-4
  runs = {"a": a_run(), "b": with_flags(num_hidden="4")}
  with pytest.raises(SystemExit, match="--num_hidden: 3 in a, 4 in b"):
    timed_curves.problem_of(runs, peers=True)
  centered = {"a": with_flags(center="True")}
  with pytest.raises(SystemExit, match="does not support --center=True, which a used"):
    timed_curves.problem_of(centered, peers=True)
  timed_curves.problem_of(centered, peers=False)
  without_mle = a_run() | {"methods": {"one": method(1.0, (-9, -8, -7))}}
  with pytest.raises(SystemExit, match="exact MLE"):
    timed_curves.ours({"a": without_mle})
