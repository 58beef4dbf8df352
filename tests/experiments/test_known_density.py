"""Rules on known truths: trials, their choice, resumption, tables."""

import functools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import known_density
from experiments.deep import report, trials
from experiments.deep.trials import Numbers, Sizes, Study
from stein_jax import densities, energies
from tests import binaries
from tests.experiments.parsing import parsed

SIZES = Sizes(
  batch_size=50, eval_every=100, num_train=1000, num_validation=2000, num_test=2000
)
STUDENT = energies.MLP((16,), activation=jax.nn.silu, base="diagonal")


def study(truth=None, student=STUDENT):
  truth = densities.two_modes(2, separation=4.0) if truth is None else truth
  return Study(truth, student, SIZES)


# ---------------------------------------------------------------------- candidates


@pytest.mark.parametrize("rule", trials.RULES)
def test_candidates_begin_with_the_defaults_and_stay_within_their_ranges(rule):
  found = trials.candidates(rule, 7)
  assert len(found) == 7
  assert found[0] == (trials.DEFAULT_RATE, trials.RULES[rule].default)
  rates, factors = np.array(found).T
  low, high = trials.LEARNING_RATES
  assert ((rates >= low) & (rates <= high)).all()
  assert (factors >= trials.RULES[rule].low * 0.999).all()
  assert (factors <= trials.RULES[rule].high * 1.001).all()
  # A larger budget is a continuation, and rates are the same for every rule.
  assert trials.candidates(rule, 4) == found[:4]
  assert trials.candidates(rule, 1) == found[:1]
  np.testing.assert_array_equal(rates, np.array(trials.candidates("cd1", 7))[:, 0])


def test_the_best_trial_is_that_of_the_last_evaluation():
  runs = [
    {"kl": [0.1, 3.0], "score_matching": [0, -1.0]},
    {"kl": [5.0, 2.0], "score_matching": [0, 1.0]},
    {"diverged": 3},
  ]
  assert trials.best(runs, "kl") is runs[1]
  assert trials.best(runs, "score_matching") is runs[0]
  assert trials.best(runs[2:], "kl") is None


# -------------------------------------------------------------------------- trials


def normal_student():
  """An energy that can be the truth itself: N(μ, I), unnormalised."""

  class Student:
    def init_from_data(self, key, x):
      return {"mean": jnp.asarray(x).mean(axis=0)}

    @staticmethod
    def apply(params, x):
      return 0.5 * jnp.sum((x - params["mean"]) ** 2)

  return Student()


def test_the_kl_is_that_of_two_gaussians():
  truth = densities.gaussian(jnp.zeros(3))
  tested = study(truth, normal_student())
  mean = jnp.array([0.5, -1.0, 0.2])
  expected = 0.5 * float(jnp.sum(mean**2))
  found = tested._judge({"mean": mean})
  assert float(found["kl"]) == pytest.approx(expected, abs=0.08)
  test = tested._test({"mean": mean}, 0)["test"]
  assert test["kl"]["value"] == pytest.approx(expected, abs=5 * test["kl"]["error"])
  assert test["fisher"]["value"] == pytest.approx(2 * expected, rel=1e-3)


def test_the_gaussian_of_the_same_moments():
  truth = densities.two_modes(2, separation=4.0)
  x = np.asarray(truth.sample(jax.random.key(5), 200_000), np.float64)
  covariance = np.cov(x.T)
  entropy = 0.5 * np.linalg.slogdet(2 * np.pi * math.e * covariance)[1]
  expected = float(truth.log_density(np.float32(x)).mean()) + entropy
  assert study(truth).gaussian_kl() == pytest.approx(expected, abs=0.05)


def test_seeds_have_other_points_other_students_and_the_same_program():
  tested = study()
  (_, x, theta), (_, other_x, other_theta) = tested.start(0), tested.start(1)
  assert not np.array_equal(x, other_x)
  kernel = theta["params"]["Dense_0"]["kernel"]
  assert not np.array_equal(kernel, other_theta["params"]["Dense_0"]["kernel"])
  np.testing.assert_array_equal(x, tested.start(0)[1])
  assert tested.algorithm("sliced") is tested.algorithm("sliced")


def test_a_run_learns_and_numbers_are_those_of_its_schedule():
  tested = study()
  numbers = Numbers(1e-2, 1.0, 300)
  found = tested.run("sliced", numbers, 0, test=True)
  assert found["steps"] == [0, 100, 200, 300]
  assert found["kl"][-1] < 0.5 * found["kl"][0]
  assert found["test"]["kl"]["value"] == pytest.approx(found["kl"][-1], abs=0.1)
  assert found["score_matching"][-1] < found["score_matching"][0]
  assert sum(found["test"]["mode_masses"]) == pytest.approx(1, abs=1e-3)
  assert found["ms"] > 0
  again = tested.run("sliced", numbers, 0, test=False)
  assert again["kl"] == found["kl"]
  slower = tested.run("sliced", numbers._replace(learning_rate=1e-5), 0, test=False)
  assert slower["kl"][0] == found["kl"][0]
  assert slower["kl"][-1] > 0.7 * slower["kl"][0]


def test_the_oracle_minimises_the_kl():
  found = study().run("oracle_kl", Numbers(1e-2, 1.0, 300), 0, test=False)
  assert found["kl"][-1] < 0.3 * found["kl"][0]


def test_a_run_that_diverges_says_so():
  found = study().run("cd1", Numbers(1e30, 1.0, 200), 0, test=True)
  assert list(found) == ["diverged"]


# ---------------------------------------------------------------------- the command


@pytest.fixture
def quick(monkeypatch):
  """Replaces training; returns the runs that were asked for."""
  asked = []

  class Quick:
    def gaussian_kl(self):
      return 1.5

    def compile_seconds(self, rule):
      return 0.25

    def run(self, rule, numbers, seed, *, test):
      asked.append((rule, numbers, seed, test))
      if rule == "nce":
        return {"diverged": 7}
      # The second candidate is the best by KL, the first by data alone.
      kl = 1.0 if numbers.learning_rate == trials.DEFAULT_RATE else 0.5
      tested = {
        "kl": {"value": kl + 0.1 * (seed % 3), "error": 0.01},
        "fisher": {"value": 2.0, "error": 0.1},
        "variance": {"value": 3.0, "error": 0.1},
        "effective_sample_size": 20.0 if rule == "cd1" else 900.0,
        "slope": 0.9,
        "mode_masses": None,
        "mode_mass_error": None,
      }
      found = {
        "steps": [0, 100],
        "kl": [2.0, kl],
        "score_matching": [0.0, -kl],
        "ms": 4.0,
      }
      return found | ({"test": tested} if test else {})

  monkeypatch.setattr(known_density, "_study", lambda own, truth: Quick())
  return asked


def start(tmp_path, *options):
  own = parsed(
    known_density.Settings,
    f"--workdir={tmp_path / 'w'}",
    *("--steps=100", "--eval_every=100", "--noprogress", "--truth=two_modes_2"),
    *options,
  )
  known_density.main(own)
  return json.loads((tmp_path / "w" / "summary.json").read_text())


def test_the_command_chooses_by_the_trials_and_continues(quick, tmp_path, capsys):
  options = ("--budget=3", "--seconds=2")
  first = start(tmp_path, "--rule=sliced", "--seeds=0", *options)
  kinds = [(numbers.num_steps, seed, test) for _, numbers, seed, test in quick]
  of_trial = (100, known_density.TRIAL_SEED, False)
  # 2 s of 4 ms are 500 steps.
  assert kinds == [of_trial] * 3 + [(100, 0, True), (500, 0, True)]
  wanted = trials.candidates("sliced", 3)
  assert [tuple(numbers[:2]) for _, numbers, _, _ in quick[:3]] == wanted
  assert tuple(quick[3][1][:2]) == wanted[1]
  cell = first["cells"]["two_modes_2"]["sliced"]
  assert cell["rate"] == wanted[1][0]
  assert cell["kl_by_data_alone"] == 1.0
  assert cell["compile_seconds"] == 0.25

  quick.clear()
  options = (*options, "--rule=sliced,cd1,nce", "--seeds=0,2")
  second = start(tmp_path, *options)
  assert [(rule, seed) for rule, _, seed, test in quick if test] == [
    *[("sliced", 2), ("cd1", 0), ("cd1", 2), ("cd1", 0)],
    *[("nce", 0), ("nce", 2), ("nce", 0)],
  ]
  assert second["cells"]["two_modes_2"]["sliced"]["curve"]["mean"] == [2.0, 0.5]
  # A line that was cut short is written again; everything else is kept.
  record = tmp_path / "w" / "runs.jsonl"
  text = record.read_text()
  record.write_text(text[:-20])
  quick.clear()
  assert start(tmp_path, *options)["cells"] == second["cells"]
  assert [rule for rule, *_ in quick] == ["nce"]
  assert record.read_text() == text
  assert (tmp_path / "w" / "known_density.png").stat().st_size > 10_000

  overview, detail = report.tables_of(second)
  assert overview[2] == [
    ["*Gaussian with the mean and covariance of the data*", "1.500"],
    ["Sliced score matching", "0.600 ± 0.141"],
    ["CD-1, antithetic", "≥ 0.600 ± 0.141"],
    ["NCE, 10 noise points", "all 2 diverged"],
  ]
  row = dict(zip(detail[1], detail[2][0]))
  assert row["KL after 2 s"] == "0.500"
  assert row["KL, chosen by data alone"] == "1.000"
  assert row["effective sample size"] == "900"
  assert row["ms a step"] == "4.00"
  printed = capsys.readouterr().out
  assert "0.600 ± 0.141" in printed
  assert known_density.markdown(second).count("**") == 4


@pytest.mark.parametrize(
  ("options", "message"),
  [
    (["--batch_size=300", "--train=200"], "--batch_size=300 is more than --train=200"),
    (["--student=residual"], "--student=residual learns images"),
    (["--rule=oracle_exact_mle"], "--student=rbm"),
    (["--rule=no_such"], "--rule"),
    (["--truth=no_such"], "--truth"),
    (["--val=10"], "--val"),
  ],
)
def test_wrong_usage(options, message, tmp_path, capsys):
  with pytest.raises((SystemExit, ValueError), match=message):
    start(tmp_path, *options)
  assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_the_command_learns_and_writes_all_promised_files(tmp_path):
  workdir = tmp_path / "w"
  run = functools.partial(binaries.run, "known_density")
  short = (
    *("--truth=mixture_10", "--student=rbm", "--rule=sliced,oracle_exact_mle"),
    *("--steps=1000", "--eval_every=500", "--budget=1", "--seeds=0", "--seconds=0"),
    f"--workdir={workdir}",
  )
  result = run(*short)
  assert result.returncode == 0, result.stderr
  summary = json.loads((workdir / "summary.json").read_text())
  cells = summary["cells"]["mixture_10"]
  for rule in ("sliced", "oracle_exact_mle"):
    assert (
      cells[rule]["tests"][0]["kl"]["value"] < 0.3 * summary["gaussian"]["mixture_10"]
    )
  assert (workdir / "known_density.png").stat().st_size > 10_000
  printed = run(f"--from_summary={workdir / 'summary.json'}")
  assert printed.stdout.strip() == known_density.markdown(summary)
