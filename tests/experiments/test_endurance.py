"""The command that kills runs: its short form, and that it sees what goes wrong."""

import json

import numpy as np
import pytest

from experiments import endurance
from experiments.shared import summaries, workdirs
from tests import binaries


@pytest.mark.parametrize(
  "options",
  [
    ("--algorithms=cd", "--scenarios=kill", "--kills=1", "--steps=150"),
    pytest.param(("--kills=2",), marks=pytest.mark.slow),
  ],
  ids=["short", "whole"],
)
def test_every_run_ends_as_the_untouched_one(options, tmp_path):
  result = binaries.run(
    "endurance", *options, "--noprogress", f"--workdir={tmp_path}", timeout=3600
  )
  assert result.returncode == 0, result.stderr
  summary = json.loads((tmp_path / "summary.json").read_text())
  algorithms = summary["algorithms"].values()
  for name in next(iter(algorithms)):
    results = [found[name] for found in algorithms]
    assert [result["failure"] for result in results] == [None] * len(results)
    times, runs = sum(result["times"] for result in results), len(results)
    assert times >= runs > 0
    assert f"| {name} | {times} | {runs} | {runs} |" in result.stdout
  assert not (tmp_path / "runs").exists()


def test_what_was_done_is_not_done_again(tmp_path):
  options = ("--algorithms=cd,svgd", "--scenarios=kill", f"--workdir={tmp_path}")
  done = {"kill": {"times": 3, "failure": None}}
  own = endurance.Settings(
    algorithms=("cd", "svgd"), scenarios=("kill",), workdir=str(tmp_path)
  )
  workdirs.prepare(own)
  summaries.write(own, {"algorithms": {"cd": done, "svgd": done}})
  result = binaries.run("endurance", *options, timeout=600)
  assert result.returncode == 0, result.stderr
  assert "| kill | 6 | 2 | 2 |" in result.stdout


def test_what_failed_is_named_and_done_again():
  results = {
    "kill": {"times": 2, "failure": "a row is torn"},
    "full": {"times": 3, "failure": None},
  }
  assert endurance.failures(results) == ["kill: a row is torn"]


@pytest.fixture
def two_runs(tmp_path):
  """The folders of two runs that ended alike."""
  for name in ("one", "other"):
    folder = tmp_path / name
    folder.mkdir()
    np.savez(folder / "final.npz", np.arange(3.0))
    rows = [{"step": 5, "loss": 1.0, "ms_per_step": len(name)}, {"step": 10, "loss": 2}]
    (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in rows))
  return tmp_path / "one", tmp_path / "other"


def test_equal_runs_are_equal(two_runs):
  endurance.compare(*two_runs)


def lost(rows):
  return rows[:1]


def doubled(rows):
  return [rows[0], *rows]


def torn(rows):
  return [rows[0], rows[1][:9]]


@pytest.mark.parametrize("damage", [lost, doubled, torn])
def test_rows_that_differ_are_seen(damage, two_runs):
  path = two_runs[0] / "metrics.jsonl"
  rows = path.read_text().splitlines()
  path.write_text("\n".join(damage(rows)) + "\n")
  with pytest.raises(endurance.Ended, match=r"rows|row is torn"):
    endurance.compare(*two_runs)


def test_another_bit_of_the_state_is_seen(two_runs):
  np.savez(two_runs[0] / "final.npz", np.nextafter(np.arange(3.0), 9))
  with pytest.raises(endurance.Ended, match="other bits"):
    endurance.compare(*two_runs)
