"""Tuning with equal budgets: candidates, winners, and continued searches."""

import json

import numpy as np
import pytest

from experiments import tune_rbm
from experiments.shared import runlog
from tests import binaries


def test_all_curves_try_the_same_rates_and_fractions_of_ranges():
  tried = {
    curve: tune_rbm.candidates(curve, 12) for curve in ("cd_10", "stein_cd", "mle")
  }
  assert all(len(own) == 12 and own[0] == {} for own in tried.values())
  shared = [
    [(t["learning_rate"], t["schedule"]) for t in own[1:]] for own in tried.values()
  ]
  assert shared[0] == shared[1] == shared[2]
  assert len(set(shared[0])) == 11
  rates = np.log([rate for rate, _ in shared[0]])
  low, high = np.log(tune_rbm.LEARNING_RATES)
  assert low < rates.min() < low + 0.2 * (high - low)
  assert high - 0.2 * (high - low) < rates.max() < high
  assert 4 <= sum(schedule == "cosine" for _, schedule in shared[0]) <= 7

  def fractions(curve):
    step = tune_rbm.step_size_of(curve)
    low, high = np.log(tune_rbm.STEP_SIZES[step])
    return [(np.log(t[step]) - low) / (high - low) for t in tried[curve][1:]]

  np.testing.assert_allclose(fractions("cd_10"), fractions("stein_cd"), atol=3e-3)
  assert set(tried["mle"][1]) == {"learning_rate", "schedule"}


@pytest.mark.parametrize(
  ("curve", "step"),
  [
    ("cd_1", "langevin_step_size"),
    ("cd_1_antithetic", "langevin_step_size"),
    ("pcd_10", "langevin_step_size"),
    ("stein_cd", "step_size"),
    ("stein_cd_regularized", "stein_step_size"),
    ("stein_cd_refreshed", "stein_step_size"),
    ("stein_score_matching", None),
    ("score_matching", None),
    ("gibbs", None),
    ("mle", None),
  ],
)
def test_which_step_size_a_curve_has(curve, step):
  assert tune_rbm.step_size_of(curve) == step


def trial(curve, place, validation, **settings):
  return {
    "curve": curve,
    "label": curve.upper(),
    "place": place,
    "settings": settings,
    "validation": validation,
  }


SUMMARY = {
  "budget": 3,
  "flags": {"steps": "7", "workdir": "runs/search", "seeds": "0"},
  "trials": [
    trial("cd_1", 0, -5.0),
    trial("cd_1", 1, None, learning_rate=3.0),
    trial(
      "cd_1", 2, -4.5, learning_rate=0.5, schedule="cosine", langevin_step_size=0.2
    ),
    trial("mle", 0, -3.0),
    trial("mle", 1, -3.5, learning_rate=0.5),
    trial("gibbs", 0, None),
    trial("gibbs", 1, -9.0, learning_rate=0.25, schedule="constant"),
  ],
}


def test_the_best_on_validation_wins():
  assert tune_rbm.rows(SUMMARY) == [
    ["CD_1", "0.5", "cosine", "0.2", "-4.50", "-5.00"],
    ["MLE", "default", "default", "", "-3.00", "-3.00"],
    ["GIBBS", "0.25", "constant", "", "-9.00", "diverged"],
  ]
  text = tune_rbm.winners_flagfile(SUMMARY)
  assert (
    "--overrides=cd_1: learning_rate=0.5 schedule=cosine langevin_step_size=0.2; "
    "gibbs: learning_rate=0.25 schedule=constant\n"
  ) in text
  assert "--steps=7\n" in text
  assert "--workdir=runs/figure1a_tuned\n" in text
  assert tune_rbm.markdown(SUMMARY).count("\n") == 4


@pytest.mark.slow
def test_a_search_is_continued_and_its_flagfile_can_be_run(tmp_path):
  search = (
    "--method=mle,cd",
    "--langevin_steps=1",
    "--num_hidden=2",
    "--steps=20",
    "--eval_every=10",
    "--noprogress",
    f"--workdir={tmp_path / 'w'}",
    f"--write_flags={tmp_path / 'tuned.flags'}",
  )
  first = binaries.run("tune_rbm", *search, "--budget=1")
  assert first.returncode == 0, first.stderr
  before = (tmp_path / "w" / "trials.jsonl").read_text()
  with (tmp_path / "w" / "trials.jsonl").open("a") as file:
    file.write('{"curve": "cd_1", "pla')  # the search was killed here
  second = binaries.run("tune_rbm", *search, "--budget=2")
  assert second.returncode == 0, second.stderr
  after = (tmp_path / "w" / "trials.jsonl").read_text()
  assert after.startswith(before)
  assert len(after.splitlines()) == 4
  summary = json.loads((tmp_path / "w" / "summary.json").read_text())
  assert len(summary["trials"]) == 4
  table = binaries.run("tune_rbm", f"--from_summary={tmp_path / 'w' / 'summary.json'}")
  assert table.stdout.strip() == tune_rbm.markdown(summary)

  # The winner's run ends where the trial did: same seed, same data, same steps.
  again = binaries.run(
    "mnist_rbm",
    f"--flagfile={tmp_path / 'tuned.flags'}",
    "--seeds=0",
    "--eval_every=10",
    "--noprogress",
    f"--workdir={tmp_path / 'again'}",
  )
  assert again.returncode == 0, again.stderr
  methods = json.loads((tmp_path / "again" / "summary.json").read_text())["methods"]
  for won in tune_rbm.winners(summary):
    final = methods[won["label"]]["final"]["validation"]["mean"]
    assert final == pytest.approx(won["validation"], abs=1e-3)


def test_a_record_that_is_repaired_is_replaced_as_a_whole(tmp_path):
  """In place, the trials of a search would be lost with a process that is killed."""
  record = tmp_path / "trials.jsonl"
  assert runlog.read(record) == []
  whole = "".join(json.dumps(t) + "\n" for t in SUMMARY["trials"])
  record.write_text(whole)
  before = record.stat()
  assert runlog.read(record) == SUMMARY["trials"]
  assert record.stat().st_mtime_ns == before.st_mtime_ns  # there is nothing to repair
  record.write_text(whole + '{"curve": "cd_1", "pla')  # the search was killed here
  with record.open() as reader:
    assert runlog.read(record) == SUMMARY["trials"]
    assert reader.read() == whole + '{"curve": "cd_1", "pla'
  assert record.read_text() == whole


def test_bad_input_ends_with_a_message(tmp_path):
  for arguments, word in (
    (["--from_summary=nowhere.json"], "nowhere.json"),
    (["--langevin_step_size=0.1,0.5"], "--langevin_step_size"),
    (["--method=magic"], "magic"),
    (["--budget=0"], "--budget"),
  ):
    result = binaries.run("tune_rbm", *arguments, f"--workdir={tmp_path / 'w'}")
    assert result.returncode != 0
    assert word in result.stderr
    assert "Traceback" not in result.stderr
  assert not (tmp_path / "w").exists()
