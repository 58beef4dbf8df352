"""Seconds from steps by hand-made numbers, and PyTorch's CD against ours."""

import functools
import json
import os

import pytest

from experiments import time_to_quality
from experiments.shared import plots
from tests import binaries
from tests.experiments.rbm.test_timed_curves import a_run, summary_of


def write(path, summary):
  path.write_text(json.dumps(summary))
  return path


run_binary = functools.partial(binaries.run, "time_to_quality")


def test_markdown():
  summary = json.loads(json.dumps(summary_of({"a": a_run()})))
  assert time_to_quality.markdown(summary).splitlines() == [
    "| method | ms/step | s to 1 nat | s to 0.5 nats | s to 0.2 nats | test, final |",
    "| --- | --- | --- | --- | --- | --- |",
    "| exact MLE | 2.00 | 0.20 | 0.40 | 0.40 | -5.00 |",
  ]


def test_the_picture_is_drawn(tmp_path):
  methods = summary_of({"a": a_run()})["methods"]
  curve = methods["exact MLE"]["curve"]
  only_the_start = {key: values[:1] for key, values in curve.items()}
  plots.likelihood_by_seconds(
    tmp_path / "p.png",
    {
      "exact MLE": curve | {"peer": False},
      "theirs": curve | {"peer": True},
      "stopped": only_the_start | {"peer": True},
    },
    baseline=-8.0,
    title="by hand",
  )
  assert (tmp_path / "p.png").stat().st_size > 10_000


def test_without_torch_only_our_curves_are_shown_with_a_message(tmp_path):
  run = write(tmp_path / "run.json", a_run())
  no_torch = tmp_path / "path"
  no_torch.mkdir()
  (no_torch / "torch.py").write_text("raise ImportError('none here')")
  workdir = tmp_path / "w"
  path = os.pathsep.join([str(no_torch), os.environ.get("PYTHONPATH", "")])
  shown = run_binary(f"--runs={run}", f"--workdir={workdir}", PYTHONPATH=path)
  assert shown.returncode == 0, shown.stderr
  assert "PyTorch is left out" in shown.stdout
  assert "pip install -e '.[peers]'" in shown.stdout
  assert "exact MLE" in shown.stdout
  assert (workdir / "time_to_quality.png").stat().st_size > 10_000
  summary = json.loads((workdir / "summary.json").read_text())
  assert summary["problem"]["dataset"] == "mnist5k"
  assert "torch" not in summary["environment"]

  table = run_binary(f"--from_summary={workdir / 'summary.json'}")
  assert table.stdout.strip() == time_to_quality.markdown(summary)


@pytest.mark.parametrize(
  ("arguments", "word"),
  [
    ([], "--runs"),
    (["--runs={run}", "--peer_k=0"], "--peer_k"),
    (["--runs={run}", "--peer_kinds=magic"], "--peer_kinds"),
    (["--runs={run}", "--langevin_step_size=nan"], "--langevin_step_size"),
  ],
)
def test_wrong_usage_ends_before_any_work(arguments, word, tmp_path):
  run = write(tmp_path / "run.json", a_run())
  arguments = [argument.format(run=run) for argument in arguments]
  result = run_binary(*arguments, f"--workdir={tmp_path / 'w'}")
  assert result.returncode != 0
  assert word in result.stderr
  assert "Traceback" not in result.stderr
  assert not (tmp_path / "w").exists()


# --------------------------------------------------- PyTorch, where it is installed
